"""The equations of conservative Q-learning against numbers worked by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from train.fit.cql import conservative_loss, huber, polyak

BOTH = jnp.array([True, True])


def test_conservative_loss_is_logsumexp_less_the_logged_action() -> None:
    utility = jnp.array([[0.0, np.log(3.0)]])
    assert float(conservative_loss(utility[0], jnp.int32(0), BOTH)) == pytest.approx(np.log(4.0), abs=1e-6)
    assert float(conservative_loss(utility[0], jnp.int32(1), BOTH)) == pytest.approx(np.log(4.0 / 3.0), abs=1e-6)


def test_conservatism_knows_no_infeasible_action() -> None:
    utility = jnp.array([[0.0, 50.0]])
    assert float(conservative_loss(utility[0], jnp.int32(0), jnp.array([True, False]))) == pytest.approx(0.0)


def test_huber_is_quadratic_then_linear() -> None:
    assert huber(jnp.array([0.5, 3.0]), 1.0).tolist() == pytest.approx([0.125, 2.5])


def test_polyak_moves_the_target_by_its_step() -> None:
    moved = polyak({"a": {"b": jnp.array([0.0])}}, {"a": {"b": jnp.array([2.0])}}, 0.25)
    assert moved["a"]["b"].tolist() == [0.5]
