"""A small world with known truth, played by a real policy into real rows of the log.

Three models, two kinds of task: all know the capital of France; sums need the costly one. The catalogue's priors
do not say so: they are close together, as cold priors are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from gateway.accounts.tenants import SECOND_TENANT
from gateway.database import tables
from gateway.decisions.log import pending_row
from gateway.money import NANOUSD_PER_USD
from policy.mdp import COST_LEVELS, CandidateView, Observation, Policy, SessionView
from policy.text import embed, stats

START_MS = 1_760_000_000_000
NOW_MS = START_MS + 86_400_000


@dataclass(frozen=True)
class SimModel:
    name: str
    usd_per_mtok: float
    quality_prior: float
    easy: float
    hard: float


MODELS = (
    SimModel("small", 0.2, 0.70, 0.95, 0.15),
    SimModel("medium", 1.0, 0.75, 0.95, 0.35),
    SimModel("large", 5.0, 0.80, 0.97, 0.92),
)
_CITIES = ("France", "Peru", "Japan", "Kenya", "Norway", "Chile")


@dataclass(frozen=True)
class Task:
    text: str
    hard: bool


def draw_task(generator: np.random.Generator) -> Task:
    if generator.random() < 0.5:
        return Task(f"What is the capital of {generator.choice(_CITIES)}?", False)
    a, b = generator.integers(100, 999, 2)
    return Task(f"Solve step by step: ({a} * {b}) - {a} = ? Show the sum.", True)


def cost_quantiles_usd(model: SimModel) -> tuple[float, ...]:
    """Output lengths of 100 to 400 tokens, prompts of 200."""
    return tuple(float((200 + 100 + 300 * level) * model.usd_per_mtok * 1e-6) for level in COST_LEVELS)


def observe(
    task: Task,
    turn: int,
    turns: int,
    remaining_usd: float,
    budget_usd: float,
    last: str | None,
    grown_tokens: int = 0,
) -> Observation:
    candidates = tuple(
        CandidateView(
            name=m.name,
            input_usd_per_mtok=m.usd_per_mtok,
            cached_input_usd_per_mtok=m.usd_per_mtok / 10,
            output_usd_per_mtok=m.usd_per_mtok,
            quality_prior=m.quality_prior,
            context_limit_tokens=100_000,
            input_tokens=200 + grown_tokens * turn,
            warm_tokens=0,
            output_tokens_mean=250.0,
            cost_quantiles_usd=cost_quantiles_usd(m),
            cost_max_usd=cost_quantiles_usd(m)[-1],
            served_last=m.name == last,
            failure_rate=0.0,
            latency_s=0.5,
            feasible=cost_quantiles_usd(m)[-1] <= remaining_usd,
        )
        for m in MODELS
    )
    session = SessionView(
        turn=turn,
        expected_turns=turns,
        budget_usd=budget_usd,
        remaining_usd=remaining_usd,
        tenant_remaining_usd=1.0,
        spent_usd=budget_usd - remaining_usd,
        tokens_so_far=450 * turn,
        failures=0,
        regenerations=0,
        tool_errors=0,
        last_quality=None,
        mean_quality=None,
        last_model=last,
        seconds_since_last=None if turn == 0 else 5.0,
        tool_loop=False,
    )
    return Observation(embed(task.text), stats(task.text), session, candidates, 0.0)


def write_log(
    connection: sa.Connection,
    policy: Policy,
    sessions: int,
    seed: int,
    *,
    graded: float = 1.0,
    tenant_of: Callable[[int], str] = lambda i: "ten_a",
    budget_usd: float = 0.008,
    grown_tokens: int = 0,
    second: float = 0.0,
) -> list[float]:
    """Play sessions of 4 to 6 turns; returns each session's true mean expected quality. Creates no tables.

    `second`: the share of turns with a second answer, which the judge grades as it then grades every first one.
    """
    generator, of_seconds = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    worth = []
    for i in range(sessions):
        turns = int(generator.integers(4, 7))
        remaining, last, previous = budget_usd, None, None
        scores = []
        for turn in range(turns):
            task = draw_task(generator)
            seen = observe(task, turn, turns, remaining, budget_usd, last, grown_tokens)
            if not seen.mask.any():
                scores.append(0.0)
                continue
            uniform = float(generator.random())
            decision = policy.decide(seen, uniform)
            model = MODELS[decision.action]
            chance = model.hard if task.hard else model.easy
            cost = round((300 + 300 * generator.random()) * model.usd_per_mtok * 1e3)
            score = float(generator.random() < chance)
            scores.append(chance)
            others = np.flatnonzero(np.arange(len(MODELS)) != decision.action)
            row = pending_row(
                seen,
                decision,
                second_chances=[] if not second else ((1.0 - decision.probabilities) * second / len(others)).tolist(),
                uniform=uniform,
                requested_model="auto",
                endpoint="chat",
                request_text=None,
                shadow=None,
                now_ms=START_MS + 60_000 * i + 1_000 * turn,
            )
            decision_id = f"dec_{seed}_{i:06d}_{turn}"
            row |= {
                "decision_id": decision_id,
                "tenant_id": tenant_of(i),
                "session_id": f"s{seed}-{i:06d}",
                "turn": turn,
                "previous_decision_id": previous,
                "session_budget_nanousd": round(budget_usd * NANOUSD_PER_USD),
                "remaining_before_nanousd": round(remaining * NANOUSD_PER_USD),
                "reserved_nanousd": cost,
                "status": "completed",
                "cost_nanousd": cost,
                "usage_source": "reported",
                # 300 to 600 tokens for a hard task, a quarter of that for an easy one.
                "output_tokens": round(cost / (model.usd_per_mtok * 1e3) * (1.0 if task.hard else 0.25)),
            }
            connection.execute(sa.insert(tables.decisions).values(row))
            if generator.random() < graded:
                _grade(connection, row, score, "judge" if second else "checker")
            if of_seconds.random() < second:
                other = MODELS[k := int(of_seconds.choice(others))]
                again = row | {
                    "decision_id": f"{decision_id}_again", "tenant_id": SECOND_TENANT, "origin": "second",
                    "session_id": f"second:{decision_id}", "turn": 0, "previous_decision_id": None, "reason": "second",
                    "model": other.name, "action": k, "propensity": second / len(others),
                }  # fmt: skip
                connection.execute(sa.insert(tables.decisions).values(again))
                right = of_seconds.random() < (other.hard if task.hard else other.easy)
                _grade(connection, again, float(right), "judge")
            remaining -= cost / NANOUSD_PER_USD
            last, previous = model.name, decision_id
        worth.append(float(np.mean(scores)))
    return worth


def _grade(connection: sa.Connection, row: Mapping[str, Any], score: float, source: str) -> None:
    connection.execute(
        sa.insert(tables.feedback).values(
            feedback_id=f"fb_{row['decision_id']}",
            tenant_id=row["tenant_id"],
            session_id=row["session_id"],
            decision_id=row["decision_id"],
            source=source,
            name="score",
            score=score,
            created_at_ms=row["created_at_ms"] + 500,
        )
    )
