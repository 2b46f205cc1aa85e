from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import network
from policy.features import PRIOR_COLUMN, encode
from policy.mdp import Observation
from policy.network_shapes import Sizes, parameter_shapes
from tests.policy.observations import candidate, observation, permuted, random_observation

HEADS = jax.jit(network.heads)
SMALL = Sizes(hidden=16, joint=8, members=2)


def perturbed(seed: int = 0) -> network.Params:
    """Parameters far from the start: every head speaks. NumPy's noise, because JAX would compile every shape's."""
    rng = np.random.default_rng(seed)
    flat = {path: rng.standard_normal(shape) * 0.3 for path, shape in parameter_shapes(SMALL).items()}
    params: network.Params = {}
    for path, value in flat.items():
        layer, leaf = path.split("/")
        params.setdefault(layer, {})[leaf] = jnp.asarray(value + (leaf == "scale"), jnp.float32)
    return params


def evaluated(
    params: network.Params,
    view: Observation,
    padding: int = 0,
    *,
    remaining: float = 0.5,
    turns: float = 4.0,
    price: float = 2.0,
) -> network.Heads:
    encoded = encode(view)

    def padded(array: Any) -> Any:
        return np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))

    found: network.Heads = HEADS(
        params,
        jnp.asarray(encoded.state),
        jnp.asarray(padded(encoded.candidates)),
        jnp.float32(remaining),
        jnp.float32(1.0),
        jnp.float32(turns),
        jnp.float32(price),
        jnp.asarray(padded(encoded.cost_quantiles_usd)),
        jnp.asarray(padded(encoded.mask)),
    )
    return found


VIEW = observation([candidate("a", 0.001, 0.5), candidate("b", 0.01, 0.7), candidate("c", 0.05, 0.9)])


@pytest.mark.parametrize("sizes", [Sizes(), SMALL])
def test_the_parameters_are_exactly_the_tree_that_checkpoints_know(sizes: Sizes) -> None:
    params = jax.eval_shape(lambda key: network.init(key, sizes), jax.random.key(0))
    found = {f"{layer}/{leaf}": value.shape for layer, leaves in params.items() for leaf, value in leaves.items()}
    assert found == parameter_shapes(sizes)
    assert {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_an_untrained_network_believes_the_priors_and_knows_this_turns_cost() -> None:
    heads = evaluated(network.init(jax.random.key(0), SMALL), VIEW)
    mean_cost = (0.001 + 0.01 + 0.05) / 3  # three later turns at this, and at a quality of .7
    for member in range(2):
        assert np.asarray(heads.turn_quality[member]) == pytest.approx([0.5, 0.7, 0.9], abs=0.05)
        assert np.asarray(heads.q_quality[member]) == pytest.approx([2.6, 2.8, 3.0], abs=0.15)
        assert np.asarray(heads.q_cost_usd[member]) == pytest.approx(
            np.array([0.001, 0.01, 0.05]) + 3 * mean_cost, rel=0.03
        )


def test_on_the_last_turn_values_to_go_are_this_turns() -> None:
    heads = evaluated(perturbed(), VIEW, turns=1.0)
    assert np.asarray(heads.q_quality) == pytest.approx(np.asarray(heads.turn_quality))
    assert np.asarray(heads.q_cost_usd) == pytest.approx(np.array([[0.001, 0.01, 0.05]] * 2), rel=1e-5)


def test_padding_and_masked_rows_change_nothing() -> None:
    params = perturbed()
    plain, padded = evaluated(params, VIEW), evaluated(params, VIEW, padding=5)
    assert np.asarray(padded.q_quality)[:, :3] == pytest.approx(np.asarray(plain.q_quality), abs=1e-5)
    assert np.asarray(padded.q_cost_usd)[:, :3] == pytest.approx(np.asarray(plain.q_cost_usd), abs=1e-6)
    assert not np.asarray(padded.q_quality)[:, 3:].any()


def test_the_order_of_the_candidates_does_not_matter() -> None:
    params, rng = perturbed(2), np.random.default_rng(0)
    for _ in range(5):
        view = random_observation(rng, most_candidates=6)
        order = rng.permutation(len(view.candidates)).tolist()
        padding = 8 - len(order)  # one shape, one compilation
        one, other = evaluated(params, view, padding), evaluated(params, permuted(view, order), padding)
        for found, expected in ((one.q_quality, other.q_quality), (one.q_cost_usd, other.q_cost_usd)):
            assert np.asarray(found)[:, order] == pytest.approx(
                np.asarray(expected)[:, : len(order)], abs=1e-4, rel=1e-4
            )


def test_members_differ_and_money_and_lambda_are_seen() -> None:
    params = perturbed(3)
    heads = evaluated(params, VIEW)
    assert np.abs(np.asarray(heads.q_quality[0] - heads.q_quality[1])).max() > 1e-3
    for changed in (evaluated(params, VIEW, remaining=0.01), evaluated(params, VIEW, price=50.0)):
        assert np.abs(np.asarray(heads.q_quality - changed.q_quality)).max() > 1e-4


def test_apply_is_the_values_of_heads_and_maps_over_a_batch() -> None:
    params, encoded = perturbed(4), encode(VIEW)
    one = (
        encoded.state,
        encoded.candidates,
        np.float32(0.5),
        np.float32(1.0),
        np.float32(4.0),
        np.float32(2.0),
        encoded.cost_quantiles_usd,
        encoded.mask,
    )
    batch = [np.stack([part] * 3) for part in one]
    q_quality, q_cost = jax.jit(jax.vmap(network.apply, in_axes=(None, *[0] * 8)))(params, *batch)
    heads = evaluated(params, VIEW)
    assert q_quality.shape == (3, 2, 3)
    assert np.asarray(q_quality[1]) == pytest.approx(np.asarray(heads.q_quality), abs=1e-5)
    assert np.asarray(q_cost[2]) == pytest.approx(np.asarray(heads.q_cost_usd), rel=1e-4)


def test_gradients_are_finite_even_when_nothing_may_be_chosen() -> None:
    encoded = encode(VIEW)

    def loss(params: network.Params, mask: jax.Array) -> jax.Array:
        quality, cost = network.apply(
            params,
            jnp.asarray(encoded.state),
            jnp.asarray(encoded.candidates),
            jnp.float32(0.0),
            jnp.float32(0.0),
            jnp.float32(3.0),
            jnp.float32(0.0),
            jnp.asarray(encoded.cost_quantiles_usd),
            mask,
        )
        return jnp.sum(quality) + jnp.sum(cost)

    for mask in (jnp.zeros(3, bool), jnp.ones(3, bool)):
        gradient = jax.jit(jax.grad(loss))(perturbed(5), mask)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_the_prior_column_is_the_prior() -> None:
    assert encode(VIEW).candidates[:, PRIOR_COLUMN] == pytest.approx([0.5, 0.7, 0.9])


@pytest.mark.parametrize("bad", [{"hidden": 0}, {"joint": 10**6}, {"members": 99}, {"members": True}, {"hidden": 1.5}])
def test_sizes_out_of_bounds_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sizes"):
        Sizes(**bad)
