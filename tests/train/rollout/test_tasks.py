from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from train.rollout.tasks import TaskError, kinds_of, read_tasks

GOOD: dict[str, Any] = {"id": "t1", "turns": [{"user": "hi", "check": {"exact": "yes"}}]}


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_task_is_read_with_everything_it_may_have(tmp_path: Path) -> None:
    whole = GOOD | {
        "group": "greetings", "system": "be brief", "user": "a shy person", "check": {"judge": "friendly?"},
        "parameters": {"temperature": 0},
    }  # fmt: skip
    (task,) = read_tasks(written(tmp_path, whole, ""))
    assert (task.task_id, task.group, task.system, task.persona) == ("t1", "greetings", "be brief", "a shy person")
    assert task.check_of(0) == {"exact": "yes"}
    assert task.check_of(3) == {"judge": "friendly?"}
    assert kinds_of((task,)) == {"exact", "judge"}


def test_a_conversation_goes_beyond_its_own_turns_only_with_a_user_model_and_a_persona(tmp_path: Path) -> None:
    plain, lively = read_tasks(written(tmp_path, GOOD, GOOD | {"id": "t2", "user": "curious", "check": {"regex": "."}}))
    assert [plain.length(4, simulated) for simulated in (False, True)] == [1, 1]
    assert [lively.length(4, simulated) for simulated in (False, True)] == [1, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected one JSON object"),
        ("[1]", "expected an object, got a list"),
        (GOOD | {"id": "a/b"}, "id: expected 1 to 80"),
        (GOOD | {"turns": []}, "turns: expected a list of at least one turn"),
        (GOOD | {"depth": 3}, "depth: unknown key"),
        (GOOD | {"turns": [{"user": "hi"}]}, r"turns\[0\].check: expected an object, got nothing"),
        (GOOD | {"turns": [{"user": "hi", "check": {}}]}, "exactly one of exact, regex.* got none"),
        (GOOD | {"turns": [{"user": "hi", "check": {"exact": "a", "judge": "b"}}]}, "got exact, judge"),
        (GOOD | {"turns": [{"user": "hi", "check": {"regex": "("}}]}, "check.regex: expected a regular expression"),
        (GOOD | {"turns": [{"user": "hi", "check": {"exact": "a", "extract": "["}}]}, "check.extract: expected a reg"),
        (GOOD | {"turns": [{"user": "hi", "check": {"python": "assert ("}}]}, "check.python: expected Python"),
        (GOOD | {"turns": [{"user": "hi", "check": {"json_schema": "{}"}}]}, "json_schema: expected an object"),
        (GOOD | {"user": "me"}, "check: expected one"),
        (GOOD | {"parameters": {"model": "x"}}, "parameters.model: the rollout sets it itself; remove it"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(tmp_path: Path, line: Any, message: str) -> None:
    good = GOOD | {"id": "first"}
    with pytest.raises(TaskError, match=rf"tasks.jsonl:2: .*{message}"):
        read_tasks(written(tmp_path, good, line))


def test_an_id_counts_once_and_an_empty_file_is_no_task_file(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match='"t1" is taken by an earlier line'):
        read_tasks(written(tmp_path, GOOD, GOOD))
    with pytest.raises(TaskError, match="expected at least one task"):
        read_tasks(written(tmp_path, ""))
    with pytest.raises(TaskError, match="expected a readable UTF-8 file"):
        read_tasks(tmp_path / "missing.jsonl")
