"""Counterfactual tree of a task: every model answers each state, some answers are continued.

A state is a task and the models that answered its earlier turns. Every model is asked at every visited state, so all
actions are graded there; `branches` of the answers, drawn without replacement, become states of the next turn. So a
state of turn t is visited with the known probability (branches / models) ** t.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from train.rollout.tasks import Task


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Plan of a rollout. `branches` answers per state are continued.

    `judge` and `user` are models of the catalogue.
    """

    models: tuple[str, ...]
    depth: int
    branches: int
    seed: int
    max_tokens: int
    judge: str | None = None
    user: str | None = None

    def identity(self, tasks: tuple[Task, ...]) -> str:
        """Digest of tasks and plan, which a journal belongs to."""
        described = [
            [self.models, self.depth, self.branches, self.seed, self.max_tokens, self.judge, self.user],
            [[t.task_id, t.group, t.system, [[u.user, u.check] for u in t.turns], t.persona, t.check, t.parameters]
             for t in tasks],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(described, sort_keys=True, default=dict).encode()).hexdigest()[:32]

    def shuffled(self, tasks: tuple[Task, ...]) -> list[Task]:
        """Tasks shuffled by the seed, so that a rollout cut short by money is still a fair sample."""
        return Random(f"{self.seed} order").sample(tasks, len(tasks))


@dataclass(frozen=True, slots=True)
class State:
    """A moment of a conversation: `path` are the models of the turns before, oldest first."""

    task: Task
    path: tuple[str, ...] = ()

    @property
    def turn(self) -> int:
        """Index of the turn, from 0."""
        return len(self.path)

    def name(self, model: str | None = None) -> str:
        """Short id of the state, or of one model's answer at it; stable between runs."""
        named = [self.task.task_id, *self.path, *([] if model is None else [model])]
        kind = "state" if model is None else "node"
        return hashlib.sha256(json.dumps([kind, named]).encode()).hexdigest()[:24]

    def after(self, model: str) -> State:
        """The state after this model's answer."""
        return State(self.task, (*self.path, model))


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A model's answer at a state and its cost. Token counts are the provider's."""

    text: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    billed_nanousd: int
    finish_reason: str


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """An answer with its score in [0, 1]."""

    answer: ModelAnswer
    score: float
    note: str = ""


@dataclass(slots=True)
class Visited:
    """A played state: the user's message and the models' answers."""

    state: State
    user: str
    graded: dict[str, GradedAnswer] = field(default_factory=dict)


@dataclass(slots=True)
class PlayedTree:
    """The tree of one task. `whole`: only answers that a provider failed to give are missing."""

    task: Task
    visited: list[Visited] = field(default_factory=list)
    failed: int = 0
    whole: bool = True


def continued_models(plan: RolloutPlan, state: State) -> tuple[str, ...]:
    """Models whose answers at `state` are continued, in drawn order; () at the last turn."""
    if state.turn + 1 >= state.task.length(plan.depth, plan.user is not None):
        return ()
    return tuple(Random(f"{plan.seed} {state.name()}").sample(plan.models, plan.branches))


def spine(plan: RolloutPlan, task: Task) -> tuple[State, ...]:
    """States along the first-drawn branches: a uniformly drawn session."""
    states = [State(task)]
    while following := continued_models(plan, states[-1]):
        states.append(states[-1].after(following[0]))
    return tuple(states)


def visit_probability(plan: RolloutPlan, turn: int) -> float:
    """Probability that a given state of this turn is visited."""
    return (plan.branches / len(plan.models)) ** turn


def planned_answers(plan: RolloutPlan, task: Task) -> int:
    """Number of answers of a complete tree: K (1 + n + n^2 + ...), K models, n branches."""
    turns = task.length(plan.depth, plan.user is not None)
    return sum(len(plan.models) * plan.branches**turn for turn in range(turns))


def conversation(task: Task, before: list[dict[str, str]], user: str) -> list[dict[str, str]]:
    """Messages to send at a state; `before` are those since the system message."""
    system = [] if task.system is None else [{"role": "system", "content": task.system}]
    return [*(system if not before else []), *before, {"role": "user", "content": user}]


def as_record(answer: ModelAnswer) -> Mapping[str, Any]:
    """An answer in the journal's form."""
    return {name: getattr(answer, name) for name in ModelAnswer.__dataclass_fields__}
