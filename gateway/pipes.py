"""End of a command whose reader has left, as `head` does."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

UNREAD = 141
"""The exit status of a program that ends because no one reads it: 128 and the number of SIGPIPE."""
_STREAMS = (1, 2)


def run_while_read(run: Callable[[], int]) -> int:
    """Run a command and return its exit status; UNREAD once its output is read no more."""
    try:
        status = run()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # Typer exits with 1
        unread = [stream for stream in _STREAMS if _is_unread(stream)]
        if not unread:
            raise
        for stream in unread:  # the interpreter writes what is left at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        return UNREAD
    return status


def _is_unread(descriptor: int) -> bool:
    watch = select.poll()
    watch.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in watch.poll(0))
