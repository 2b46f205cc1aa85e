"""Progress of a long command: a bar on a terminal alone, and lines in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from train.cli.progress import Bar

SHOWS = "from train.cli.progress import Bar\nwith Bar(print) as bar: bar.show('fit', 1, 2)"


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", SHOWS], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    assert "\x1b[" in shown
    assert "fit" in shown
    assert done.stdout == b""


def test_a_pipe_gets_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar() as progress:
        progress.show("replay", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_json_log_says_when_a_step_starts_and_ends() -> None:
    written: list[str] = []
    times = iter([10.0, 22.4, 30.0, 31.0])
    with Bar(written.append, clock_s=lambda: next(times)) as progress:
        for step, done in (("read", 0), ("read", 5), ("fit", 0)):
            progress.show(step, done, 10)
    assert written == ["read ...", "read done after 12 s", "fit ...", "fit done after 1 s"]
