"""Thirty days of the learning loop: sessions by day, trials between them, a night of training after each.

Every day sessions are played by the router under the policies of the table, the canary is judged every few dozen of
them, and at night the nightly job runs. On ten nights a bad policy asks to serve; for a week one tenant's feedback
praises the small model falsely. The truth of the world is in `month_world`, the promises are in `soak_loop`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from gateway.config.settings import PolicySettings
from gateway.database import tables
from gateway.database.database import transaction
from gateway.policies.registry import champion_of, wanted_policies
from gateway.policies.trials import act, look
from gateway.routing.guard import RequestedModel
from gateway.routing.router import Router
from migrations.upgrade import upgrade
from policy.checkpoint import load, save
from policy.exploration import Exploration
from policy.learned import policy_from
from policy.manifest import Recipe
from policy.mdp import Policy
from policy.reload import PRETRAINED, HotSwap, builtin_policies
from tests.harness.learning_loop_world import DAY_MS, LAMBDA_PER_USD, START_MS, Outcome, duel, plan, play, quality_of
from train.config import FitConfig, GateConfig, LogConfig, OpeConfig, PlanConfig, TrainConfig
from train.nightly.nightly import Nightly, run

POISONED = "ten_0"
POISON_DAYS = range(10, 17)
POISON_SHARE = 0.3
POISONED_LOG = "poisoned.db"
"""The log at the end of the last poisoned day."""
PLANTED = tuple(range(0, 30, 3))
LOOK_EVERY = 40
"""Sessions between two looks at the canary."""


@dataclass(frozen=True)
class Size:
    """How much of a month: a test's few days, or thirty of any size."""

    days: int
    sessions: int
    """Played a day."""
    duels: int
    """Sessions on which two policies are compared, off the log."""


NIGHT = TrainConfig(
    log=LogConfig(since_days=8.0, max_sessions=1_500),
    fit=FitConfig(warm_steps=200, steps=0, samples=256, residual_steps=50),
    plan=PlanConfig(samples=64, turns=6, contexts_tokens=(0.0, 2000.0)),
    ope=OpeConfig(bootstrap=400, tuning_sessions=20, max_sessions=300, fqe_sessions=60),
    gate=GateConfig(min_sessions=60, max_starved_increase=0.05),
)
"""A night's settings, small enough for thirty nights in minutes."""


@dataclass
class Month:
    """Where a month happens, and what was seen of it."""

    seed: int
    size: Size
    folder: Path
    settings: PolicySettings
    verdicts: list[str] = field(default_factory=list)
    promotions: list[tuple[int, str, float, float]] = field(default_factory=list)
    """(day, policy, lower and upper bound of its gain over the one before it, by the truth)."""
    canary_share: list[tuple[int, int]] = field(default_factory=list)
    """(sessions the canary decided, sessions) of every day with a canary."""
    clean: dict[str, float] = field(default_factory=dict)
    """The true score of every feedback that was falsified."""
    say: Callable[[str], None] = lambda line: None
    """Hears of every verdict as it falls."""

    def note(self, line: str) -> None:
        self.verdicts.append(line)
        self.say(line)

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/log.db"

    def policy(self, policy_id: str | None) -> Policy:
        """Without exploration: what it wants."""
        builtin = builtin_policies()
        if policy_id is None or policy_id in builtin:
            return builtin[policy_id or PRETRAINED]
        return policy_from(load(self.folder / "policies" / policy_id), Exploration())


def month(seed: int, size: Size, folder: Path, say: Callable[[str], None] = lambda line: None) -> Month:
    """Play it all. The database and the policies stay in the folder."""
    settings = PolicySettings(
        directory=folder / "policies", canary_fraction=0.25, canary_hours=6.0, exploration_floor=0.25,
        default_lambda=LAMBDA_PER_USD, decision_deadline_ms=10_000.0,
    )  # fmt: skip
    made = Month(seed, size, folder, settings, say=say)
    upgrade(made.url)
    slot = HotSwap(settings.directory, Exploration(floor=settings.exploration_floor))
    router = Router(lambda: settings, slot.rule, lambda: slot.lineup, monotonic=lambda: 0.0, on_fault=lambda: None)
    for day in range(size.days):
        a_day(made, day, slot, router)
        if day in PLANTED:
            plant(made, day)
        if day == POISON_DAYS[-1]:
            shutil.copyfile(folder / "log.db", folder / POISONED_LOG)
        a_night(made, day)
    return made


def a_day(made: Month, day: int, slot: HotSwap, router: Router) -> None:
    """The day's sessions, with a look at the canary every few of them."""
    decided_by_canary = 0
    for start in range(0, made.size.sessions, LOOK_EVERY):
        with transaction(made.url, read_only=True) as connection:
            slot.refresh(wanted_policies(connection))
        numbers = range(start, min(start + LOOK_EVERY, made.size.sessions))
        outcomes = [
            play(made.seed, plan(made.seed, day, n),
                 lambda o, u, key: router.decide(o, u, RequestedModel(None, None), key), logged=True)
            for n in numbers
        ]  # fmt: skip
        write(made, day, outcomes)
        canary = slot.lineup.canary
        if canary is not None:
            decided_by_canary += sum(canary.policy.policy_id in outcome.policies for outcome in outcomes)
        at_ms = START_MS + day * DAY_MS + round(DAY_MS * (start + LOOK_EVERY) / made.size.sessions)
        end_trials(made, day, at_ms)
    if decided_by_canary:
        made.canary_share.append((decided_by_canary, made.size.sessions))


def end_trials(made: Month, day: int, at_ms: int) -> None:
    with transaction(made.url) as connection:
        before = champion_of(connection)
        for record, verdict in look(connection, made.settings, at_ms):
            done = act(connection, record, verdict, made.settings, at_ms)
            made.note(f"day {day}: {record.policy_id}: {done}")
            if done == "promote":
                new, old = made.policy(record.policy_id), made.policy(before.policy_id if before else None)
                low, high = duel(made.seed, made.size.duels, day, new, old, quality_of)
                made.promotions.append((day, record.policy_id, low, high))


def write(made: Month, day: int, outcomes: Sequence[Outcome]) -> None:
    """The log, with the poisoned tenant's scores as it sends them."""
    generator = np.random.default_rng([made.seed, day, 10**6, len(outcomes[0].rows)])
    rows = [row for outcome in outcomes for row in outcome.rows]
    scores = [score for outcome in outcomes for score in outcome.scores]
    for row, score in zip(rows, scores, strict=True):
        false = day in POISON_DAYS and score["tenant_id"] == POISONED and row["model"] == "small"
        if false and generator.random() < POISON_SHARE:
            made.clean[score["feedback_id"]] = score["score"]
            score["score"] = 1.0
    with transaction(made.url) as connection:
        connection.execute(sa.insert(tables.decisions), rows)
        connection.execute(sa.insert(tables.feedback), scores)


def plant(made: Month, day: int) -> None:
    """A policy that spends nothing, or everything at once, asks to serve."""
    rule = "cheapest" if day % 2 else "strongest"
    recipe = Recipe(f"planted-{day:02d}", rule=rule)
    path = made.settings.directory / recipe.policy_id
    sha256 = save(path, recipe, {})
    at_ms = START_MS + (day + 1) * DAY_MS - 1
    with transaction(made.url) as connection:
        connection.execute(
            sa.insert(tables.policies).values(
                policy_id=recipe.policy_id, kind=rule, stage="candidate", path=str(path), manifest_sha256=sha256,
                created_at_ms=at_ms, staged_at_ms=at_ms,
            )
        )  # fmt: skip


def a_night(made: Month, day: int) -> None:
    now_ms = START_MS + (day + 1) * DAY_MS
    report = run(Nightly(made.url, made.settings, made.folder / "runs", f"day-{day:02d}", lambda: now_ms), NIGHT)
    stage = (report.get("published") or {}).get("stage", "")
    made.note(f"night {day}: {report['outcome']} {report.get('candidate') or ''} {stage}".rstrip())
