"""pgbouncer in transaction mode before a Postgres, where the binary is installed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from sqlalchemy.engine import make_url

from tests.harness.processes import free_port

START_TIMEOUT_S = 20.0


def find_pgbouncer() -> str | None:
    """The binary: on PATH, or where Debian puts it."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def pgbouncer(url: str, *, pool_size: int = 4) -> Iterator[str]:
    """Put a pgbouncer before the server of `url`; yields the URL through it."""
    binary = find_pgbouncer()
    if binary is None:
        raise RuntimeError("no pgbouncer: install it (apt-get install pgbouncer)")
    server = make_url(url)
    port = free_port()
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="seqroute-bouncer-"))
    (folder / "users").write_text('"postgres" ""\n')
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={server.host} port={server.port}\n[pgbouncer]\npool_mode = transaction\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {folder / 'users'}\nmax_client_conn = 500\ndefault_pool_size = {pool_size}\n"
        f"logfile = {folder / 'log'}\npidfile = {folder / 'pid'}\nignore_startup_parameters = extra_float_digits\n"
    )
    if user is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    process = subprocess.Popen(
        [binary, "-q", str(settings)], user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    through = server.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    try:
        _wait_until_open(through, process, folder / "log")
        yield through
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_open(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=2, prepare_threshold=None).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = log.read_text()[-2000:] if log.exists() else ""
                raise RuntimeError(f"pgbouncer did not start: {error} {said}") from error
            time.sleep(0.05)
