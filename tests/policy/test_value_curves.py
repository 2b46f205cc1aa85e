"""The served network's equations by hand, and the properties that decisions rest on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import value_curves, value_layers, value_network
from policy.mdp import COST_LEVELS, COST_MASSES
from policy.value_backup import after_bill, q_values
from policy.value_curves import Catalogue, Curves, Later, inputs, money_axis, monotone, read
from policy.value_network_shapes import CURVES, KNOTS, ROW_DIM, STATE_DIM, TURNS, Sizes, parameter_shapes
from tests.policy.networks import SMALL, layers

F32 = np.float32
L = len(COST_LEVELS)


def catalogue(**changes: Any) -> Catalogue:
    """`small` earns .4 for a bill of 1 USD, `large` .9 for 3; reading costs 1e-3 USD a token, warm 1e-4."""
    columns = {
        "quality": [0.4, 0.9], "spread": [0.1, 0.1], "mean_usd": [1.0, 3.0], "q95_usd": [2.0, 6.0], "tail": [1.0, 1.0],
        "input_usd": [1e-3, 1e-3], "cached_usd": [1e-4, 1e-4],
    } | changes  # fmt: skip
    return Catalogue._make([*(np.array(x, F32) for x in columns.values()), np.ones(len(columns["quality"]), bool)])


def later(turns: float = 4.0, context: float = 0.0, *, grown: float = 0.0, last: int = 2, price: float = 0.0,
          penalty: float = 0.0) -> Later:  # fmt: skip
    numbers = [np.array(x, F32) for x in (turns, context, grown, price, penalty)]
    return Later._make([*numbers[:3], np.array(last), *numbers[3:]])


def straight(money: list[float]) -> Curves:
    """Quality is a tenth of the money, spend half of it, and the chance of starving falls to 0 by the last knot."""
    axis = np.array(money, F32)
    return Curves(axis, axis / 10.0, axis / 2.0, 1.0 - axis / axis[-1])


def test_numpy_serves_what_flax_computes() -> None:
    params = layers(1, Sizes())
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 6, ROW_DIM)).astype(F32)
    mask, state = rng.random((3, 6)) < 0.7, rng.standard_normal((3, STATE_DIM)).astype(F32)
    served = value_layers.forward_of(params)(rows, mask, state)
    module = value_network.forward_of(jax.tree.map(jnp.asarray, params))(rows, jnp.asarray(mask), state)
    assert served.shape == (3, CURVES, KNOTS + 1)
    assert served == pytest.approx(np.asarray(module), abs=1e-4)


def test_what_training_compiles_is_what_serves() -> None:
    params = layers(2)
    bills, money = np.array([[0.5] * L, [2.0] * L], F32), np.array(5.0, F32)
    answers = np.array([[0.3] * L, [0.8] * L], F32)
    terms = later(3.0, 2000.0, grown=100.0, price=0.02, penalty=1.5)
    served = q_values(value_layers.forward_of(params), catalogue(), answers, bills, money, terms)
    traced = jax.jit(value_network.q_values)(params, catalogue(), answers, bills, money, terms)
    for mine, theirs in zip(served, traced, strict=True):
        assert mine == pytest.approx(np.asarray(theirs), abs=1e-4)


def test_a_checkpoint_knows_exactly_the_modules_parameters() -> None:
    params = value_network.init(jax.random.key(0), SMALL)
    found = {f"{layer}/{leaf}": x.shape for layer, leaves in params.items() for leaf, x in leaves.items()}
    assert found == parameter_shapes(SMALL)


def test_a_session_on_one_model_costs_its_bills_and_what_it_reads() -> None:
    # 3 turns of 1 USD; 2,000 tokens first, cold 2 USD and warm .2; then twice 2,000 + 100 * 3 / 2 cached.
    terms = later(3.0, 2000.0, grown=100.0, last=0)
    total, first, warm = value_curves.session_usd(catalogue(), terms)
    assert warm.tolist() == [True, False]
    assert first == pytest.approx([0.2, 2.0])
    assert total == pytest.approx([3.0 + 0.2 + 2 * 2150 * 1e-4, 9.0 + 2.0 + 2 * 2150 * 1e-4])
    few = later(3.0, 100.0, last=0)
    assert not value_curves.session_usd(catalogue(), few)[2].any(), "a hundred tokens are not kept in a cache"


def test_curves_rise_and_starving_falls_whatever_the_network_says() -> None:
    rng = np.random.default_rng(3)
    raw = (5.0 * rng.standard_normal((50, CURVES, KNOTS + 1))).astype(F32)
    money = np.geomspace(0.1, 30.0, KNOTS, dtype=F32) * np.ones((50, 1), F32)
    found = monotone(raw, np.full(50, 0.8, F32), money, np.full(50, 5.0, F32))
    assert (np.diff(found.quality, axis=-1) >= -1e-6).all()
    assert (np.diff(found.spend_usd, axis=-1) >= -1e-6).all()
    assert (np.diff(found.starved, axis=-1) <= 1e-6).all()
    assert found.quality.max() <= 0.9 + 1e-5
    assert (5.0 * found.spend_usd <= money * (1 + 1e-5)).all(), "no one spends more than there is"


def test_monotone_by_hand() -> None:
    raw = np.zeros((CURVES, KNOTS + 1), F32)
    money = np.geomspace(1.0, 2.0 ** (KNOTS - 1), KNOTS, dtype=F32)
    found = monotone(raw, np.array(0.72, F32), money, np.array(2.0, F32))
    assert found.quality[[0, -1]] == pytest.approx([0.82 / 41, 0.82 * 40 / 41])
    assert found.spend_usd[:3] == pytest.approx([0.25, 0.25 * 2**0.5, 0.5])  # half the money, and half its elasticity
    assert found.starved[:2] == pytest.approx([0.5, 0.25])


def test_a_curve_is_read_between_its_knots_below_the_first_and_beyond_the_last() -> None:
    known = straight(np.geomspace(1.0, 2.0 ** (KNOTS - 1), KNOTS).tolist())
    quality, spend, starved = read(known, np.array([0.0, 0.5, 1.0, 3.0, 1e15], F32))
    assert quality == pytest.approx([0.0, 0.05, 0.1, 0.3, float(known.quality[-1])])
    assert spend[:4] == pytest.approx([0.0, 0.25, 0.5, 1.5])
    assert starved[[0, -1]] == pytest.approx([1.0, 0.0])


def test_a_bill_that_does_not_fit_loses_the_answer_and_ends_the_session() -> None:
    # Half of the mass bills 1 USD, half 3; there are 2. The first leaves worths of .2 a turn for 4 turns.
    bills = np.where(np.cumsum(COST_MASSES) <= 0.5, 1.0, 3.0).astype(F32)
    fits = float(COST_MASSES[bills == 1.0].sum())
    to_go = tuple(np.full(L, x, F32) for x in (0.2, 0.1, 0.25))
    found = after_bill(np.full(L, 0.6, F32), bills, np.array(2.0), np.array(4.0), (to_go[0], to_go[1], to_go[2]))
    assert found.quality == pytest.approx(fits * (0.6 + 0.8), rel=1e-5)
    assert found.spend_usd == pytest.approx(fits * (1.0 + 0.4) + (1 - fits) * 2.0, rel=1e-5)
    assert found.starved == pytest.approx(fits * 0.25 + (1 - fits), rel=1e-5)
    assert found.worth(0.5, 2.0) == pytest.approx(found.quality - 0.5 * found.spend_usd - 2.0 * found.starved)


def test_on_the_last_turn_only_this_answer_counts() -> None:
    bills, answers = np.array([[1.0] * L, [3.0] * L], F32), np.array([[0.4] * L, [0.9] * L], F32)
    found = q_values(value_layers.forward_of(layers()), catalogue(), answers, bills, np.array(2.0, F32), later(0.0))
    assert found.quality == pytest.approx([0.4, 0.0], abs=1e-5)
    assert found.spend_usd == pytest.approx([1.0, 2.0], abs=1e-4)
    assert found.starved == pytest.approx([0.0, 1.0], abs=1e-5)


def test_more_turns_than_were_taught_are_those_repeated() -> None:
    forward, bills, answers = value_layers.forward_of(layers()), np.zeros((2, L), F32), np.zeros((2, L), F32)
    known = q_values(forward, catalogue(), answers, bills, np.array(40.0, F32), later(TURNS))
    twice = q_values(forward, catalogue(), answers, bills, np.array(80.0, F32), later(2 * TURNS))
    assert twice.quality == pytest.approx(2 * known.quality, rel=1e-4)
    assert twice.starved == pytest.approx(known.starved, rel=1e-4)


def test_prices_budgets_and_lambda_in_another_currency_change_nothing() -> None:
    forward, c = value_layers.forward_of(layers(4)), 7.3
    costly = catalogue(mean_usd=[c, 3 * c], q95_usd=[2 * c, 6 * c], input_usd=[1e-3 * c] * 2, cached_usd=[1e-4 * c] * 2)
    bills, answers = np.array([[1.0] * L, [3.0] * L], F32), np.full((2, L), 0.5, F32)
    one = q_values(forward, catalogue(), answers, bills, np.array(9.0, F32), later(3.0, 3000.0, price=0.1))
    other = q_values(
        forward, costly, answers, bills * F32(c), np.array(9.0 * c, F32), later(3.0, 3000.0, price=0.1 / c)
    )
    assert other.quality == pytest.approx(one.quality, rel=1e-3)
    assert other.spend_usd == pytest.approx(one.spend_usd * c, rel=1e-3)


def test_padding_and_the_order_of_the_candidates_do_not_matter() -> None:
    rows, state = inputs(catalogue(), later(4.0, 5000.0, last=1, price=0.1, penalty=2.0))
    columns = [np.append(x, F32(9.0)) for x in catalogue()[:-1]]
    padded = Catalogue._make([*columns, np.array([True, True, False])])
    more, same = inputs(padded, later(4.0, 5000.0, last=1, price=0.1, penalty=2.0))
    assert same == pytest.approx(state)
    assert more[:2] == pytest.approx(rows)
    forward = value_layers.forward_of(layers(5))
    order = np.array([1, 0])
    turned = Catalogue(*(x[order] for x in catalogue()))
    both = np.ones(2, bool)
    assert forward(rows, both, state) == pytest.approx(forward(rows[order], both, state), abs=1e-5)
    assert money_axis(turned, later()) == pytest.approx(money_axis(catalogue(), later()))


def test_many_turns_at_once_are_each_as_alone() -> None:
    forward, rng = value_layers.forward_of(layers(6)), np.random.default_rng(0)
    n = 5
    many = Catalogue(*(np.broadcast_to(x, (n, 2)) for x in catalogue()))
    bills = rng.random((n, 2, L)).astype(F32)
    money, turns = (rng.random(n) * 8).astype(F32), rng.integers(0, 9, n).astype(F32)
    zeros = np.zeros(n, F32)
    together = q_values(forward, many, bills, bills, money, Later(turns, zeros, zeros, zeros, zeros, zeros))
    for i in range(n):
        alone = q_values(forward, catalogue(), bills[i], bills[i], money[i], later(float(turns[i])))
        assert together.quality[i] == pytest.approx(alone.quality, abs=1e-4)


@pytest.mark.parametrize("bad", [{"encoder": 0}, {"hidden": 10**6}, {"hidden": True}, {"encoder": 1.5}])
def test_sizes_out_of_bounds_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sizes\."):
        Sizes(**bad)
