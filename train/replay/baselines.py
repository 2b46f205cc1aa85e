"""Baselines: grids over the rules of `policy.rules`, tuned on the training half.

All know what our own policies (`ours`) know: predicted quality, the cost distribution, the budget, and the turns left
as declared or learned. `reserve` (0: none, 1: as calibrated) puts the gateway's shield in front of a rule; it is tuned
like any other number, so a baseline starves only where starving pays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Protocol

import numpy as np

from policy import batch, budgeting
from policy.arrays import F64, I64, Bools
from policy.exploration import GREEDY, Exploration
from policy.rules import Fixed, Pacing, Random, RuleInputs, Scored, Strongest, Threshold, TunedLambda, behind_shield
from train.replay.simulator import Played, Rule, SessionBatch, Turn

Numbers = Mapping[str, float]

TOLERANCE = 0.01
"""Quality by which a model may be below the best and still count as one of the strongest."""
MOST_STARVED = 0.01
"""Share of the training sessions that the safest setting of a family may starve."""
RESERVES = (0.0, 1.0)
LAMBDA_STEPS = np.concatenate([[0.0], np.geomspace(0.02, 200.0, 25)])
"""Prices of money to try, in quality per mean cost of the strongest model."""
PACING_FACTORS = (0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 2.6, 3.5, 5.0, 8.0)
SLACKS = (0.6, 0.75, 0.85, 0.95, 1.05, 1.2, 1.4, 1.7)
THRESHOLDS = (-0.1, -0.05, 0.0, 0.02, 0.04, 0.07, 0.1, 0.14, 0.18, 0.23, 0.28, 0.34, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class Ends:
    """The two ends of a catalogue: the cheapest model and the most expensive of the best."""

    weak: int
    strong: int


@dataclass(frozen=True)
class Family:
    """A rule with parameters to tune: one rule per combination of `grid`, if any."""

    name: str
    make: Callable[[Numbers], Rule]
    grid: Mapping[str, Sequence[float]]

    def settings(self) -> list[dict[str, float]]:
        """Every combination of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


@dataclass(frozen=True)
class TunedRule:
    """A family at its best parameters on the training half, with its result there."""

    name: str
    rule: Rule
    numbers: Numbers
    training_quality: float
    starved_rate: float = 0.0
    """Share of the training sessions that it starves."""


def ends(average: F64, average_cost_usd: F64) -> Ends:
    """Find the cheapest model and the most expensive within TOLERANCE of the best quality.

    Of equally cheap models the better one.
    """
    weak = int(np.lexsort((-average, np.round(np.log(average_cost_usd), 2)))[0])
    best = np.flatnonzero(average >= average.max() - TOLERANCE)
    return Ends(weak, int(best[np.argmax(average_cost_usd[best])]))


def families(board: SessionBatch, bank: Bank, named: Ends) -> list[Family]:
    """All families for one board. `bank` is the training half's expected cost of a turn."""
    unit = 1.0 / bank.mean_usd[named.strong]
    lambdas = tuple(float(step) * unit for step in LAMBDA_STEPS)
    models = tuple(float(k) for k in range(board.shape[2]))
    return [
        Family("weakest", lambda _: fixed(named.weak), {}),
        Family("strongest", lambda _: strongest(named.strong), {}),
        Family("best-fixed", lambda x: fixed(int(x["model"])), {"model": models}),
        Family("random", lambda _: played(Random()), {}),
        Family("threshold", lambda x: threshold(named, x["threshold"], x["reserve"]),
               {"threshold": THRESHOLDS, "reserve": RESERVES}),
        Family("tuned-lambda", lambda x: played(TunedLambda(x["lambda_per_usd"], reserve=x["reserve"])),
               {"lambda_per_usd": lambdas, "reserve": RESERVES}),
        Family("pacing", lambda x: played(Pacing(x["factor"], reserve=x["reserve"])),
               {"factor": PACING_FACTORS, "reserve": RESERVES}),
        Family("re-solving", lambda x: played(Resolving(bank, x["slack"], x["reserve"])),
               {"slack": SLACKS, "reserve": RESERVES}),
    ]  # fmt: skip


def tune(
    family: Family, play: Callable[[Rule], Played], counted: Sequence[Bools] = ()
) -> tuple[TunedRule, TunedRule, list[TunedRule]]:
    """Choose the best mean quality per turn on the training half, then the least starving.

    The second is the `safest`. The first is by all turns, the third again by each set of turns `counted` (S, T), for
    users that must not have seen the others.
    """
    settings = family.settings()
    tried = [play(family.make(numbers)) for numbers in settings]

    def results(counts: Bools | None) -> list[TunedRule]:
        return [
            TunedRule(
                family.name,
                family.make(numbers),
                numbers,
                round(quality_per_turn(played, counts), 9),
                float(played.starved.mean()),
            )
            for numbers, played in zip(settings, tried, strict=True)
        ]

    def best(found: Sequence[TunedRule]) -> TunedRule:
        return max(found, key=lambda rule: (rule.training_quality, -rule.starved_rate))

    whole = results(None)
    return best(whole), safest(whole), [best(results(counts)) for counts in counted]


def safest(found: Sequence[TunedRule]) -> TunedRule:
    """The best of those that starve at most MOST_STARVED, or the least starving."""
    return max(found, key=lambda rule: (-max(rule.starved_rate, MOST_STARVED), rule.training_quality))


def quality_per_turn(played: Played, counted: Bools | None = None) -> float:
    """Mean over all turns, or those `counted` (S, T); an unanswered one counts 0."""
    chosen = played.valid if counted is None else played.valid & counted
    return float(played.quality[chosen].mean()) if chosen.any() else 0.0


# The rules.


class Scoring(Protocol):
    """A rule that scores many turns at once: those of policy.rules, and `Resolving`."""

    @property
    def exploration(self) -> Exploration:
        """Probabilities of the draw."""

    def score(self, seen: RuleInputs) -> Scored:
        """Score the candidates of every turn."""


def choose(rule: Scoring, turn: Turn) -> I64:
    """Draw by a rule's scores, with the baselines' predictions of quality."""
    scores, mask = rule.score(
        RuleInputs(
            models=np.array(turn.board.models),
            quality=turn.quality,
            average=turn.board.average,
            mean_usd=turn.mean_usd,
            quantiles_usd=turn.cost_quantiles_usd,
            mask=turn.mask,
            remaining_usd=turn.remaining_usd,
            turns_left=turn.turns_left,
            lambda_per_usd=np.zeros(len(turn.at)),
        )
    )
    return batch.draw_rows(batch.action_probabilities(scores, mask, rule.exploration), turn.uniform)


def played(rule: Scoring) -> Rule:
    """A rule of the gateway as one of the simulator."""
    return partial(choose, rule)


def fixed(model: int) -> Rule:
    """One model; the cheapest offered one when it is not offered."""
    return lambda turn: choose(Fixed(turn.board.models[model]), turn)


def strongest(model: int) -> Rule:
    """The strongest model while affordable, then the best on average of those offered."""
    return lambda turn: choose(Strongest(model=turn.board.models[model]), turn)


def threshold(named: Ends, least_gain: float, reserve: float) -> Rule:
    """RouteLLM (arXiv 2406.18665): strong if expected to win by `least_gain`, else weak."""

    def rule(turn: Turn) -> I64:
        pair = (turn.board.models[named.weak], turn.board.models[named.strong])
        return choose(Threshold(least_gain, pair=pair, reserve=reserve), turn)

    return rule


@dataclass(frozen=True)
class Resolving:
    """Re-solving (Jasin & Kumar 2012): argmax quality - lambda cost, with lambda recomputed.

    Lambda is that at which a turn of the training half is expected to spend `slack` times the even share of the
    remaining money. The gateway's own rule plans with the turn at hand instead (`policy.rules.ReSolving`).
    """

    bank: Bank
    slack: float
    reserve: float
    exploration: Exploration = GREEDY

    def score(self, seen: RuleInputs) -> Scored:
        """Score by worth at the bank's price, behind the shield."""
        price = self.bank.price(self.slack * seen.remaining_usd / np.maximum(seen.turns_left, 1.0))
        scores = budgeting.lagrangian_scores(seen.quality, seen.mean_usd, price)
        return Scored(scores, behind_shield(seen, self.reserve))


@dataclass(frozen=True)
class Bank:
    """Expected cost of a turn at each price of money, by predictions; falls with the price."""

    prices: F64  # (L,)
    spend_usd: F64  # (L,)
    mean_usd: F64  # (K,)

    def price(self, spend_usd: F64) -> F64:
        """Interpolated price of money at which a turn is expected to spend so much, (N,), from 0."""
        return np.interp(spend_usd, self.spend_usd[::-1], self.prices[::-1])


def make_bank(quality: F64, cost_usd: F64, strong: int) -> Bank:
    """From predicted quality and expected cost of training prompts, both (N, K)."""
    mean_usd = cost_usd.mean(axis=0)
    prices = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 120)]) / mean_usd[strong]
    spend = np.empty(len(prices))
    for i, price in enumerate(prices):
        choice = np.argmax(quality - price * cost_usd, axis=1)
        spend[i] = np.take_along_axis(cost_usd, choice[:, None], axis=1).mean()
    return Bank(prices, np.minimum.accumulate(spend), mean_usd)
