"""Run folder runs/<run_id>/: each step's result as JSON, written atomically for reruns."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. `identity` names data, config and key; other results are ignored."""

    path: Path
    identity: str = ""

    def write(self, step: str, result: Mapping[str, Any]) -> None:
        """Write `<step>.json`."""
        content = {"identity": self.identity, **finite(result)}
        self.write_text(f"{step}.json", json.dumps(content, indent=1, sort_keys=True))

    def write_text(self, name: str, content: str) -> None:
        """Write a file atomically: to a temporary name, synced, then renamed."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / f".{name}.{os.getpid()}"
        with partial.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / name)

    def read(self, step: str) -> dict[str, Any] | None:
        """A finished step's result; None when missing or of other data, config or key."""
        try:
            result = json.loads((self.path / f"{step}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if not isinstance(result, dict) or result.pop("identity", None) != self.identity:
            return None
        return result


def finite(value: Any) -> Any:
    """Convert to JSON values: dataclasses as objects, NaN and infinities as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return finite(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
