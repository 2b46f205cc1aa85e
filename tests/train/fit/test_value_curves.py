"""The exact programme and the TD step against each other, against the planner's table, and by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import value_network
from policy.mdp import COST_LEVELS
from policy.value_curves import Later
from policy.value_network_shapes import KNOTS, Sizes
from tests.train.fit.test_value_table import samples
from train.config import FitConfig, PlanConfig, RelabelConfig
from train.fit import value_curves
from train.fit.pretrain import PretrainConfig, pretrain, random_samples, random_target
from train.fit.programme import QUALITY, SPEND, STARVED, programme
from train.fit.value_curves import Drawn, back_up, draw
from train.fit.value_table import Samples, Setting, tabulate
from train.fit.value_targets import catalogue_statistics_of, price_pairs, tables_of, training_set_of

PLAN = PlanConfig(samples=8, turns=3, money_points=60, contexts_tokens=(0.0, 10_000.0), lambdas=(1.0,))
TINY = Sizes(encoder=4, hidden=4)


def varied(**changes: Any) -> Samples:
    rng = np.random.default_rng(0)
    bills = np.sort(rng.lognormal(0.0, 1.0, (8, 2, len(COST_LEVELS))), axis=-1)
    return samples(quality=rng.random((8, 2)), bills_usd=bills, grown_tokens=300.0, **changes)


def test_quality_spend_and_starving_of_the_programme_add_up_to_the_planners_table() -> None:
    table = tabulate(varied(), PLAN, Setting(2.0))
    found = programme(varied(), PLAN, [(float(price), 2.0) for price in table.lambdas_per_usd])
    assert found.worth() == pytest.approx(table.values, abs=1e-5)


def test_a_programme_by_hand() -> None:
    # `small` earns .4 for 1 USD, `large` .9 for 3. Two turns with 4.6 USD: one of each, 4 USD, and no one starves.
    found = programme(samples(), PLAN, [(0.0, 0.0)])
    at = np.array([np.interp(4.6, found.budgets_usd, found.values[0, 0, 2, 2, :, i]) for i in range(3)])
    assert at[[QUALITY, SPEND]] == pytest.approx([1.3, 4.0], abs=0.1)
    assert at[STARVED] == pytest.approx(0.0, abs=0.02)
    assert found.values[0, 0, 2, 2, 0] == pytest.approx([0.0, 0.0, 1.0])


def test_one_turn_backed_up_by_td_is_one_turn_of_the_programme() -> None:
    made = varied(input_usd=np.array([1e-4, 1e-4]), cached_usd=np.array([1e-5, 1e-5]))
    statistics = catalogue_statistics_of(made, np.zeros(3))
    taught = training_set_of(made, statistics)
    none = jnp.array([0.0])
    terms = Later(jnp.array([1.0]), none, none, jnp.array([2]), none, none)
    drawn = Drawn(terms, taught.catalogue.cached_usd[None], jnp.arange(8)[None])
    found = jax.jit(back_up)(value_network.init(jax.random.key(0), TINY), taught, drawn).curves
    exact = programme(made, PlanConfig(turns=1, money_points=400, contexts_tokens=(0.0,)), [(0.0, 0.0)])
    for part, curve in ((QUALITY, found.quality), (SPEND, found.spend_usd), (STARVED, found.starved)):
        wanted = np.interp(np.asarray(found.money_usd[0]), exact.budgets_usd, exact.values[0, 0, 2, 1, :, part])
        assert np.asarray(curve[0]) == pytest.approx(wanted, abs=0.03)


def test_what_is_drawn_is_what_the_config_says() -> None:
    taught = training_set_of(varied(), catalogue_statistics_of(varied(), np.zeros(3)))
    fit, relabel = FitConfig(groups=512, rows=2), RelabelConfig()
    drawn = jax.jit(draw, static_argnums=(2, 3, 4))(jax.random.key(0), taught, fit, relabel, 16)
    later = jax.tree.map(np.asarray, drawn.later)
    assert set(np.unique(later.turns)) == set(np.arange(1.0, 17.0))
    assert (later.lambda_per_usd == 0).mean() == pytest.approx(relabel.lambda_zero_fraction, abs=0.08)
    assert (later.penalty == 0).mean() == pytest.approx(relabel.bold_fraction, abs=0.08)
    assert later.penalty.max() <= relabel.penalty_high * 1.001
    assert (later.grown_tokens[later.context_tokens == 0] == 0).all()


def test_the_lower_bound_serves_and_is_learned_from() -> None:
    statistics = catalogue_statistics_of(varied(), np.array([0.1, 0.3, 0.5]))
    plain = catalogue_statistics_of(varied(), np.zeros(3))
    assert (statistics.quality < plain.quality).all()
    assert np.asarray(training_set_of(varied(), statistics).quality) == pytest.approx(
        np.clip(varied().quality - np.array([0.1, 0.3]), 0.0, 1.0), abs=1e-6
    )


def test_a_warm_start_learns_the_programme() -> None:
    made, fit = varied(), FitConfig(warm_steps=200, steps=0, encoder=8, hidden=16, warm_rate=1e-2)
    layers = value_network.init(jax.random.key(0), Sizes(encoder=8, hidden=16))
    statistics = catalogue_statistics_of(made, np.zeros(3))
    _, curve = value_curves.teach(
        layers, made, statistics, fit, RelabelConfig(), PlanConfig(turns=3), jax.random.key(1)
    )
    assert curve[-1]["warm/curves/loss"] < 0.5 * curve[0]["warm/curves/loss"]
    cells = tables_of(made, training_set_of(made, statistics).catalogue, PlanConfig(turns=3), 250.0)
    assert float(cells.weights.sum()) == pytest.approx(1.0, abs=1e-5)
    assert price_pairs(1.0)[0] == (0.0, 0.0)


def test_the_generic_checkpoint_is_a_function_of_its_seed() -> None:
    tiny = PretrainConfig(catalogues=2, curves=8, steps=4, batch_size=8, samples=6, money_points=8, turns=3, sizes=TINY)
    first, again, other = (pretrain(tiny, seed) for seed in (0, 0, 1))
    assert all(
        (np.asarray(a) == np.asarray(b)).all() for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True)
    )
    assert any(
        (np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True)
    )


@pytest.mark.parametrize("seed", range(5))
def test_random_catalogues_are_such_as_could_be(seed: int) -> None:
    made = random_samples(np.random.default_rng(seed), 20)
    assert 2 <= len(made.models) <= 8
    assert (made.bills_usd > 0).all()
    assert (np.diff(made.bills_usd, axis=-1) >= 0).all()
    assert ((made.quality >= 0) & (made.quality <= 1)).all()
    target = random_target(
        np.random.default_rng(seed), PretrainConfig(curves=8, samples=6, money_points=8, turns=3, sizes=TINY)
    )
    assert target.curves.quality.shape == (8, KNOTS)
    assert all(np.isfinite(x).all() for x in target.curves)
