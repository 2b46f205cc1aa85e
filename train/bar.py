"""How far a step is: a bar on a terminal, a line a minute in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

SECONDS_BETWEEN_LINES = 60.0


class Lines:
    """At most one line a minute, for a log: `step: 120 of 360, 4 min, about 8 min more`."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._step = ""
        self._began = self._last = clock()
        self._first = 0

    def show(self, step: str, done: int, total: int) -> None:
        now = self._clock()
        if step != self._step:
            self._step, self._began, self._first = step, now, done
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        gone = now - self._began
        line = f"{step}: {done} of {total}, {gone / 60:.0f} min" if total else f"{step}: {done}, {gone / 60:.0f} min"
        if total and done > self._first:
            # What was there at the start cost no time.
            line += f", about {gone * (total - done) / (done - self._first) / 60:.0f} min more"
        self._write(line + "\n")


class Bar:
    """A bar on a terminal, lines in a pipe."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._step = ""
        self._lines = Lines(sys.stderr.write)

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
            self._lines.show(step, done, total)
            return
        if step != self._step:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._step = self._bar.add_task(step, total=total or None), step
        self._bar.update(self._task, completed=done, total=total or None)
