"""Budgets are bookkeeping: what a bill leaves, and where a session ends, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.mdp import COST_LEVELS, COST_MASSES
from train.config import RelabelConfig
from train.fit.relabel import Terms, affordable, after_bill, draw_bills, draw_terms

BILLS = jnp.array([[4.0, 10.0, 12.0]])
ONES = jnp.ones((1, 3))


def terms(remaining_usd: float, turns_left: float) -> Terms:
    return Terms(*(jnp.array([x]) for x in (remaining_usd, 20.0, turns_left, 0.0)))


def test_the_purse_shrinks_by_the_bill_and_a_dearer_answer_is_cut() -> None:
    books = after_bill(ONES, BILLS, terms(10.0, 3.0), RelabelConfig(starved_penalty=0.0))
    assert books.remaining_usd[0].tolist() == [6.0, 0.0, 0.0]
    assert books.score[0].tolist() == [1.0, 1.0, 0.0]
    assert books.ended[0].tolist() == [False, True, True]


def test_an_empty_purse_before_the_last_turn_pays_the_penalty() -> None:
    books = after_bill(ONES, BILLS, terms(10.0, 3.0), RelabelConfig(starved_penalty=0.5))
    assert books.score[0].tolist() == [1.0, 0.5, -0.5]


def test_spending_all_on_the_last_turn_starves_nobody() -> None:
    books = after_bill(ONES, BILLS, terms(10.0, 1.0), RelabelConfig(starved_penalty=0.5))
    assert books.score[0].tolist() == [1.0, 1.0, -0.5]
    assert books.ended[0].tolist() == [True, True, True]


def test_a_known_bill_stays_and_others_draw_from_their_law() -> None:
    quantiles = jnp.broadcast_to(jnp.arange(1.0, 16.0), (2000, 2, 15))
    known = jnp.tile(jnp.array([99.0, jnp.nan]), (2000, 1))
    bills = np.asarray(draw_bills(jax.random.key(0), quantiles, jnp.asarray(COST_MASSES), known))
    assert (bills[:, 0] == 99.0).all()
    assert set(np.unique(bills[:, 1])) <= set(range(1, 16))
    assert bills[:, 1].mean() == pytest.approx(float(np.arange(1.0, 16.0) @ COST_MASSES), abs=0.25)


def test_affordable_asks_for_the_95th_percentile() -> None:
    quantiles = jnp.asarray(np.array([[np.linspace(1, 2, 15), np.linspace(5, 6, 15)]]))
    at = COST_LEVELS.index(0.95)
    purse = jnp.array([float(np.linspace(5, 6, 15)[at]) + 1e-3])
    assert affordable(quantiles, jnp.ones((1, 2), bool), purse)[0].tolist() == [True, True]
    assert affordable(quantiles, jnp.ones((1, 2), bool), purse - 0.01)[0].tolist() == [True, False]
    assert affordable(quantiles, jnp.array([[False, True]]), purse)[0].tolist() == [False, True]


def test_drawn_terms_stay_within_their_ranges_and_the_books_balance() -> None:
    config = RelabelConfig()
    left = jnp.asarray(np.random.default_rng(0).integers(1, 7, 500), jnp.float32)
    spent = jnp.full(500, 2.0)
    drawn = draw_terms(
        jax.random.key(1), left, spent, jnp.tile(jnp.array([1.0, 4.0]), (500, 1)), jnp.ones((500, 2), bool), config
    )
    per_turn = drawn.remaining_usd / drawn.turns_left
    assert (per_turn >= config.budget_low * 1.0 * 0.999).all()
    assert (per_turn <= config.budget_high * 4.0 * 1.001).all()
    assert (drawn.turns_left >= 1).all()
    assert (drawn.turns_left <= left).all()
    assert jnp.allclose(drawn.budget_usd - drawn.remaining_usd, spent)
    assert 0.2 < float((drawn.lambda_per_usd == 0).mean()) < 0.4
