"""Progress of a step: a bar on a terminal; otherwise nothing, or lines of a JSON log."""

from __future__ import annotations

import logging.config
import sys
import time
from collections.abc import Callable
from typing import Any

from gateway.logs import logging_config


def line_writer(log_format: str) -> Callable[[str], None] | None:
    """Write lines of JSON on standard error, like the gateway does; None where the log is text."""
    if log_format == "text":
        return None
    logging.config.dictConfig(logging_config("info", log_format))
    return logging.getLogger("seqroute.train").info


class Bar:
    """Progress bar on a terminal; elsewhere lines at the start and end of a step, or nothing."""

    def __init__(self, say: Callable[[str], None] | None = None, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock_s = clock_s
        self._started_s = 0.0
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

    def __exit__(self, kind: object, *_: object) -> None:
        self._end(failed=kind is not None)
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a step are finished."""
        if self._bar is None:
            if self._say is not None and step != self._step:
                self._end(failed=False)
                self._step, self._started_s = step, self._clock_s()
                self._say(f"{step} ...")
            return
        if step != self._step:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._step = self._bar.add_task(step, total=total or None), step
        self._bar.update(self._task, completed=done, total=total or None)

    def _end(self, failed: bool) -> None:
        """Report that the running step has ended."""
        if self._bar is None and self._say is not None and self._step:
            took_s = self._clock_s() - self._started_s
            self._say(f"{self._step} {'failed' if failed else 'done'} after {took_s:.0f} s")
            self._step = ""
