"""Sweeps: fronts of cost against quality, and curves of quality against starvation.

A rule with a price of money is swept over lambda under a loose budget, one that paces its spending over the budget
itself: either way over the policy's own dial, from cheap to good. The planner has both, like its client. The starvation
curves sweep the shield's reserve under one tight budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy.mdp import Policy
from policy.rules import Pacing, TunedLambda
from train.replay import baselines
from train.replay import baselines_learned as cited
from train.replay.baselines import LAMBDA_STEPS
from train.replay.catalogue import CatalogueSetup, Environment, Sets
from train.replay.compose import Sessions
from train.replay.grid import RANDOM, budgets_usd
from train.replay.ours import Learned
from train.replay.served import as_rule
from train.replay.simulator import NO_CONTEXT, Rule, SessionBatch, make_board

FRONT_PHIS = (0.03, 0.08, 0.2, 0.4, 0.7, 1.0)
LOOSE_PHI = 1.5
TIGHT_PHI = 0.35
RESERVES = (0.0, 0.25, 0.5, 1.0, 2.0)
FRONT, STARVATION = "cost-quality", "quality-starvation"


@dataclass(frozen=True)
class Sweep:
    """Test sessions of one study for sweeps; `described` are the columns that all points share."""

    study: CatalogueSetup
    sets: Sets
    board: SessionBatch
    described: dict[str, Any]

    def stage(self, phi: float) -> Environment:
        """The sessions under the budget of `phi`."""
        budget = budgets_usd(self.board, self.study.average_cost_usd, self.study.named, phi)
        return Environment(self.board, budget, "cut", self.sets.horizon, self.study.seed + 3)

    def point(
        self, figure: str, policy: str, dial: str, value: float, stage: Environment, rule: Rule
    ) -> dict[str, Any]:
        """One played point with its interval."""
        played = stage.play(rule)
        valid = played.valid
        task = self.study.graded.task[self.board.sessions.rows[valid]]
        means = self.study.resampled.means(task, played.quality[valid][:, None])[:, 0]
        low, high = np.quantile(means, (0.025, 0.975))
        return {
            **self.described,
            "figure": figure,
            "policy": policy,
            "dial": dial,
            "value": float(f"{value:.6g}"),
            "quality": round(float(played.quality[valid].mean()), 6),
            "quality_lo": round(float(low), 6),
            "quality_hi": round(float(high), 6),
            "cost_usd": float(f"{played.cost_usd.sum(axis=1).mean():.6g}"),
            "starved_rate": round(float(played.starved.mean()), 6),
            "bankrupt_rate": round(float(played.bankrupt.mean()), 6),
        }


def make_sweep(study: CatalogueSetup, sets: Sets, sessions: int, turns: int | None) -> Sweep:
    """Compose the test sessions of a sweep."""
    drawn = sets.test.sessions
    few = Sessions(drawn.rows[:sessions], drawn.declared[:sessions], drawn.ordering[:sessions])
    described = {
        "source": study.graded.source,
        "inputs": study.inputs,
        "models": ",".join(study.graded.models),
        "turns": turns or RANDOM,
        "mode": "cut",
    }
    return Sweep(study, sets, make_board(study.graded, study.predictions, few), described)


def fronts(sweep: Sweep, learned: Learned, planner: Policy) -> Iterator[dict[str, Any]]:
    """Sweep every policy over its own dial: cost against quality."""
    study, loose = sweep.study, sweep.stage(LOOSE_PHI)
    for k, name in enumerate(study.graded.models):
        yield sweep.point(FRONT, "fixed", f"model {name}", float(k), loose, baselines.fixed(k))
    published = cited.prepare_published(learned.published, study.seen)
    unit = 1.0 / study.bank.mean_usd[study.named.strong]
    for step in LAMBDA_STEPS[::2]:
        rule = baselines.played(TunedLambda(step * unit))
        yield sweep.point(FRONT, "tuned-lambda", "lambda", step * unit, loose, rule)
        yield sweep.point(FRONT, "published", "lambda", step * unit, loose, published.rule(step * unit))
    for least in baselines.THRESHOLDS[::2]:
        rule = baselines.threshold(study.named, least, 0.0)
        yield sweep.point(FRONT, "threshold", "threshold", least, loose, rule)
    for step in LAMBDA_STEPS[::2]:
        rule = as_rule(planner, study.seen, step * unit)
        yield sweep.point(FRONT, "ours-ungated", "lambda", step * unit, loose, rule)
    for phi in FRONT_PHIS:
        stage = sweep.stage(phi)
        for name, rule in _budget_driven(study, planner):
            yield sweep.point(FRONT, name, "phi", phi, stage, rule)


def starvation(sweep: Sweep, learned: Learned) -> Iterator[dict[str, Any]]:
    """Sweep reserve and penalty under a tight budget in mode `cut`: quality against starvation."""
    study, tight = sweep.study, sweep.stage(TIGHT_PHI)
    for reserve in RESERVES:
        rules = [
            ("re-solving", baselines.played(baselines.Resolving(study.bank, 1.0, reserve))),
            ("pacing", baselines.played(Pacing(reserve=reserve))),
        ]
        for name, rule in rules:
            yield sweep.point(STARVATION, name, "reserve", reserve, tight, rule)
    for setting, policy in learned.planners[NO_CONTEXT].curve:
        dial = "starved_penalty" if setting.caution == 1.0 else f"starved_penalty at caution {setting.caution:g}"
        rule = as_rule(policy, study.seen)
        yield sweep.point(STARVATION, "ours-ungated", dial, setting.starved_penalty, tight, rule)


def _budget_driven(study: CatalogueSetup, planner: Policy) -> list[tuple[str, Rule]]:
    return [
        ("strongest", baselines.strongest(study.named.strong)),
        ("pacing", baselines.played(Pacing(reserve=1.0))),
        ("re-solving", baselines.played(baselines.Resolving(study.bank, 1.0, 1.0))),
        ("ours-ungated", as_rule(planner, study.seen)),
    ]
