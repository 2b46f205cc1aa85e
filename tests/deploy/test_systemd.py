"""The units of `deploy/systemd`, judged by systemd itself; collected where systemd is installed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for path in sorted((DEPLOY / "systemd").iterdir()):
        installed = re.sub(r"/opt/seqroute/\.venv/bin/[\w-]+", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(installed)
    command = ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
