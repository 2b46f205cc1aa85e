"""Checks grade, and an answer that is code can do nothing but be wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from train.rollout.graders import CAGE, Grade, Limits, run_check

SHORT = Limits(cpu_s=1, wall_s=60.0, memory_bytes=256 * 2**20)
SCHEMA = {"type": "object", "required": ["bolts"], "properties": {"bolts": {"type": "integer"}}}


async def score(check: dict[str, Any], answer: str, messages: list[dict[str, str]] | None = None) -> Grade:
    return await run_check(check, answer, messages or [], SHORT)


@pytest.mark.parametrize(
    ("check", "answer", "expected"),
    [
        ({"exact": "42"}, " 42\n", 1.0),
        ({"exact": "42"}, "the answer is 42", 0.0),
        ({"exact": "Yes", "ignore_case": True}, "yes", 1.0),
        ({"exact": "Yes"}, "yes", 0.0),
        ({"exact": "42", "extract": "^Answer: (.*)"}, "Six times seven.\nAnswer: 42", 1.0),
        ({"exact": "42", "extract": "^Answer: (.*)"}, "42", 0.0),
        ({"regex": "^b+c$"}, "a\nbbc", 1.0),
        ({"regex": "^b+c$"}, "bbcd", 0.0),
        ({"json_schema": SCHEMA}, 'Here:\n```json\n{"bolts": 3}\n```', 1.0),
        ({"json_schema": SCHEMA}, '{"bolts": "three"}', 0.0),
        ({"json_schema": SCHEMA}, "three bolts", 0.0),
        ({"python": "assert int(answer) == 3"}, "3", 1.0),
        ({"python": "assert int(answer) == 3"}, "4", 0.0),
        ({"python": "score = len(answer) / 4"}, "abc", 0.75),
        ({"python": "score = 7"}, "", 1.0),
        ({"python": "assert messages[-1]['content'] == answer"}, "hello", 1.0),
    ],
)
async def test_every_kind_of_check_grades(check: dict[str, Any], answer: str, expected: float) -> None:
    grade = await score(check, answer, [{"role": "user", "content": "hello"}])
    assert grade.score == expected


HOSTILE = {
    "a fork bomb": "import os\nwhile True: os.fork()",
    "an endless loop": "while True: pass",
    "memory": "x = 'a' * 10**9",
    "a program": "import subprocess\nsubprocess.run(['true'], check=True)",
    "a program without subprocess": "import _posixsubprocess",
    "another process's memory": "import ctypes\nctypes.CDLL(None)",
    "a signal to its parent": "import os\nos.kill(os.getppid(), 9)",
    "the network": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "a thread": "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\nopen('x', 'w')",
    "a file in its folder": "open('x', 'w').write('y')",
    "the parent's environment": "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
    "leaving early": "import os\nos._exit(0)",
    "leaving politely": "raise SystemExit",
    "a verdict on stdout": 'import os\nos.write(1, b\'{"score": 1, "note": ""}\')\nassert False',
    "recursion": "f = lambda: f()\nf()",
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_code_is_wrong_and_nothing_else(code: str) -> None:
    grade = await score({"python": "exec(answer)"}, code)
    assert grade.score == 0.0
    assert grade.note


async def test_an_answer_cannot_touch_a_file_it_knows_of(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for code in (
        f"import os\nos.unlink({str(victim)!r})",
        f"open({str(victim)!r}, 'w')",
        f"import os\nos.open({str(victim)!r}, os.O_WRONLY | os.O_TRUNC)",
        f"import os\nos.rename({str(victim)!r}, 'x')",
        f"import os\nos.truncate({str(victim)!r}, 0)",
    ):
        assert (await score({"python": "exec(answer)"}, code)).score == 0.0, code
        assert victim.read_text() == "whole"


async def test_secrets_of_the_environment_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER_KEY", "sk-secret")
    code = "import os\nassert not os.environ\nassert os.listdir('.') == []"
    assert (await score({"python": code}, "")).score == 1.0


async def test_a_regular_expression_that_never_ends_is_ended(tmp_path: Path) -> None:
    assert (await score({"regex": "^(a+)+$"}, "a" * 40 + "b")).score == 0.0


def test_the_system_call_filter_holds_without_the_audit_hook(tmp_path: Path) -> None:
    """Where there is one. What Python is asked to refuse, the kernel refuses too."""
    victim = tmp_path / "victim"
    victim.write_text("whole")
    program = f"""
import importlib.util, os, socket
spec = importlib.util.spec_from_file_location("cage", {str(CAGE)!r})
cage = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cage)
if cage.filter_system_calls():
    for attempt in (os.fork, lambda: os.unlink({str(victim)!r}), lambda: open({str(victim)!r}, "w"), socket.socket,
                    lambda: os.kill(os.getppid(), 0), lambda: os.mkdir("x"), lambda: os.execv("/bin/true", ["true"])):
        try:
            attempt()
        except PermissionError:
            continue
        raise SystemExit(f"allowed: {{attempt}}")
    assert open({str(victim)!r}).read() == "whole"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
