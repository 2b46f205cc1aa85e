"""How far a step is, and how long it will still take: a bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import sys
from typing import Any


class Bar:
    """A bar on a terminal; nothing elsewhere, so that cron mails no progress."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._step = ""

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: str, done: int, total: int) -> None:
        if self._bar is None:
            return
        if step != self._step:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._step = self._bar.add_task(step, total=total or None), step
        self._bar.update(self._task, completed=done, total=total or None)
