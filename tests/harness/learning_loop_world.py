"""A month's world with known truth for the learning loop: tasks drift, a price falls, a model is added, one degrades.

Sessions of 3 to 6 turns are decided by the gateway's own router and line-up and logged in the gateway's own rows; only
sockets and providers are left out. Everything is a function of (seed, day, session): the same sessions can be played
again under any policy, with the same tasks, lengths and luck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.decisions.log import pending_row
from gateway.money import NANOUSD_PER_USD
from gateway.routing.router import Routed
from policy.arrays import F32
from policy.mdp import COST_LEVELS, CandidateView, Observation, Policy, SessionView
from policy.text import embed, stats

START_MS = 1_760_000_000_000
DAY_MS = 86_400_000
BUDGET_USD = 0.006
LAMBDA_PER_USD = 20.0
TENANTS = 5
Decide = Callable[[Observation, float, str], Routed]
Measure = Callable[["Outcome"], tuple[float, float]]
"""Numerator and denominator of a ratio over sessions."""


@dataclass(frozen=True)
class Model:
    """A model on one day: its price, what the catalogue believes of it, and how often it is right."""

    name: str
    usd_per_mtok: float
    prior: float
    easy: float
    hard: float


def catalogue(day: int) -> tuple[Model, ...]:
    """Day 8: the large model's price falls by two fifths. Day 12: a coder joins. Day 20: the medium one gets worse."""
    models = [
        Model("small", 0.2, 0.70, 0.95, 0.15),
        Model("medium", 1.0, 0.75, *((0.95, 0.45) if day < 20 else (0.60, 0.20))),
        Model("large", 5.0 if day < 8 else 3.0, 0.80, 0.97, 0.92),
    ]
    if day >= 12:
        models.append(Model("coder", 1.5, 0.76, 0.60, 0.85))
    return tuple(models)


def hard_share(day: int) -> float:
    """The mix drifts from a third to nearly six tenths of hard tasks."""
    return 0.33 + 0.25 * min(day, 30) / 30


@dataclass(frozen=True)
class Task:
    text: str
    hard: bool


@dataclass(frozen=True)
class Plan:
    """One session before anybody decides: its tasks, and the luck of every turn: (draw, bill, answer)."""

    name: str
    tenant: str
    day: int
    tasks: tuple[Task, ...]
    luck: NDArray[np.float64]


def plan(seed: int, day: int, number: int) -> Plan:
    generator = np.random.default_rng([seed, day, number])
    turns = int(generator.integers(3, 7))
    tasks = tuple(_task(generator, day) for _ in range(turns))
    return Plan(f"d{day:02d}-{number:05d}", f"ten_{number % TENANTS}", day, tasks, generator.random((turns, 3)))


def _task(generator: np.random.Generator, day: int) -> Task:
    if generator.random() >= hard_share(day):
        return Task(f"What is the capital of {generator.choice(('France', 'Peru', 'Japan', 'Kenya', 'Chile'))}?", False)
    a, b = generator.integers(10, 30, 2)
    return Task(f"Solve step by step: ({a} * {b}) - {a} = ? Show the sum.", True)


@dataclass
class Outcome:
    """What came of a session: true expected quality of every turn (0 for one not answered), and what it cost."""

    quality: list[float]
    cost_usd: float
    rows: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    policies: set[str]


def play(seed: int, session: Plan, decide: Decide, *, logged: bool) -> Outcome:
    """One session to its end. Rows of the log and of feedback only when `logged`."""
    models, outcome = catalogue(session.day), Outcome([], 0.0, [], [], set())
    remaining, last, previous = BUDGET_USD, None, None
    turns = len(session.tasks)
    for turn, task in enumerate(session.tasks):
        seen = observe(models, task, turn, turns, remaining, last)
        if not seen.mask.any():
            outcome.quality.append(0.0)
            continue
        uniform, bill, answer = (float(x) for x in session.luck[turn])
        routed = decide(seen, uniform, f"{session.tenant}/{session.name}")
        model = models[routed.decision.action]
        chance = model.hard if task.hard else model.easy
        cost = round((300 + 300 * bill) * model.usd_per_mtok * 1e-6 * NANOUSD_PER_USD)
        outcome.quality.append(chance)
        outcome.cost_usd += cost / NANOUSD_PER_USD
        outcome.policies.add(routed.decision.policy_id)
        if logged:
            at_ms = START_MS + session.day * DAY_MS + 1_000 * turn
            decision_id = f"dec_{session.name}_{turn}"
            names = {"tenant_id": session.tenant, "session_id": session.name, "decision_id": decision_id}
            outcome.rows.append(_row(seen, routed, uniform, at_ms) | names | {
                "turn": turn, "previous_decision_id": previous, "session_budget_nanousd": _nano(BUDGET_USD),
                "remaining_before_nanousd": _nano(remaining), "reserved_nanousd": cost, "status": "completed",
                "cost_nanousd": cost, "usage_source": "reported",
            })  # fmt: skip
            outcome.scores.append(names | {
                "feedback_id": f"fb_{decision_id}", "source": "checker", "name": "score",
                "score": float(answer < chance), "created_at_ms": at_ms + 500,
            })  # fmt: skip
            previous = decision_id
        remaining -= cost / NANOUSD_PER_USD
        last = model.name
    return outcome


def _row(seen: Observation, routed: Routed, uniform: float, at_ms: int) -> dict[str, Any]:
    return pending_row(
        seen, routed.decision, uniform=uniform, requested_model="auto", endpoint="chat",
        request_text=None, shadow=routed.shadow, now_ms=at_ms,
    )  # fmt: skip


def greedy(policy: Policy) -> Decide:
    """A policy asked directly, as if it served everybody."""
    return lambda seen, uniform, key: Routed(policy.decide(seen, uniform), None)


def quality_of(outcome: Outcome) -> tuple[float, float]:
    return sum(outcome.quality), float(len(outcome.quality))


def quality_per_dollar(outcome: Outcome) -> tuple[float, float]:
    return sum(outcome.quality), outcome.cost_usd


def duel(
    seed: int, sessions: int, day: int, one: Policy, other: Policy, measure: Measure, without: str = ""
) -> tuple[float, float]:
    """95 % interval of one's ratio minus the other's over the same new sessions of a day, paired bootstrap."""
    pairs = []
    for number in range(sessions):
        session = plan(seed + 1, day, number)
        if session.tenant != without:
            pairs.append([measure(play(seed, session, greedy(p), logged=False)) for p in (one, other)])
    values = np.array(pairs)  # (sessions, 2, 2)
    drawn = np.random.default_rng(seed).integers(0, len(values), (2_000, len(values)))
    sums = values[drawn].sum(axis=1)
    difference = sums[:, 0, 0] / sums[:, 0, 1] - sums[:, 1, 0] / sums[:, 1, 1]
    low, high = np.quantile(difference, [0.025, 0.975])
    return float(low), float(high)


def observe(
    models: Sequence[Model], task: Task, turn: int, turns: int, remaining_usd: float, last: str | None
) -> Observation:
    text, surface = _text(task.text)
    return Observation(
        text,
        surface,
        SessionView(
            turn=turn, expected_turns=turns, budget_usd=BUDGET_USD, remaining_usd=remaining_usd,
            tenant_remaining_usd=1.0, spent_usd=BUDGET_USD - remaining_usd, tokens_so_far=450 * turn, failures=0,
            regenerations=0, tool_errors=0, last_quality=None, mean_quality=None, last_model=last,
            seconds_since_last=None if turn == 0 else 5.0, tool_loop=False,
        ),
        tuple(_candidate(model, remaining_usd, last) for model in models),
        LAMBDA_PER_USD,
    )  # fmt: skip


def _candidate(model: Model, remaining_usd: float, last: str | None) -> CandidateView:
    quantiles = tuple((300 + 300 * level) * model.usd_per_mtok * 1e-6 for level in COST_LEVELS)
    fits = quantiles[-1] <= remaining_usd
    return CandidateView(
        name=model.name, input_usd_per_mtok=model.usd_per_mtok, cached_input_usd_per_mtok=model.usd_per_mtok / 10,
        output_usd_per_mtok=model.usd_per_mtok, quality_prior=model.prior, context_limit_tokens=100_000,
        input_tokens=200, warm_tokens=0, output_tokens_mean=250.0, cost_quantiles_usd=quantiles,
        cost_max_usd=quantiles[-1], served_last=model.name == last, failure_rate=0.0, latency_s=0.5, feasible=fits,
        why_not="" if fits else "not affordable",
    )  # fmt: skip


@lru_cache(maxsize=4_096)
def _text(words: str) -> tuple[F32, F32]:
    return embed(words), stats(words)


def _nano(usd: float) -> int:
    return round(usd * NANOUSD_PER_USD)
