"""Journal of a rollout's paid calls: JSON lines, each synced, so that a killed run resumes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from train.errors import InputError

NAME = "journal.jsonl"


class JournalError(InputError):
    """The folder holds another rollout, or another process writes to it."""


class Journal:
    """Context manager over a folder. Records are found by (kind, name); the last one counts."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._path = folder / NAME
        self._identity = identity
        self._records: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Raises JournalError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise JournalError(f"{self._path}: another process writes to it; wait for it to end") from error
        self._read()
        found = self.find("rollout", "identity")
        if found is None:
            self.write("rollout", "identity", {"identity": self._identity})
        elif found["identity"] != self._identity:
            self._file.close()
            raise JournalError(
                f"{self._path}: holds a rollout of other tasks, models or options; choose another folder with --out"
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def find(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """The last record of this kind and name; None if there is none."""
        return self._records.get((kind, name))

    def write(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        """Append a record; it is on disk when this returns."""
        assert self._file is not None
        self._file.write(json.dumps({"kind": kind, "name": name, **record}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._records[(kind, name)] = record

    def _read(self) -> None:
        """Read the records and cut off an incomplete last line, left by a kill."""
        assert self._file is not None
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self._records[(record.pop("kind"), record.pop("name"))] = record
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)
