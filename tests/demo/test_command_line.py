"""The demo's commands: errors are one line."""

from __future__ import annotations

import pytest

from demo.play import parse


def test_a_wrong_option_of_the_demo_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--sessions", "x"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("seqroute demo: argument --sessions: expected a whole number from 1, got x\n")
