"""Cache of finished parts, so that an interrupted run resumes.

One file for every catalogue, named by a digest of its inputs: data, options, code and libraries. A part with other
inputs is never reused. Nothing is locked: two runs with one folder write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("gateway", "policy", "train")


@dataclass(frozen=True)
class ResumeCache:
    """A folder of finished parts."""

    folder: Path

    def find(self, name: str) -> dict[str, Any] | None:
        """The part of this name; None when there is no readable one."""
        try:
            found = json.loads((self.folder / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, name: str, part: Mapping[str, Any]) -> None:
        """Write a part atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f"{name}.part"
        beside.write_text(json.dumps(part, allow_nan=False), encoding="utf-8")
        beside.replace(self.folder / f"{name}.json")

    def clear(self) -> None:
        """Delete the parts at the end of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def part_name(depends_on: Any) -> str:
    """Name of a part by its inputs (any JSON) and this code."""
    known = json.dumps([depends_on, code_digest()], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()[:24]


def code_digest() -> str:
    """Digest of the sources of the packages that decide and learn."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
