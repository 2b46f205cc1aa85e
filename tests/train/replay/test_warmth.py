"""Cells in which a provider really caches less than a matching prefix, and rules that learn or assume it."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.catalog.cache_hits import CacheHits
from policy.arrays import I64
from policy.mdp import COST_LEVELS
from train.replay.blind import believing
from train.replay.simulator import Context, SessionBatch, Turn
from train.replay.warmth import learning

EMPTY = np.zeros((2, 2, 2))
HALF = Context(8_000, 250, 0.1, 1.25, hit_share=0.5)


def turn_of(last: list[int]) -> Turn:
    two, sessions = np.array([1.0, 4.0]), len(last)
    board = SessionBatch(
        sessions=None,  # type: ignore[arg-type]
        models=("small", "big"), quality=EMPTY, cost_usd=EMPTY, predicted=EMPTY, cost_quantiles_usd=EMPTY,
        floor_usd=EMPTY, output_tokens=EMPTY, prompt_tokens=EMPTY[0], average=two, usd_in_per_m=two, usd_out_per_m=two,
        context=HALF,
    )  # fmt: skip
    ones, at = np.ones(sessions), np.arange(sessions)
    bills = board.context_usd(1, np.array(last))[..., None] + np.zeros(len(COST_LEVELS))
    return Turn(
        board=board, index=1, at=at, quality=np.zeros((sessions, 2)), cost_quantiles_usd=bills, mean_usd=bills[..., 0],
        mask=np.ones((sessions, 2), bool), remaining_usd=ones, budget_usd=ones, turns_left=ones,
        declared=np.array(last), last=np.array(last), tokens_so_far=ones, uniform=ones,
    )  # fmt: skip


def test_what_is_not_cached_of_a_matching_prefix_is_paid_and_written_again() -> None:
    # 8,250 tokens, of which 8,000 match and 4,000 are cached; the others are written.
    warm = (4_000 * 0.1 + 4_250 * 1.25) * 1e-6
    assert turn_of([0]).mean_usd == pytest.approx(np.array([[warm, 4 * 8_250 * 1.25e-6]]))


def test_a_rule_that_assumes_whole_prefixes_is_told_their_costs() -> None:
    seen: list[Turn] = []

    def listening(shown: Turn) -> I64:
        seen.append(shown)
        return shown.last

    believing(listening, hit_share=1.0)(turn_of([0]))
    assert seen[0].mean_usd[0, 0] == pytest.approx((8_000 * 0.1 + 250 * 1.25) * 1e-6)


def test_warmth_is_learned_of_each_model_from_the_bills_of_those_that_stay() -> None:
    told: list[tuple[int, float]] = []

    def listening(shown: Turn) -> I64:
        told.extend((int(last), shown.board.context.hit_share) for last in shown.last)
        return np.zeros(
            len(shown.last), np.int64
        )  # the first session stays on the small model, the second leaves the big

    rule = learning(listening, CacheHits())
    rule(turn_of([0, 1]))
    rule(turn_of([0, 1]))
    # The prior is worth 4,000 tokens, all cached; then 8,000 were seen, of which 4,000 were. The big model had no bill.
    assert told == [(0, 1.0), (1, 1.0), (0, pytest.approx(8_000 / 12_000)), (1, 1.0)]
