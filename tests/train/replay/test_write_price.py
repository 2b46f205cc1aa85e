"""Cells in which a prompt that is not cached is written to the cache, at more than the list price."""

from __future__ import annotations

import numpy as np
import pytest

from policy.arrays import I64
from policy.mdp import COST_LEVELS
from train.replay.blind import at_list_price
from train.replay.grid import full, narrow, quick
from train.replay.simulator import Context, SessionBatch, Turn

EMPTY = np.zeros((1, 2, 2))


def board(context: Context) -> SessionBatch:
    two = np.array([1.0, 4.0])
    return SessionBatch(
        sessions=None,  # type: ignore[arg-type]
        models=("small", "big"), quality=EMPTY, cost_usd=EMPTY, predicted=EMPTY, cost_quantiles_usd=EMPTY,
        floor_usd=EMPTY, output_tokens=EMPTY, prompt_tokens=EMPTY[0], average=two, usd_in_per_m=two, usd_out_per_m=two,
        context=context,
    )  # fmt: skip


def test_a_switch_writes_the_whole_conversation_and_staying_only_what_is_new() -> None:
    last = np.array([-1, 0, 1])
    # 8,000 tokens before the first turn, 250 more for each: the second has 8,250, of which 8,000 are cached.
    first = board(Context(8_000, 250, 0.1, 1.25)).context_usd(0, last)
    assert first == pytest.approx(np.outer([1, 1, 1], [0.010, 0.040]))
    second = board(Context(8_000, 250, 0.1, 1.25)).context_usd(1, last)
    cold, warm = 8_250 * 1.25e-6, (8_000 * 0.1 + 250 * 1.25) * 1e-6
    assert second == pytest.approx(np.array([[cold, 4 * cold], [warm, 4 * cold], [cold, 4 * warm]]))
    assert board(Context(8_000, 250, 0.1)).context_usd(1, last[:1]) == pytest.approx(np.array([[8_250e-6, 33_000e-6]]))


def test_a_rule_without_writes_is_told_list_prices_now_and_later() -> None:
    written = board(Context(8_000, 250, 0.1, 1.25))
    last, two = np.array([0, 1]), np.ones(2)
    bills = 0.003 + written.context_usd(1, last)[..., None] + np.zeros(len(COST_LEVELS))
    turn = Turn(
        board=written, index=1, at=np.array([0, 1]), quality=EMPTY[0], cost_quantiles_usd=bills, mean_usd=bills[..., 0],
        mask=EMPTY[0] == 0.0, remaining_usd=two, budget_usd=two, turns_left=two, declared=last, last=last,
        tokens_so_far=two, uniform=two,
    )  # fmt: skip
    seen: list[Turn] = []

    def listening(shown: Turn) -> I64:
        seen.append(shown)
        return last

    assert at_list_price(listening)(turn) is last
    (shown,) = seen
    # 8,250 tokens, of which the model that served last reads 8,000 at a tenth and the other none.
    staying, moving = (800 + 250) * 1e-6, 8_250e-6
    expected = 0.003 + np.array([[staying, 4 * moving], [moving, 4 * staying]])
    assert shown.mean_usd == pytest.approx(expected)
    assert shown.cost_quantiles_usd[..., -1] == pytest.approx(expected)
    assert (shown.board.context.write_price, turn.board.context.write_price) == (1.0, 1.25)


def test_both_presets_have_cells_with_and_without_writes() -> None:
    for grid in (quick(), full(), narrow(quick(), base_contexts=("1500",))):
        assert {context.write_price for context in grid.contexts} == {1.0, 1.25}
        assert len(set(grid.contexts)) == len(grid.contexts)
