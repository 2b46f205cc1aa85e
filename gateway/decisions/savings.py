"""Savings of routing, estimated from logged turns, with intervals over sessions.

Rivals: every model used alone, and the rule `quality - lambda * cost` with the lambda that, in hindsight, reaches the
quality of the turns as they were answered. A rival's cost is its predicted cost, scaled by the ratio of bills to
predictions for what answered; a turn that it could not have served keeps its bill. The rule's points are doubly robust:
predictions, corrected by bills and scores where the log made the same choice, with the probability of that choice. They
take each turn as it was: what another lambda would have changed later in the session is not in them.

Sessions are put into groups by a hash, and only the groups' sums are kept: an interval is the delete-one-group
jackknife, so any number of turns takes the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gateway.decisions.log import action_name
from gateway.money import NANOUSD_PER_USD
from gateway.routing.guard import BUSY
from policy.mdp import NOT_AFFORDABLE

GROUPS = 64
MIN_GROUPS = 10
"""Groups with turns, below which there is no interval."""
LAMBDAS = np.concatenate([[0.0], np.logspace(-2.0, 6.0, 49)])
"""The swept lambdas, in quality (0..1) per USD."""
MAX_WEIGHT = 20.0
"""Limit of the importance weights, so that a rare choice does not decide an estimate."""
NORMAL_95 = 1.96
_WITH_MONEY_AND_ROOM = (NOT_AFFORDABLE, BUSY)

Floats = NDArray[np.float64]
Groups = NDArray[np.bool_]
"""The groups that a statistic is taken over."""


def could_serve(candidate: Mapping[str, Any]) -> bool:
    """True if the model could have answered the turn with enough money and room."""
    return bool(candidate.get("feasible", True)) or candidate.get("why_not") in _WITH_MONEY_AND_ROOM


@dataclass(frozen=True, slots=True)
class RoutedTurn:
    """A client's turn as logged. `score` None: the answer was not graded."""

    tenant_id: str
    session_id: str
    model: str
    billed_nanousd: int
    propensity: float
    candidates: Sequence[Mapping[str, Any]]
    score: float | None
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Jackknife:
    """A value with its 95 % interval; no interval from too few sessions."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Rival:
    """Another way to have answered the same turns.

    Money is in nano-USD; `saved` is negative when the rival costs less.
    """

    name: str
    estimated_nanousd: int
    saved: Jackknife
    saved_share: Jackknife
    quality: float | None
    turns_not_comparable: int


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A lambda with estimates of a turn's cost in USD and quality."""

    lambda_per_usd: float
    cost_usd: Jackknife
    quality: Jackknife


@dataclass(frozen=True, slots=True)
class Savings:
    """Cost of the logged turns, and of their rivals."""

    turns: int
    billed_nanousd: int
    quality: float | None
    """Mean predicted quality of the answers."""
    models: tuple[Rival, ...]
    """Every model alone, the most expensive first."""
    strongest: str | None
    best_fixed: str | None
    """The model of the highest quality among those that cost no more than routing did; else the cheapest."""
    cheapest: str | None
    tuned: Rival | None
    tuned_lambda_per_usd: float | None
    front: tuple[FrontPoint, ...]
    today: FrontPoint | None
    """The turns as they were answered; its lambda is 0 and means nothing."""


class SavingsTally:
    """Sums over turns, from which `result` estimates the savings."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._models = np.zeros((GROUPS, 0, 5))  # predicted, billed where comparable, turns, quality, graded turns
        self._turns = np.zeros((GROUPS, 6))  # turns, billed, predicted, with a prediction: billed, quality, turns
        self._rule = np.zeros((GROUPS, len(LAMBDAS), 4))  # predicted, quality, both corrected
        self._ruled = np.zeros((GROUPS, 4))  # turns of the rule, billed, predicted of what answered, its quality

    def add(self, turns: Sequence[RoutedTurn]) -> None:
        """Add a chunk of turns; larger chunks are faster."""
        if not turns:
            return
        groups = np.array([_group(turn) for turn in turns])
        wide = max((len(turn.candidates) for turn in turns), default=0) or 1
        cost, quality = np.full((len(turns), wide), np.nan), np.full((len(turns), wide), np.nan)
        chosen = np.full(len(turns), -1)
        billed = np.array([float(turn.billed_nanousd) for turn in turns])
        for row, turn in enumerate(turns):
            for place, candidate in enumerate(turn.candidates):
                serves = could_serve(candidate)
                if candidate["model"] == turn.model:
                    chosen[row], serves = place, True
                if not serves:
                    continue
                cost[row, place] = candidate["cost_nano_usd"]
                if candidate.get("quality") is not None:
                    quality[row, place] = candidate["quality"]
                self._add_model(action_name(candidate), groups[row], cost[row, place], billed[row], quality[row, place])
        at, rows = np.maximum(chosen, 0), np.arange(len(turns))
        own_cost = np.where(chosen >= 0, cost[rows, at], np.nan)
        own_quality = np.where(chosen >= 0, quality[rows, at], np.nan)
        known, judged = ~np.isnan(own_cost), ~np.isnan(own_quality)
        columns = np.stack(
            [np.ones(len(turns)), billed, np.nan_to_num(own_cost), np.where(known, billed, 0.0),
             np.nan_to_num(own_quality), judged.astype(float)], axis=1,
        )  # fmt: skip
        np.add.at(self._turns, groups, columns)
        self._add_rule(turns, groups, cost, quality, chosen, billed, own_cost, own_quality)

    def result(self) -> Savings:
        """The estimates over all turns added."""
        turns = self._turns.sum(0)
        names = list(self._names)
        models = sorted(
            (self._rival(name, place) for name, place in self._names.items()),
            key=lambda rival: -rival.estimated_nanousd,
        )
        if turns[2] <= 0:  # nothing predicted
            models = []
        graded = [rival for rival in models if rival.quality is not None]
        affordable = [rival for rival in graded if rival.estimated_nanousd <= turns[1]]
        cheapest = models[-1].name if models else None
        best = max(affordable, key=lambda rival: rival.quality or 0.0).name if affordable else cheapest
        tuned, tuned_lambda = self._tuned()
        front, today = self._front()
        return Savings(
            turns=int(turns[0]), billed_nanousd=int(turns[1]), quality=turns[4] / turns[5] if turns[5] else None,
            models=tuple(models) if names else (),
            strongest=max(graded, key=lambda rival: rival.quality or 0.0).name if graded else None,
            best_fixed=best, cheapest=cheapest, tuned=tuned, tuned_lambda_per_usd=tuned_lambda, front=front,
            today=today,
        )  # fmt: skip

    def _add_model(self, name: str, group: int, cost: float, billed: float, quality: float) -> None:
        place = self._names.setdefault(name, len(self._names))
        if place == self._models.shape[1]:
            self._models = np.concatenate([self._models, np.zeros((GROUPS, 1, 5))], axis=1)
        graded = not np.isnan(quality)
        self._models[group, place] += (cost, billed, 1.0, quality if graded else 0.0, float(graded))

    def _add_rule(
        self, turns: Sequence[RoutedTurn], groups: NDArray[np.int64], cost: Floats, quality: Floats,
        chosen: NDArray[np.int64], billed: Floats, own_cost: Floats, own_quality: Floats,
    ) -> None:  # fmt: skip
        """What the rule would choose at every lambda, for the turns with predictions of cost and quality."""
        usable = ~np.isnan(own_cost) & ~np.isnan(own_quality)
        if not usable.any():
            return
        rows = np.flatnonzero(usable)
        cost, quality, chosen = cost[rows], quality[rows], chosen[rows]
        worth = quality[:, None, :] - LAMBDAS[None, :, None] * (cost / NANOUSD_PER_USD)[:, None, :]
        choice = np.where(np.isnan(worth), -np.inf, worth).argmax(axis=2)
        picked_cost = np.take_along_axis(cost, choice, axis=1)
        picked_quality = np.take_along_axis(quality, choice, axis=1)
        mine = [turns[row] for row in rows.tolist()]
        propensity = np.array([turn.propensity for turn in mine])
        weight = np.where(choice == chosen[:, None], np.minimum(1.0 / propensity, MAX_WEIGHT)[:, None], 0.0)
        score = np.array([np.nan if turn.score is None else turn.score for turn in mine], np.float64)
        surprise = np.nan_to_num(score - own_quality[rows])
        sums = np.stack(
            [picked_cost, picked_quality, picked_cost + weight * (billed[rows] - own_cost[rows])[:, None],
             picked_quality + weight * surprise[:, None]], axis=2,
        )  # fmt: skip
        np.add.at(self._rule, groups[rows], sums)
        answered = own_quality[rows] + surprise
        columns = np.stack([np.ones(len(rows)), billed[rows], own_cost[rows], answered], axis=1)
        np.add.at(self._ruled, groups[rows], columns)

    # -- estimates ---------------------------------------------------------------------------------------------------

    def _rival(self, name: str, place: int) -> Rival:
        """One model alone."""

        def estimated(kept: Groups) -> tuple[float, float]:
            billed, predicted, comparable = self._turns[kept][:, 1:4].sum(0)
            mine, mine_billed = self._models[kept, place, :2].sum(0)
            scale = comparable / predicted if predicted > 0 else 0.0
            return mine * scale + billed - mine_billed, billed

        sums = self._models[:, place].sum(0)
        return _rival(
            name, estimated, self._full(), quality=sums[3] / sums[4] if sums[4] else None,
            missing=int(self._turns[:, 0].sum() - sums[2]),
        )  # fmt: skip

    def _tuned(self) -> tuple[Rival | None, float | None]:
        """The rule at the lambda that reaches the predicted quality of what answered, at the least cost."""
        ruled = self._ruled.sum(0)
        if not ruled[0] or ruled[2] <= 0:
            return None, None

        def at(kept: Groups) -> tuple[int, float]:
            cost, quality = self._rule[kept][:, :, 0].sum(0), self._rule[kept][:, :, 1].sum(0)
            wanted = self._turns[kept][:, 4].sum()
            good = np.flatnonzero(quality >= wanted * (1.0 - 1e-9))
            last = int(good[-1]) if len(good) else 0
            if last + 1 < len(LAMBDAS) and quality[last] > quality[last + 1]:
                share = (quality[last] - wanted) / (quality[last] - quality[last + 1])
                return last, float(cost[last] + np.clip(share, 0.0, 1.0) * (cost[last + 1] - cost[last]))
            return last, float(cost[last])

        def estimated(kept: Groups) -> tuple[float, float]:
            billed = self._turns[kept][:, 1].sum()
            _, ruled_billed, predicted, _ = self._ruled[kept].sum(0)
            scale = ruled_billed / predicted if predicted > 0 else 0.0
            return at(kept)[1] * scale + billed - ruled_billed, billed

        place, _ = at(self._full())
        rival = _rival(
            "tuned lambda", estimated, self._full(), quality=self._turns[:, 4].sum() / self._turns[:, 5].sum(),
            missing=int(self._turns[:, 0].sum() - ruled[0]),
        )  # fmt: skip
        return rival, float(LAMBDAS[place])

    def _front(self) -> tuple[tuple[FrontPoint, ...], FrontPoint | None]:
        if not self._ruled[:, 0].any():
            return (), None
        turns = self._ruled[:, 0]

        def point(per_usd: float, cost: Floats, quality: Floats) -> FrontPoint:
            return FrontPoint(per_usd, _mean(cost / NANOUSD_PER_USD, turns), _mean(quality, turns))

        front = tuple(
            point(float(per_usd), self._rule[:, place, 2], self._rule[:, place, 3])
            for place, per_usd in enumerate(LAMBDAS)
        )
        return front, point(0.0, self._ruled[:, 1], self._ruled[:, 3])

    def _full(self) -> Groups:
        return self._turns[:, 0] > 0


def _rival(
    name: str,
    estimated: Callable[[Groups], tuple[float, float]],
    present: Groups,
    *,
    quality: float | None,
    missing: int,
) -> Rival:
    """`estimated(groups)` returns the rival's cost of these groups, and what their turns were billed."""
    groups = int(present.sum())

    def saved(kept: Groups) -> float:
        cost, billed = estimated(kept)
        return float((cost - billed) * groups / max(1, int(kept.sum())))

    def share(kept: Groups) -> float:
        cost, billed = estimated(kept)
        return float((cost - billed) / cost) if cost > 0 else 0.0

    return Rival(
        name=name,
        estimated_nanousd=round(estimated(present)[0]),
        saved=_jackknife(saved, present),
        saved_share=_jackknife(share, present),
        quality=None if quality is None else float(quality),
        turns_not_comparable=missing,
    )


def _jackknife(statistic: Callable[[Groups], float], present: Groups) -> Jackknife:
    """The statistic over the present groups, with the interval of leaving out each of them."""
    without = []
    for place in np.flatnonzero(present):
        kept = present.copy()
        kept[place] = False
        without.append(statistic(kept) if kept.any() else 0.0)
    return _interval(float(statistic(present)), np.array(without))


def _mean(sums: Floats, counts: Floats) -> Jackknife:
    """The mean over groups with a count, with the same interval."""
    present = counts > 0
    total, count = sums[present].sum(), counts[present].sum()
    left = np.maximum(count - counts[present], 1.0)
    return _interval(float(total / count), (total - sums[present]) / left)


def _interval(value: float, without: Floats) -> Jackknife:
    """The interval of a statistic whose values are `without`, each with one group left out."""
    if len(without) < MIN_GROUPS:
        return Jackknife(value, None, None)
    spread = without - without.mean()
    half = NORMAL_95 * float(np.sqrt((len(without) - 1) / len(without) * (spread**2).sum()))
    return Jackknife(value, value - half, value + half)


def _group(turn: RoutedTurn) -> int:
    return crc32(f"{turn.tenant_id}/{turn.session_id}".encode()) % GROUPS
