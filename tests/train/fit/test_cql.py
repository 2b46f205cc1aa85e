"""The equations of conservative Q-learning against numbers worked by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from policy.network import Heads

from train.fit.cql import conservative_loss, double_q_target, huber, pessimistic, polyak


def heads(quality: list[float], cost_usd: list[float]) -> Heads:
    q, c = jnp.array([quality]), jnp.array([cost_usd])
    return Heads(q, q, q, c)


ONLINE = heads([1.0, 0.8], [10.0, 1.0])
TARGET = heads([2.0, 3.0], [7.0, 4.0])
BOTH = jnp.array([True, True])


def backup(lambda_per_usd: float, mask: object = BOTH, ended: bool = False) -> tuple[float, float]:
    quality, cost = double_q_target(
        jnp.float32(0.5),
        jnp.float32(2.0),
        jnp.bool_(ended),
        ONLINE,
        TARGET,
        jnp.float32(lambda_per_usd),
        jnp.asarray(mask),
    )
    return float(quality[0]), float(cost[0])


def test_double_q_lets_the_online_network_choose_and_the_target_value() -> None:
    # lambda .05: online utilities 1 - .5 and .8 - .05, so action 1; the target says 3 and 4 of it.
    assert backup(0.05) == pytest.approx((3.5, 6.0))


def test_at_lambda_zero_quality_alone_chooses() -> None:
    assert backup(0.0) == pytest.approx((2.5, 9.0))


def test_an_unaffordable_action_is_not_backed_up() -> None:
    assert backup(0.05, mask=[True, False]) == pytest.approx((2.5, 9.0))


def test_nothing_follows_the_end_or_an_empty_purse() -> None:
    assert backup(0.0, ended=True) == pytest.approx((0.5, 2.0))
    assert backup(0.0, mask=[False, False]) == pytest.approx((0.5, 2.0))


def test_conservative_loss_is_logsumexp_less_the_logged_action() -> None:
    utility = jnp.array([[0.0, np.log(3.0)]])
    assert float(conservative_loss(utility, jnp.int32(0), BOTH)) == pytest.approx(np.log(4.0), abs=1e-6)
    assert float(conservative_loss(utility, jnp.int32(1), BOTH)) == pytest.approx(np.log(4.0 / 3.0), abs=1e-6)


def test_conservatism_knows_no_infeasible_action() -> None:
    utility = jnp.array([[0.0, 50.0]])
    assert float(conservative_loss(utility, jnp.int32(0), jnp.array([True, False]))) == pytest.approx(0.0)


def test_pessimism_subtracts_the_spread_of_the_ensemble() -> None:
    assert pessimistic(jnp.array([[1.0, 2.0], [3.0, 2.0]]), 1.0).tolist() == [1.0, 2.0]


def test_huber_is_quadratic_then_linear() -> None:
    assert huber(jnp.array([0.5, 3.0]), 1.0).tolist() == pytest.approx([0.125, 2.5])


def test_polyak_moves_the_target_by_its_step() -> None:
    moved = polyak({"a": {"b": jnp.array([0.0])}}, {"a": {"b": jnp.array([2.0])}}, 0.25)
    assert moved["a"]["b"].tolist() == [0.5]
