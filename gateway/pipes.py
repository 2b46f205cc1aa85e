"""Streams of a command that are closed, not read or full, and files that cannot be used."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

UNREAD = 141
"""The exit status of a program that ends because no one reads it: 128 and the number of SIGPIPE."""
UNWRITTEN = 1
_STREAMS = (1, 2)
_NAMES = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def run_while_read(run: Callable[[], int]) -> int:
    """Run a command and return its exit status; UNREAD once its output is read no more.

    Output that cannot be written, and a file or folder that cannot be used, is one line on stderr, and status 1.
    """
    _open_closed()
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
    except OSError as error:
        if error.filename is not None:
            sys.stderr.write(f"{unusable(error)}\n")
            return UNWRITTEN
        if not _is_unwritten(error):
            raise  # of the command's own work
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STREAMS[0])
        sys.stderr.write(f"standard output: {error.strerror}\n")
        return UNWRITTEN
    return status


def unusable(error: OSError) -> str:
    """One line about a file or folder that cannot be read or written."""
    return f"{error.filename}: expected a file or folder that can be used, got: {error.strerror}"


def _is_unwritten(error: OSError) -> bool:
    """Whether it was the output that failed: an end of a line cannot be written either."""
    try:
        os.write(_STREAMS[0], b"\n")
    except OSError as again:
        return again.errno == error.errno
    return False


def _open_closed() -> None:
    """Open streams that were closed (`>&-`) on nothing; a database would get their numbers, and what is printed."""
    for number, (name, mode) in enumerate(_NAMES):
        if getattr(sys, name) is not None:
            continue
        stream = open(os.devnull, mode)  # noqa: SIM115 - open until the end, as the stream that it is
        setattr(sys, name, stream)
        try:
            os.fstat(number)
        except OSError:
            os.dup2(stream.fileno(), number)


def _is_unread(descriptor: int) -> bool:
    watch = select.poll()
    watch.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in watch.poll(0))
