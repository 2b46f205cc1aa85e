"""Task file: one JSON object per line, a conversation and the grading of each answer.

    {"id": "inv-1", "group": "lookup", "system": "Answer briefly.",
     "turns": [{"user": "How many bolts?", "check": {"exact": "42", "extract": "Answer: (.*)"}},
               {"user": "As JSON.", "check": {"json_schema": {"type": "object", "required": ["bolts"]}}}]}

A check has one of `exact`, `regex`, `json_schema`, `python`, `judge`; beside it `extract` (a regular expression whose
first group is what is graded) and, for `exact`, `ignore_case`. A task with a `user` (who they are, what they
want) continues after its own turns with messages of the user model, graded by the task's own `check`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.errors import InputError, kind_of, reason_of

KINDS = ("exact", "regex", "json_schema", "python", "judge")
_TASK_KEYS = frozenset({"id", "group", "system", "turns", "user", "check", "parameters"})
_TURN_KEYS = frozenset({"user", "check"})
_CHECK_KEYS = frozenset({*KINDS, "extract", "ignore_case"})
_RESERVED_PARAMETERS = frozenset({"model", "messages", "stream", "n", "user"})
ID = re.compile(r"[A-Za-z0-9._:-]{1,80}")


class TaskError(InputError):
    """An invalid line: file, line, what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class TaskTurn:
    """A user message and the check of its answer."""

    user: str
    check: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """A conversation. `persona` and `check` are for the user model's turns beyond its own."""

    task_id: str
    group: str
    system: str | None
    turns: tuple[TaskTurn, ...]
    persona: str | None = None
    check: Mapping[str, Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def length(self, depth: int, simulated: bool) -> int:
        """Turns to play: at most `depth`, beyond its own only with a user model."""
        return depth if simulated and self.persona is not None else min(depth, len(self.turns))

    def check_of(self, turn: int) -> Mapping[str, Any]:
        """The check of this turn's answer."""
        if turn < len(self.turns):
            return self.turns[turn].check
        assert self.check is not None
        return self.check


def read_tasks(path: Path) -> tuple[Task, ...]:
    """Read all tasks of a file in order. Raises TaskError for the first invalid line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: expected a readable UTF-8 file: {reason_of(error)}") from error
    tasks: dict[str, Task] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{where}: expected one JSON object, got {line[:40]!r}") from error
        task = _task(where, value)
        if task.task_id in tasks:
            raise TaskError(f'{where}: id: "{task.task_id}" is taken by an earlier line')
        tasks[task.task_id] = task
    if not tasks:
        raise TaskError(f"{path}: expected at least one task, found none")
    return tuple(tasks.values())


def kinds_of(tasks: tuple[Task, ...]) -> frozenset[str]:
    """Kinds of checks in these tasks."""
    checks = [turn.check for task in tasks for turn in task.turns] + [task.check for task in tasks if task.check]
    return frozenset(kind for check in checks for kind in KINDS if kind in check)


def _task(where: str, value: object) -> Task:
    fields = _mapping(where, value, _TASK_KEYS)
    task_id = _text(where, fields, "id")
    if not ID.fullmatch(task_id):
        raise TaskError(f"{where}: id: expected 1 to 80 of A-Z a-z 0-9 . _ : -, got {task_id[:90]!r}")
    turns = fields.get("turns")
    if not isinstance(turns, list) or not turns:
        raise TaskError(f"{where}: turns: expected a list of at least one turn")
    parameters = _mapping(f"{where}: parameters", fields.get("parameters", {}), None)
    taken = sorted(_RESERVED_PARAMETERS & set(parameters))
    if taken:
        raise TaskError(f"{where}: parameters.{taken[0]}: the rollout sets it itself; remove it")
    persona = None if fields.get("user") is None else _text(where, fields, "user")
    check = None if fields.get("check") is None else _check(f"{where}: check", fields["check"])
    if persona is not None and check is None:
        raise TaskError(f"{where}: check: expected one, because a user model writes turns of this task")
    return Task(
        task_id,
        "all" if fields.get("group") is None else _text(where, fields, "group"),
        None if fields.get("system") is None else _text(where, fields, "system"),
        tuple(_turn(f"{where}: turns[{i}]", turn) for i, turn in enumerate(turns)),
        persona,
        check,
        parameters,
    )


def _turn(where: str, value: object) -> TaskTurn:
    fields = _mapping(where, value, _TURN_KEYS)
    return TaskTurn(_text(where, fields, "user"), _check(f"{where}.check", fields.get("check")))


def _check(where: str, value: object) -> Mapping[str, Any]:
    check = _mapping(where, value, _CHECK_KEYS)
    kinds = [kind for kind in KINDS if kind in check]
    if len(kinds) != 1:
        raise TaskError(f"{where}: expected exactly one of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")
    if kinds != ["json_schema"]:
        _text(where, check, kinds[0])
    elif not isinstance(check["json_schema"], dict):
        raise TaskError(f"{where}.json_schema: expected an object, got {kind_of(check['json_schema'])}")
    for name in {"extract", *kinds} & {"extract", "regex"} & set(check):
        try:
            re.compile(_text(where, check, name))
        except re.error as error:
            raise TaskError(f"{where}.{name}: expected a regular expression: {error}") from error
    if "python" in check:
        try:
            compile(check["python"], "<check>", "exec")
        except (SyntaxError, ValueError) as error:
            raise TaskError(f"{where}.python: expected Python: {error}") from error
    return check


def _mapping(where: str, value: object, allowed: frozenset[str] | None) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TaskError(f"{where}: expected an object, got {kind_of(value)}")
    unknown = sorted(set(value) - allowed) if allowed is not None else []
    if unknown:
        raise TaskError(f"{where}: {unknown[0][:40]}: unknown key, expected one of {', '.join(sorted(allowed or ()))}")
    return value


def _text(where: str, fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise TaskError(f"{where}: {name}: expected a string, got {kind_of(value)}")
    return value
