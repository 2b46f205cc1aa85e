"""Environments of real clients, one each, made from a lock and kept until it changes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LOCKS = Path(__file__).parent / "environments"
CACHE = Path(__file__).parents[2] / ".clients"
UV = Path(sys.executable).with_name("uv")


def made(name: str, cache: Path, after: Sequence[str] = ()) -> Path:
    """The folder of environment `name`, installed from its lock; `after` runs in it once."""
    lock = LOCKS / name
    files = sorted(path for path in lock.iterdir() if path.is_file())
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    folder = cache / name
    done = folder / "installed"
    if done.exists() and done.read_text() == stamp:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if (lock / "package.json").exists():
        for path in files:
            shutil.copy(path, folder)
        _run(["npm", "install", "--no-fund", "--no-audit", "--ignore-scripts"], folder)
    else:
        _run([str(UV), "venv", "--quiet", "--python", sys.executable, "venv"], folder)
        locked = ["--no-deps", "--require-hashes", "-r", str(lock / "requirements.lock")]
        python = str(folder / "venv/bin/python")
        _run([str(UV), "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *locked], folder)
    if after:
        _run(list(after), folder)
    done.write_text(stamp)
    return folder


def versions(name: str) -> dict[str, str]:
    """The packages that an environment is made for, with their exact versions."""
    lock = LOCKS / name
    if (lock / "package.json").exists():
        wanted: dict[str, str] = json.loads((lock / "package.json").read_text())["dependencies"]
        return wanted
    text = (lock / "requirements.in").read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==(\S+)$", text, re.MULTILINE))


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])} failed with {done.returncode}: {done.stderr[-500:]}")
