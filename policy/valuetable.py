"""Value table of the later turns by the money left, learned by train/fit/value_table.py.

    V(lambda, context, last, n, m) = expected quality - lambda * spend of the n later turns with m USD for them,
                                     so many tokens of conversation to read, and the prompt cache of model `last` warm

A table over all five, interpolated linearly; the last entry of `last` stands for a model that the table does not know,
whose cache is taken to be cold. Scale-free: when list prices move by a common factor, money is read in old prices.
`answers` holds the quality of an answer by its bill: where long answers are the failures, a bill that exceeds the
budget would have bought little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F32, F64
from policy.kernel import MAX_MODELS
from policy.mdp import COST_LEVELS, COST_MASSES, CandidateView, Observation
from policy.text import STAT_NAMES

MAX_CELLS = 8_000_000
CHARS_PER_TOKEN = 4.0
TAIL = COST_LEVELS.index(0.95)
"""First level of a bill's tail."""
MEDIAN = COST_LEVELS.index(0.5)
LOG_CHARS, LOG_CHARS_SCALE = STAT_NAMES.index("log_chars"), 12.0


@dataclass(frozen=True, slots=True, eq=False)
class ValueTable:
    """Values over K models, P prices of money, C contexts, N turns, B budgets; axes rise."""

    models: tuple[str, ...]
    list_usd: F32  # (K,) input plus output price when the table was learned, USD per million tokens
    lambdas_per_usd: F32  # (P,)
    contexts_tokens: F32  # (C,)
    budgets_usd: F32  # (B,)
    values: F32  # (P, C, K + 1, N + 1, B)
    answers: F32  # (K + 1, L) quality by the level of the bill, relative to the model's mean

    def later(
        self,
        candidates: Sequence[CandidateView],
        after_usd: F64,
        turns: float,
        lambda_per_usd: float,
        context_tokens: float,
    ) -> F64:
        """Value of `turns` later turns per serving candidate and budget left, (K', L) -> (K', L).

        `after_usd` (K', L) is not negative. More turns than the table has repeat its last row in proportion.
        """
        rows = self._rows(candidates)
        scale = self._price_scale(candidates, rows)
        most = self.values.shape[3] - 1
        repeated = max(turns / most, 1.0)
        plane = _between(self.values, self.lambdas_per_usd, lambda_per_usd * scale)
        plane = _between(plane, self.contexts_tokens, context_tokens)
        plane = _between(np.moveaxis(plane, 1, 0), np.arange(most + 1.0), turns / repeated)  # (K + 1, B)
        return np.asarray(repeated * self._at(plane[rows], after_usd / (scale * repeated)))

    def by_bill(self, candidates: Sequence[CandidateView], quality: NDArray[np.floating]) -> F64:
        """Expected quality of each candidate's answer at every level of its bill, (K',) -> (K', L)."""
        return np.asarray(quality[:, None] * self.answers[self._rows(candidates)], np.float64)

    def arrays(self) -> dict[str, F32]:
        """Arrays by name, as a checkpoint stores them; `from_arrays` is the inverse."""
        return {name: np.asarray(getattr(self, name), np.float32) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, models: tuple[str, ...], arrays: Mapping[str, F32]) -> ValueTable:
        """Build a table. Raises ValueError when names, shapes or the order of an axis are wrong.

        Checkpoints written before `answers` existed lack it; quality is then independent of cost.
        """
        independent: F32 = np.ones((len(models) + 1, len(COST_MASSES)), np.float32)
        arrays = {"answers": independent} | dict(arrays)
        if set(arrays) != set(_ARRAYS):
            raise ValueError(f"values: missing or unknown arrays {sorted(set(arrays) ^ set(_ARRAYS))}")
        values = arrays["values"]
        if values.ndim != 5 or values.size > MAX_CELLS or not 1 <= len(models) <= MAX_MODELS:
            raise ValueError(f"values/values: expected 5 axes and at most {MAX_CELLS} cells, found {values.shape}")
        axes = ("lambdas_per_usd", "contexts_tokens", None, None, "budgets_usd")
        for at, name in enumerate(axes):
            if name is None:
                continue
            axis = arrays[name]
            if axis.shape != (values.shape[at],) or not axis.size or axis[0] != 0.0 or not (np.diff(axis) > 0.0).all():
                raise ValueError(f"values/{name}: expected {values.shape[at]} rising numbers from 0")
        if values.shape[2] != len(models) + 1 or values.shape[3] < 2 or values.shape[4] < 2:
            raise ValueError(
                f"values/values: expected {len(models) + 1} models, turns and budgets, found {values.shape}"
            )
        if arrays["list_usd"].shape != (len(models),) or not (arrays["list_usd"] > 0.0).all():
            raise ValueError(f"values/list_usd: expected {len(models)} positive prices")
        if arrays["answers"].shape != (len(models) + 1, len(COST_MASSES)) or not (arrays["answers"] >= 0.0).all():
            raise ValueError(
                f"values/answers: expected {len(models) + 1} rows of {len(COST_MASSES)} numbers from 0, "
                f"found {arrays['answers'].shape}"
            )
        return cls(models, **{name: arrays[name] for name in _ARRAYS})

    def _rows(self, candidates: Sequence[CandidateView]) -> NDArray[np.intp]:
        known = {name: k for k, name in enumerate(self.models)}
        return np.array([known.get(c.name, len(self.models)) for c in candidates], np.intp)

    def _price_scale(self, candidates: Sequence[CandidateView], rows: NDArray[np.intp]) -> float:
        """Geometric mean of the known models' price increases; 1 where none is known or all are free now."""
        ratios = [
            (c.input_usd_per_mtok + c.output_usd_per_mtok) / float(self.list_usd[row])
            for c, row in zip(candidates, rows, strict=True)
            if row < len(self.models) and c.input_usd_per_mtok + c.output_usd_per_mtok > 0.0
        ]
        return float(np.exp(np.mean(np.log(ratios)))) if ratios else 1.0

    def _at(self, values: F32, budgets_usd: F64) -> F64:
        """Row k of values (K', B) at budgets (K', L); above the last budget the last value."""
        axis = self.budgets_usd.astype(np.float64)
        low = np.clip(np.searchsorted(axis, budgets_usd, side="right") - 1, 0, len(axis) - 2)
        share = np.minimum((budgets_usd - axis[low]) / (axis[low + 1] - axis[low]), 1.0)
        row = np.arange(len(values))[:, None]
        return np.asarray((1.0 - share) * values[row, low] + share * values[row, low + 1])


_ARRAYS = ("list_usd", "lambdas_per_usd", "contexts_tokens", "budgets_usd", "values", "answers")


def cautious_usd(cost_quantiles_usd: NDArray[np.floating], caution: float) -> F64:
    """Bills (..., L) with their distance from the median stretched `caution` times in the tail.

    A bill can exceed the last quantile of the cost distribution, and the bills of one session tend to be high together.
    The cost of reading the conversation is in every bill; it shifts all levels equally and is not stretched.
    """
    weighed = np.array(cost_quantiles_usd, np.float64)
    if caution != 1.0:
        median = weighed[..., MEDIAN, None]
        weighed[..., TAIL:] = median + caution * (weighed[..., TAIL:] - median)
    return weighed


def bill_scores(
    answers: NDArray[np.floating],
    cost_quantiles_usd: NDArray[np.floating],
    weighed_usd: NDArray[np.floating],
    later: NDArray[np.floating],
    available_usd: float,
    lambda_per_usd: float,
    starved_penalty: float,
) -> F64:
    """Expected worth of each candidate over its whole cost distribution, (K,).

        sum_l mass_l ([weighed_l <= available] (answer_l + later_l) - [weighed_l > available] penalty
                      - lambda min(bill_l, available))

    Answers (quality at each bill, `ValueTable.by_bill`), bills, stretched bills (`cautious_usd`) and later values
    (K, L). An answer more expensive than the budget is lost, and the budget with it.
    """
    paid = np.minimum(cost_quantiles_usd, available_usd)
    kept = weighed_usd <= available_usd
    worth = np.where(kept, answers + later, -starved_penalty) - lambda_per_usd * paid
    return np.asarray(worth @ COST_MASSES.astype(np.float64))


def context_tokens(observation: Observation) -> float:
    """Tokens of the conversation before this turn's own text, estimated from its length; from 0."""
    tokens = max((c.input_tokens for c in observation.candidates), default=0)
    return max(tokens - float(turn_tokens(observation.text_stats)), 0.0)


def turn_tokens(text_stats: NDArray[np.floating]) -> NDArray[np.floating]:
    """Estimated tokens of a turn's own text: statistics (..., STATS_DIM) -> (...)."""
    return np.asarray(np.expm1(text_stats[..., LOG_CHARS] * LOG_CHARS_SCALE) / CHARS_PER_TOKEN)


def _between(values: F32, axis: NDArray[np.floating], at: float) -> F32:
    """Linear interpolation along the first axis of `values`; held constant beyond both ends."""
    if len(axis) == 1:
        return np.asarray(values[0])
    low = min(max(int(np.searchsorted(axis, at, side="right")) - 1, 0), len(axis) - 2)
    share = min(max((at - float(axis[low])) / float(axis[low + 1] - axis[low]), 0.0), 1.0)
    return np.asarray((1.0 - share) * values[low] + share * values[low + 1], np.float32)
