"""Composition of sessions from graded prompts: number of turns, order, declared horizon.

A composed session has no conversational dependence beyond the real turns of multi-turn tasks, which stay together and
in order: a model's answer does not change the next prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy.arrays import F64, I64, Bools
from train.replay.dataset import Graded

ORDERINGS = ("iid", "by-topic", "easy-first", "hard-first", "late-burst")
RANDOM_TURNS = (2, 16)
"""Range of turns in a session of random length: uniform, both ends included."""
NOISE = 0.5
"""Noise added to a group's difficulty, in standard deviations of the difficulties."""
DECLARED_SHARE = 0.5
BURST_SHARE = 0.25


@dataclass(frozen=True)
class Sessions:
    """Sessions (S) of up to T turns: `rows` (S, T) are prompts, -1 after the end.

    `declared` (S,) is the client's horizon, 0 without one; `ordering` (S,) indexes ORDERINGS and is hidden from every
    policy.
    """

    rows: I64
    declared: I64
    ordering: I64

    @property
    def valid(self) -> Bools:
        """Mask of the turns, (S, T)."""
        return self.rows >= 0

    @property
    def lengths(self) -> I64:
        """Turns of each session, (S,)."""
        return np.asarray(self.valid.sum(axis=1), np.int64)


def compose(
    graded: Graded,
    prompts: I64,
    difficulty: F64,
    *,
    sessions: int,
    turns: int | None,
    generator: np.random.Generator,
    orderings: Sequence[str] = ORDERINGS,
) -> Sessions:
    """Compose sessions of `prompts`, with the orderings in equal shares.

    `turns` None: a random number for each. `difficulty` (G,) is the training half's estimate for each group
    (`group_difficulty`), the only input of an order.
    """
    tasks = _tasks(graded, prompts)
    group_of_task = np.array([graded.group[task[0]] for task in tasks], np.int64)
    lengths = (
        generator.integers(RANDOM_TURNS[0], RANDOM_TURNS[1] + 1, sessions)
        if turns is None
        else np.full(sessions, turns, np.int64)
    )
    labels = np.array([ORDERINGS.index(orderings[i % len(orderings)]) for i in range(sessions)], np.int64)
    rows = np.full((sessions, int(lengths.max())), -1, np.int64)
    longest = max(len(task) for task in tasks)
    spread = float(difficulty.std()) or 1.0
    for s in range(sessions):
        length = int(lengths[s])
        count = -(-length // longest) if longest > 1 else length
        hardness = difficulty[group_of_task] / spread + NOISE * generator.standard_normal(len(tasks))
        order = _order(ORDERINGS[labels[s]], count, group_of_task, hardness, generator)
        filled = np.concatenate([tasks[i] for i in order])
        while len(filled) < length:  # add tasks of the same kind when conversations are short
            more = _order(ORDERINGS[labels[s]], count, group_of_task, hardness, generator)
            filled = np.concatenate([filled, *(tasks[i] for i in more)])
        rows[s, :length] = filled[:length]
    declared = np.where(generator.random(sessions) < DECLARED_SHARE, lengths, 0)
    return Sessions(rows, declared.astype(np.int64), labels)


def covering(
    graded: Graded, prompts: I64, *, least: int, turns: int | None, generator: np.random.Generator
) -> Sessions:
    """Compose sessions in which every prompt occurs equally often, to learn answers from.

    Passes over the tasks, each in a new order, are cut into at least `least` sessions. `turns` None: a random number
    for each.
    """
    tasks = _tasks(graded, prompts)
    mean = (RANDOM_TURNS[0] + RANDOM_TURNS[1]) / 2 if turns is None else turns
    passes = max(-(-int(least * mean) // len(prompts)), 1)
    flow = np.concatenate([tasks[i] for _ in range(passes) for i in generator.permutation(len(tasks))])
    lengths: list[int] = []
    while sum(lengths) < len(flow):
        wanted = int(generator.integers(RANDOM_TURNS[0], RANDOM_TURNS[1] + 1)) if turns is None else turns
        lengths.append(min(wanted, len(flow) - sum(lengths)))
    rows = np.full((len(lengths), max(lengths)), -1, np.int64)
    rows[np.arange(rows.shape[1]) < np.array(lengths)[:, None]] = flow
    return Sessions(rows, np.zeros(len(rows), np.int64), np.full(len(rows), ORDERINGS.index("iid"), np.int64))


def group_difficulty(graded: Graded, training: I64, weak: int) -> F64:
    """Failure rate of the weakest model in each group of the training half; else overall."""
    failed = 1.0 - graded.quality[training, weak]
    count = np.bincount(graded.group[training], minlength=len(graded.groups))
    total = np.bincount(graded.group[training], weights=failed, minlength=len(graded.groups))
    return np.where(count > 0, total / np.maximum(count, 1), failed.mean())


def _tasks(graded: Graded, prompts: I64) -> list[I64]:
    """Prompts by task, each task's turns in order."""
    ordered = prompts[np.lexsort((graded.turn[prompts], graded.task[prompts]))]
    cuts = np.flatnonzero(np.diff(graded.task[ordered])) + 1
    return [np.asarray(part, np.int64) for part in np.split(ordered, cuts)]


def _order(ordering: str, count: int, group: I64, hardness: F64, generator: np.random.Generator) -> I64:
    """`count` tasks in an order."""
    if ordering == "by-topic":
        topic = group[generator.integers(len(group))]
        same = np.flatnonzero(group == topic)
        return _draw(same, count, generator)
    drawn = _draw(np.arange(len(group)), count, generator)
    if ordering == "easy-first":
        return drawn[np.argsort(hardness[drawn], kind="stable")]
    if ordering == "hard-first":
        return drawn[np.argsort(-hardness[drawn], kind="stable")]
    if ordering == "late-burst":
        return _late_burst(count, hardness, generator)
    return drawn


def _late_burst(count: int, hardness: F64, generator: np.random.Generator) -> I64:
    """The easier half of the tasks, then the hardest quarter for the last quarter of the turns."""
    order = np.argsort(hardness, kind="stable")
    easy, hard = order[: max(1, len(order) // 2)], order[-max(1, len(order) // 4) :]
    burst = max(1, round(BURST_SHARE * count))
    return np.concatenate([_draw(easy, count - burst, generator), _draw(hard, burst, generator)])


def _draw(among: I64, count: int, generator: np.random.Generator) -> I64:
    """Draw without repeats as long as there are enough."""
    return np.asarray(generator.choice(among, count, replace=count > len(among)), np.int64)
