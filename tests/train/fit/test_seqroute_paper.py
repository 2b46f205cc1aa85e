"""SeqRoute as published: relabelling, loss and sweep against numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from msgspec import structs

from policy.text import TEXT_DIM
from tests.policy.observations import candidate, observation
from tests.train.fit.test_full_information import asked_everywhere
from train.fit.seqroute_paper import (
    BUDGET_SHARES,
    Published,
    PublishedConfig,
    Transitions,
    fit_published,
    largest_budget_usd,
    loss,
    relabel_paths,
)


def test_the_largest_budget_is_a_session_on_the_costliest_model() -> None:
    # Two turns at .01 USD each.
    assert largest_budget_usd(asked_everywhere()) == pytest.approx(0.02)


def test_a_path_is_replayed_under_five_budgets_and_truncated_at_bankruptcy() -> None:
    one = asked_everywhere(sessions=1)
    # The costly model alone was asked: its two bills are half of the largest budget each.
    only_costly = replace(
        one, scores=np.array([[[np.nan, 0.8], [np.nan, 0.6]]], np.float32), reward=np.full((1, 2), np.nan, np.float32)
    )
    found = relabel_paths(only_costly, 0.02, PublishedConfig(paths=1), seed=0)
    # Shares 1/16, 3/16 and 3/8 cannot pay the first bill; 5/8 pays one; 1 pays both.
    assert found.left == pytest.approx([0.0625, 0.1875, 0.375, 0.625, 0.125, 1.0, 0.5])
    assert found.reward == pytest.approx([-5.0, -5.0, -5.0, 0.8, -5.0, 0.8, 0.6])
    assert found.done.tolist() == [True, True, True, False, True, False, True]
    assert found.left_after[-2:] == pytest.approx([0.5, 0.0])
    assert found.action.tolist() == [1] * 7
    assert len(BUDGET_SHARES) == 5


def test_the_loss_is_the_q_error_and_the_conservative_term() -> None:
    # One linear layer: Q = (0, left). left .5, action 1 taken for reward 1, then left .25 with best value .25.
    weight = np.zeros((TEXT_DIM + 1, 2), np.float32)
    weight[-1, 1] = 1.0
    layers = [(jnp.asarray(weight), jnp.zeros(2))]
    batch = Transitions(*(jnp.array([x]) for x in (0, 0.5, 1, 1.0, 1, 0.25, False)))
    error = 1.0 + 0.99 * 0.25 - 0.5
    conservative = np.log(1.0 + np.exp(0.5)) - 0.5
    found = loss(layers, layers, jnp.zeros((2, TEXT_DIM)), batch, PublishedConfig(alpha=2.0))
    assert float(found) == pytest.approx(error**2 / 2 + 2.0 * conservative, abs=1e-5)


def linear(**changes: Any) -> Published:
    """Q(cheap) = 0, Q(costly) = the share of 1 USD that is left."""
    weight = np.zeros((TEXT_DIM + 1, 2), np.float32)
    weight[-1, 1] = 1.0
    return Published(("cheap", "costly"), ((weight, np.zeros(2, np.float32)),), 1.0, **changes)


def test_lambda_prices_the_immediate_cost_alone() -> None:
    seen = observation([candidate("cheap", 0.0), candidate("costly", 0.1)], remaining_usd=0.5)
    assert linear().decide(seen, 0.5).action == 1
    # .5 - lambda .1 falls below 0 at 5 a dollar.
    assert linear(lambda_per_usd=4.9).decide(seen, 0.5).action == 1
    assert linear(lambda_per_usd=5.1).decide(seen, 0.5).action == 0
    assert linear().decide(structs.replace(seen, lambda_per_usd=5.1), 0.5).action == 0


def test_a_model_it_was_not_trained_on_is_chosen_only_when_nothing_else_may_be() -> None:
    assert linear().decide(observation([candidate("new", 0.0), candidate("costly", 0.1)]), 0.5).action == 1
    assert (
        linear().decide(observation([candidate("new", 0.0), candidate("costly", 0.1, feasible=False)]), 0.5).action == 0
    )


def test_a_fit_is_deterministic_and_finite() -> None:
    config = PublishedConfig(widths=(8,), steps=20, batch_size=16)
    first, again = (fit_published(asked_everywhere(), config, 3) for _ in range(2))
    for (w, b), (w2, b2) in zip(first.layers, again.layers, strict=True):
        assert np.isfinite(w).all()
        assert np.array_equal(w, w2)
        assert np.array_equal(b, b2)
