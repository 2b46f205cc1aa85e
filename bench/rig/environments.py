"""Environments of the peers, built once per lock file into a folder that git ignores.

`requirements/peers.lock` has LiteLLM Proxy (without the extra with proprietary code) and the dependencies of the two
Python relays; `portkey/package-lock.json` has Portkey's gateway. Failed builds are reported by name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS_LOCK = ROOT / "requirements" / "peers.lock"
PORTKEY = Path(__file__).parent / "portkey"
BUILD_TIMEOUT_S = 900


class NotBuilt(Exception):
    """An environment could not be built; the message has the command and its error."""


def cache_folder() -> Path:
    """The folder `.bench` beside the code, or SEQROUTE_BENCH_CACHE."""
    return Path(os.environ.get("SEQROUTE_BENCH_CACHE") or ROOT / ".bench").absolute()


def python_environment(cache: Path) -> Path:
    """The `bin` folder of the Python peers' environment, built if missing. Raises NotBuilt."""
    folder = cache / f"peers-{_digest(PEERS_LOCK)}"
    if _is_whole(folder):
        return folder / "bin"
    uv = Path(sys.executable).with_name("uv")
    python = folder / "bin" / "python"
    _run([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder)])
    _run([str(uv), "pip", "install", "--quiet", "--python", str(python), "--compile-bytecode", "--require-hashes",
          "-r", str(PEERS_LOCK)])  # fmt: skip
    _mark_whole(folder)
    return folder / "bin"


def portkey_server(cache: Path) -> Path:
    """The script that starts Portkey's gateway, installed if missing. Raises NotBuilt."""
    folder = cache / f"portkey-{_digest(PORTKEY / 'package-lock.json')}"
    if not _is_whole(folder):
        for tool in ("node", "npm"):
            if shutil.which(tool) is None:
                raise NotBuilt(f"Portkey's gateway needs {tool} on PATH, found none")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PORTKEY / name, folder / name)
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
        _mark_whole(folder)
    return folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:12]


def _is_whole(folder: Path) -> bool:
    return (folder / ".whole").exists()


def _mark_whole(folder: Path) -> None:
    (folder / ".whole").touch()


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuilt(f"{' '.join(command[:3])}: {error}") from error
    if done.returncode != 0:
        raise NotBuilt(f"{' '.join(command[:3])}: {(done.stderr or done.stdout).strip()[-400:]}")
