"""Cells in which a prompt that is not cached is written to the cache, at more than the list price."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from msgspec.structs import replace

from policy.mdp import Decision, Observation
from policy.rules import Cheapest
from tests.policy.observations import candidate, observation
from train.replay.blind import ListPrice
from train.replay.grid import full, narrow, quick
from train.replay.simulator import Context, SessionBatch

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


@dataclass
class Listening:
    """A policy that keeps what it was shown."""

    policy_id: str = "listening"
    seen: list[Observation] = field(default_factory=list)

    def decide(self, observation: Observation, uniform: float) -> Decision:
        self.seen.append(observation)
        return Cheapest().decide(observation, uniform)


def test_a_policy_without_writes_sees_the_list_price_in_prices_and_forecasts() -> None:
    listening = Listening()
    one = candidate("small", input_usd_per_mtok=1.25, cost_usd=0.01)
    one = replace(one, input_tokens=9_000, warm_tokens=1_000, cost_max_usd=0.05)
    ListPrice(listening, 1.25).decide(observation([one]), 0.0)
    (shown,) = listening.seen[0].candidates
    assert ListPrice(listening, 1.25).policy_id == "listening-list-price"
    assert shown.input_usd_per_mtok == pytest.approx(1.0)
    # 8,000 tokens are written, each for .25 USD per million over the list price: .002 USD.
    assert shown.cost_quantiles_usd == pytest.approx([quantile - 0.002 for quantile in one.cost_quantiles_usd])
    assert shown.cost_max_usd == pytest.approx(0.048)


def test_both_presets_have_cells_with_and_without_writes() -> None:
    for grid in (quick(), full(), narrow(quick(), base_contexts=("1500",))):
        assert {context.write_price for context in grid.contexts} == {1.0, 1.25}
        assert len(set(grid.contexts)) == len(grid.contexts)
