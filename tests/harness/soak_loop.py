"""`make soak-loop SEED= SIZE=`: thirty days of the learning loop, with its promises checked against the known truth.

    python -m tests.harness.soak_loop --seed 1 --size 10

Every day sessions are played by the router under the policies of the table, the canary is judged every few dozen of
them, and at night the nightly job runs. On ten nights a bad policy asks to serve; for a week one tenant's feedback
praises the small model falsely. `--size 10` plays enough for 100,000 decisions; the tests play a short month.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import sqlalchemy as sa
from numpy.typing import NDArray

from gateway import tables
from gateway.db import transaction
from gateway.guard import Wish
from gateway.policies import champion_of, holder_of, wanted_policies
from gateway.router import Router
from gateway.settings import PolicySettings
from gateway.trials import act, look
from migrations.upgrade import upgrade
from policy.actor import policy_from
from policy.baselines import builtin_rules
from policy.checkpoint import Recipe, load, save
from policy.exploration import Exploration, draw
from policy.mdp import Policy
from policy.parameters import Sizes, parameter_shapes
from policy.reload import DEFAULT_RULE, PolicySlot
from tests.harness.month_world import DAY_MS, LAMBDA_PER_USD, START_MS, Outcome, greedy, plan, play
from train.config import FitConfig, GateConfig, LogConfig, OpeConfig, PlanConfig, TrainConfig
from train.nightly import Nightly, run

F64 = NDArray[np.float64]
POISONED = "ten_0"
POISON_DAYS = range(10, 17)
POISON_SHARE = 0.3
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
    log=LogConfig(since_days=8.0, max_sessions=1_600),
    fit=FitConfig(steps=200, batch_size=64, hidden=32, joint=32, members=2),
    plan=PlanConfig(samples=64, turns=6, contexts_tokens=(0.0, 2000.0)),
    ope=OpeConfig(bootstrap=400, tuning_sessions=20, max_sessions=220),
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

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/log.db"

    def policy(self, policy_id: str | None) -> Policy:
        """Without exploration: what it wants."""
        rules = builtin_rules()
        if policy_id is None or policy_id in rules:
            return rules[policy_id or DEFAULT_RULE]
        return policy_from(load(self.folder / "policies" / policy_id), Exploration())


def month(seed: int, size: Size, folder: Path) -> Month:
    """Play it all. The database and the policies stay in the folder."""
    settings = PolicySettings(
        directory=folder / "policies", canary_fraction=0.25, canary_hours=6.0, exploration_floor=0.25,
        default_lambda=LAMBDA_PER_USD, decision_deadline_ms=10_000.0,
    )  # fmt: skip
    made = Month(seed, size, folder, settings)
    upgrade(made.url)
    slot = PolicySlot(settings.directory, Exploration(floor=settings.exploration_floor))
    router = Router(lambda: settings, slot.rule, lambda: slot.lineup, monotonic=lambda: 0.0, on_fault=lambda: None)
    for day in range(size.days):
        a_day(made, day, slot, router)
        if day in PLANTED:
            plant(made, day)
        if day == POISON_DAYS[-1]:
            shutil.copyfile(folder / "log.db", folder / "poisoned.db")
        a_night(made, day)
    return made


def a_day(made: Month, day: int, slot: PolicySlot, router: Router) -> None:
    """The day's sessions, with a look at the canary every few of them."""
    decided_by_canary = 0
    for start in range(0, made.size.sessions, LOOK_EVERY):
        with transaction(made.url, read_only=True) as connection:
            slot.refresh(wanted_policies(connection))
        numbers = range(start, min(start + LOOK_EVERY, made.size.sessions))
        outcomes = [
            play(made.seed, plan(made.seed, day, n), lambda o, u, key: router.decide(o, u, Wish(None, None), key),
                 logged=True)
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
            made.verdicts.append(f"day {day}: {record.policy_id}: {done}")
            if done == "promote":
                new, old = made.policy(record.policy_id), made.policy(before.policy_id if before else None)
                low, high = duel(made, day, new, old, quality_of)
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
    recipe = Recipe(f"planted-{day:02d}", rule=rule, sizes=Sizes(hidden=4, joint=4, members=1))
    params: dict[str, dict[str, Any]] = {}
    for name, shape in parameter_shapes(recipe.sizes).items():
        layer, leaf = name.split("/")
        params.setdefault(layer, {})[leaf] = np.zeros(shape, np.float32)
    path = made.settings.directory / recipe.policy_id
    sha256 = save(path, recipe, params)
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
    made.verdicts.append(f"night {day}: {report['outcome']} {report.get('candidate') or ''} {stage}".rstrip())


# -- the promises --------------------------------------------------------------------------------------------------


def quality_of(outcome: Outcome) -> tuple[float, float]:
    return sum(outcome.quality), float(len(outcome.quality))


def quality_per_dollar(outcome: Outcome) -> tuple[float, float]:
    return sum(outcome.quality), outcome.cost_usd


def duel(made: Month, day: int, one: Policy, other: Policy, measure: Any, without: str = "") -> tuple[float, float]:
    """95 % interval of one's ratio minus the other's over the same new sessions of a day, paired bootstrap."""
    pairs = []
    for number in range(made.size.duels):
        session = plan(made.seed + 1, day, number)
        if session.tenant != without:
            pairs.append([measure(play(made.seed, session, greedy(p), logged=False)) for p in (one, other)])
    values = np.array(pairs)  # (sessions, 2, 2)
    drawn = np.random.default_rng(made.seed).integers(0, len(values), (2_000, len(values)))
    sums = values[drawn].sum(axis=1)
    difference = sums[:, 0, 0] / sums[:, 0, 1] - sums[:, 1, 0] / sums[:, 1, 1]
    low, high = np.quantile(difference, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Finding:
    name: str
    shown: str
    kept: bool


def findings(made: Month) -> list[Finding]:
    """Every promise with what was seen. The last champion is compared with the rule of night 0 on the last day."""
    last = made.size.days - 1
    with transaction(made.url, read_only=True) as connection:
        champion, canary = champion_of(connection), holder_of(connection, "canary")
    now = made.policy(champion.policy_id if champion else None)
    gain = duel(made, last, now, made.policy(None), quality_per_dollar)
    points = duel(made, last, now, made.policy(None), quality_of)
    decisions, worst = propensities(made)
    planted = staged_of_planted(made)
    worse = [item for item in made.promotions if item[3] < 0.0]
    crowded = [pair for pair in made.canary_share if pair[0] / pair[1] > share_bound(made, pair[1])]
    found = [
        Finding("champion at the end", champion.policy_id if champion else DEFAULT_RULE, champion is not None),
        Finding("canary at the end", canary.policy_id if canary else "none", True),
        Finding("quality per USD against night 0", f"{gain[0]:+.0f} to {gain[1]:+.0f} points", gain[0] > 0.0),
        Finding("quality per turn against night 0", f"{points[0]:+.3f} to {points[1]:+.3f}", points[1] > 0.0),
        Finding("promotions, and of a worse policy", f"{len(made.promotions)}, {len(worse)}", not worse),
        Finding("days with more sessions than the canary's share", str(len(crowded)), not crowded),
        Finding("bad policies planted, served", f"{len(planted)}, {sum(planted.values())}", not any(planted.values())),
        Finding("propensities recomputed, largest error", f"{decisions:,}, {worst:.1e}", worst <= 1e-6),
    ]  # fmt: skip
    if made.clean:
        low, high = poison_effect(made)
        found.append(Finding("others' quality, poisoned minus clean", f"{low:+.3f} to {high:+.3f}", high > -0.005))
    return found


def share_bound(made: Month, sessions: int) -> float:
    fraction = made.settings.canary_fraction
    return fraction + 4 * float(np.sqrt(fraction * (1 - fraction) / sessions))


def staged_of_planted(made: Month) -> dict[str, bool]:
    """By planted policy: whether it ever served anybody."""
    e = tables.policy_events.c
    with transaction(made.url, read_only=True) as connection:
        rows = connection.execute(sa.select(e.policy_id, e.action)).all()
    names = {row.policy_id for row in rows if row.policy_id.startswith("planted-")}
    return {n: any(r.policy_id == n and r.action not in ("reject", "candidate") for r in rows) for n in names}


def propensities(made: Month) -> tuple[int, float]:
    """(decisions, the largest error): each logged draw made again from the log's probabilities and uniform number."""
    d = tables.decisions.c
    count, worst = 0, 0.0
    with transaction(made.url, read_only=True) as connection:
        query = sa.select(d.candidates, d.action, d.propensity, d.uniform)
        for candidates, action, propensity, uniform in connection.execute(query.execution_options(yield_per=1_000)):
            probabilities = np.array([c["probability"] for c in orjson.loads(candidates)], np.float32)
            again = draw(probabilities, uniform)
            errors = (abs(float(probabilities[action]) - propensity), abs(float(probabilities.sum(dtype=float)) - 1.0))
            worst = max(worst, *errors, 0.0 if again == action else 1.0)
            count += 1
    return count, worst


def poison_effect(made: Month) -> tuple[float, float]:
    """What the week of false scores did to the other tenants: the same night learnt with and without them."""
    day = POISON_DAYS[-1]
    learnt = []
    for name in ("poisoned", "clean"):
        url = f"sqlite:///{made.folder}/{name}.db"
        if name == "clean":
            shutil.copyfile(made.folder / "poisoned.db", made.folder / "clean.db")
            with transaction(url) as connection:
                f = tables.feedback
                change = sa.update(f).where(f.c.feedback_id == sa.bindparam("b")).values(score=sa.bindparam("s"))
                connection.execute(change, [{"b": key, "s": value} for key, value in made.clean.items()])
        folder = made.folder / name
        settings = replace(made.settings, directory=folder)
        report = run(Nightly(url, settings, folder / "runs", name, lambda: START_MS + (day + 1) * DAY_MS), NIGHT)
        best = folder / "runs" / report["run_id"] / "candidates"
        learnt.append(policy_from(load(best / sorted(report["fit"]["candidates"])[-1]), Exploration()))
    poisoned, clean = learnt
    return duel(made, day, poisoned, clean, quality_of, without=POISONED)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="A simulated month of the learning loop.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=1, help="10: 100,000 decisions")
    chosen = parser.parse_args(arguments)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-loop-") as folder:
        made = month(chosen.seed, Size(days=30, sessions=max(90, 75 * chosen.size), duels=400), Path(folder))
        found = findings(made)
    for line in made.verdicts:
        print(line)
    print(f"\nseed {chosen.seed}, size {chosen.size}, commit {commit.stdout.strip() or 'unknown'}, "
          f"{time.monotonic() - began_s:.0f} s")  # fmt: skip
    for finding in found:
        print(f"{'kept' if finding.kept else 'BROKEN':<8}{finding.name:<52}{finding.shown}")
    return 0 if all(finding.kept for finding in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
