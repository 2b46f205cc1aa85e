"""Sizes of an installation for serving and of one for training.

    python -m bench.install [--only serve]

Builds the wheel, installs it with the locked packages into an environment of its own, outside the checkout, and runs
`seqroute --version` and `seqroute check-config` there, so that the data files of the packages are in it. Downloads
what uv has not in its cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.rig.environments import ROOT

EXTRAS = {"serve": "", "run": "[train]"}
LARGEST = 8
UV = str(Path(sys.executable).with_name("uv"))


def main() -> None:
    """Install each, check it, print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(EXTRAS), help="one of the two")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run([UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable,
              "--out-dir", str(folder), str(ROOT)], folder)  # fmt: skip
        (wheel,) = folder.glob("*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
        for lock in [options.only] if options.only else EXTRAS:
            _measure(lock, wheel, folder / lock)


def _measure(lock: str, wheel: Path, folder: Path) -> None:
    python = folder / "bin" / "python"
    _run([UV, "venv", "--quiet", "--python", sys.executable, str(folder)], wheel.parent)
    install = [UV, "pip", "install", "--quiet", "--python", str(python)]
    _run([*install, "--require-hashes", "-r", str(ROOT / "requirements" / f"{lock}.lock")], folder)
    _run([*install, "--no-deps", str(wheel)], folder)
    version = _run([str(folder / "bin" / "seqroute"), "--version"], folder).strip()
    _run([str(folder / "bin" / "seqroute"), "check-config", "--config", str(ROOT / "gateway.yaml")], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    sizes = sorted(((_bytes(path), path.name) for path in packages.iterdir()), reverse=True)
    print(f"\n{lock}.lock, seqroute{EXTRAS[lock]}: {sum(size for size, _ in sizes) / 1e6:,.0f} MB, runs as {version}")
    for size, name in sizes[:LARGEST]:
        print(f"  {size / 1e6:8,.0f} MB  {name}")


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _run(command: Sequence[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with {done.returncode}: {done.stderr[-800:]}")
    return done.stdout


if __name__ == "__main__":
    main()
