"""`make soak-loop SEED= SIZE=`: thirty days of the learning loop, with its promises checked against the known truth.

    python -m tests.harness.soak_loop --seed 1 --size 1

Size 1 is 750 sessions a day, 100,000 decisions in all. The tests play one short day.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import orjson
import sqlalchemy as sa

from gateway.database import tables
from gateway.database.database import transaction
from gateway.policies.registry import champion_of, holder_of
from policy.checkpoint import load
from policy.exploration import Exploration, draw
from policy.learned import policy_from
from policy.reload import PRETRAINED
from tests.harness.gate_trials import promoted_of
from tests.harness.learning_loop import NIGHT, POISON_DAYS, POISONED, POISONED_LOG, Month, Size, month
from tests.harness.learning_loop_world import DAY_MS, START_MS, duel, quality_of, quality_per_dollar
from train.nightly.nightly import Nightly, run

SESSIONS_A_DAY = 750
NIGHTS_OF_A_WORSE = 200


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
    gain = duel(made.seed, made.size.duels, last, now, made.policy(None), quality_per_dollar)
    points = duel(made.seed, made.size.duels, last, now, made.policy(None), quality_of)
    decisions, worst = propensities(made)
    planted = staged_of_planted(made)
    worse = [item for item in made.promotions if item[3] < 0.0]
    crowded = [pair for pair in made.canary_share if pair[0] / pair[1] > share_bound(made, pair[1])]
    found = [
        Finding("champion at the end", champion.policy_id if champion else PRETRAINED, champion is not None),
        Finding("canary at the end", canary.policy_id if canary else "none", True),
        Finding("quality per USD against night 0", f"{gain[0]:+.0f} to {gain[1]:+.0f} points", gain[0] > 0.0),
        Finding("quality per turn against night 0", f"{points[0]:+.3f} to {points[1]:+.3f}", points[1] > 0.0),
        Finding("promotions, and of a worse policy", f"{len(made.promotions)}, {len(worse)}", not worse),
        Finding("days with more sessions than the canary's share", str(len(crowded)), not crowded),
        Finding("bad policies planted, served", f"{len(planted)}, {sum(planted.values())}", not any(planted.values())),
        Finding("propensities recomputed, largest error", f"{decisions:,}, {worst:.1e}", worst <= 1e-6),
    ]  # fmt: skip
    if (made.folder / POISONED_LOG).exists():
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
            shutil.copyfile(made.folder / POISONED_LOG, made.folder / "clean.db")
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
    return duel(made.seed, made.size.duels, day, poisoned, clean, quality_of, without=POISONED)


def worse_policies() -> Finding:
    """How often the gate falls for a policy that is worse by .05 a turn, over logs of 300 sessions."""
    promoted = promoted_of(NIGHTS_OF_A_WORSE, sessions=300, floor=0.05, gain=-0.05)
    name = "policies worse by .05 a turn, promoted"
    return Finding(name, f"{NIGHTS_OF_A_WORSE}, {promoted}", promoted <= 0.05 * NIGHTS_OF_A_WORSE)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="A simulated month of the learning loop.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=1, help="in 100,000 decisions a month")
    parser.add_argument("--days", type=int, default=30, help="the false scores begin on day 10 and end on day 16")
    chosen = parser.parse_args(arguments)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    began_s = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="soak-loop-") as folder:
        size = Size(days=chosen.days, sessions=SESSIONS_A_DAY * chosen.size, duels=400)
        made = month(chosen.seed, size, Path(folder), say)
        found = [*findings(made), worse_policies()]
    print(f"\nseed {chosen.seed}, size {chosen.size}, {chosen.days} days, commit {commit.stdout.strip() or 'unknown'}, "
          f"{time.monotonic() - began_s:.0f} s ({time.process_time():.0f} s of processor time)")  # fmt: skip
    for finding in found:
        print(f"{'kept' if finding.kept else 'BROKEN':<8}{finding.name:<52}{finding.shown}")
    return 0 if all(finding.kept for finding in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
