from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import features
from policy.mdp import COST_LEVELS, COST_MASSES
from policy.text import STATS_DIM, TEXT_DIM
from tests.policy.observations import candidate, observation, permuted, random_observation


def column(encoded: features.Encoded, name: str) -> list[float]:
    return [float(v) for v in encoded.candidates[:, features.CANDIDATE_FEATURES.index(name)]]


def test_the_masses_of_the_quantile_levels_cover_all_of_the_distribution() -> None:
    assert float(COST_MASSES.sum()) == pytest.approx(1.0)
    assert COST_MASSES[0] == pytest.approx(0.035)  # up to the midpoint of .02 and .05
    assert COST_MASSES[6] == pytest.approx(0.1)
    assert COST_MASSES[-1] == pytest.approx(0.0075)
    assert features.expected_cost_usd(np.array(COST_LEVELS)) == pytest.approx(0.5, abs=0.001)


def test_rows_come_from_prices_and_catalogue_alone() -> None:
    encoded = features.encode(
        observation(
            [
                candidate("a", 0.001, prior=0.5, input_tokens=1000, warm_tokens=250),
                candidate(
                    "b", 0.01, prior=0.9, served_last=True, input_usd_per_mtok=10.0, cached_input_usd_per_mtok=5.0
                ),
            ]
        )
    )
    assert encoded.candidates.shape == (2, features.CANDIDATE_DIM)
    assert encoded.state.shape == (features.STATE_DIM,)
    assert column(encoded, "quality_prior") == pytest.approx([0.5, 0.9])
    assert column(encoded, "prior_below_best") == pytest.approx([-0.4, 0.0])
    assert column(encoded, "log_input_price") == pytest.approx([0.0, 1 / 3], abs=1e-3)
    assert column(encoded, "cached_price_ratio") == pytest.approx([0.1, 0.5])
    assert column(encoded, "warm_share") == pytest.approx([0.25, 0.0])
    assert column(encoded, "served_last") == [0.0, 1.0]
    assert column(encoded, "log_mean_cost") == pytest.approx([0.0, 1 / 3], abs=1e-6)
    assert column(encoded, "cost_above_cheapest") == pytest.approx([0.0, np.log(10) / 5], abs=1e-6)
    # 750 cold tokens at .9 USD/Mtok saved, of a turn of .001 USD
    assert column(encoded, "switch_price")[0] == pytest.approx(0.675)


def test_a_models_name_changes_nothing() -> None:
    view = observation([candidate("a"), candidate("b", 0.01)])
    renamed = replace(view, candidates=tuple(replace(c, name=c.name * 5) for c in view.candidates))
    assert np.array_equal(features.encode(view).candidates, features.encode(renamed).candidates)
    assert np.array_equal(features.encode(view).state, features.encode(renamed).state)


def test_money_and_lambda_are_not_in_what_is_logged_as_state() -> None:
    view = observation([candidate(), candidate("b", 0.01)], remaining_usd=1.0, budget_usd=2.0, lambda_per_usd=1.0)
    poorer = observation(
        [candidate(), candidate("b", 0.01)],
        remaining_usd=0.1,
        budget_usd=0.2,
        lambda_per_usd=9.0,
        spent_usd=0.1,
        tenant_remaining_usd=0.05,
    )
    assert np.array_equal(features.encode(view).state, features.encode(poorer).state)
    assert np.array_equal(features.encode(view).candidates, features.encode(poorer).candidates)


def test_encoding_follows_the_order_of_the_candidates() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        view = random_observation(rng)
        order = rng.permutation(len(view.candidates)).tolist()
        one, other = features.encode(view), features.encode(permuted(view, order))
        assert one.candidates[order] == pytest.approx(other.candidates)
        assert np.array_equal(one.mask[order], other.mask)
        assert one.state == pytest.approx(other.state)


def test_random_observations_encode_to_finite_numbers_of_sane_size() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        view = random_observation(rng)
        encoded = features.encode(view)
        money, rows = features.money_features(
            view.session.remaining_usd,
            view.session.budget_usd,
            3.0,
            view.lambda_per_usd,
            encoded.cost_quantiles_usd,
            encoded.mask,
        )
        for array in (encoded.state, encoded.candidates, money, rows):
            assert np.isfinite(array).all()
            assert np.abs(array).max() < 10.0
            assert array.dtype == np.float32


def test_wrong_shapes_and_values_that_are_not_finite_are_refused() -> None:
    view = observation([candidate()])
    with pytest.raises(ValueError, match="quantiles"):
        features.encode(observation([candidate(cost_quantiles_usd=(1.0, 2.0))]))
    with pytest.raises(ValueError, match="text"):
        features.encode(replace(view, text=np.zeros(3, np.float32)))
    with pytest.raises(ValueError, match="finite"):
        features.encode(replace(view, text=np.full(TEXT_DIM, np.nan, np.float32)))
    with pytest.raises(ValueError, match="finite"):
        features.encode(observation([candidate(latency_s=float("nan"))]))
    assert features.encode(replace(view, text_stats=np.zeros(STATS_DIM, np.float32))).state.shape


def hand_worked() -> tuple[dict[str, float], dict[str, list[float]]]:
    """8 USD left of 10, four turns, lambda .1; two candidates of 1 and 4 USD (every quantile)."""
    quantiles = np.array([[1.0] * 15, [4.0] * 15], np.float32)
    money, rows = features.money_features(8.0, 10.0, 4.0, 0.1, quantiles)
    return (
        dict(zip(features.MONEY_FEATURES, money.tolist(), strict=True)),
        dict(zip(features.CANDIDATE_MONEY_FEATURES, rows.T.tolist(), strict=True)),
    )


def test_money_features_by_hand() -> None:
    money, rows = hand_worked()
    assert money["remaining_share"] == pytest.approx(0.8)
    assert money["rate_to_cheapest"] == pytest.approx(np.log(2.0) / 3)  # 2 USD a turn against 1
    assert money["rate_to_costliest"] == pytest.approx(np.log(0.5) / 3)
    assert money["rate_position"] == pytest.approx(1 / 3)
    assert money["turns_left"] == pytest.approx(np.log(5.0) / 3)
    assert money["lambda_cheapest"] == pytest.approx(np.log(11.0) / 5)
    assert money["lambda_costliest"] == pytest.approx(np.log(41.0) / 5)
    assert money["reserve_slack"] == pytest.approx(5 / 8)  # three later turns of 1 USD
    assert rows["cost_share"] == pytest.approx([(1 / 8) / (9 / 8), 0.5 / 1.5])
    assert rows["chance_over"] == pytest.approx([0.0, 0.0])
    assert rows["slack_after"] == pytest.approx([(8 - 1 - 3) / 8, (8 - 4 - 3) / 8])
    assert rows["lambda_extra"] == pytest.approx([0.0, np.log(31.0) / 5])
    assert rows["extra_share"] == pytest.approx([0.0, (12 / 8) / (20 / 8)])


def test_the_chance_of_overspending_is_the_mass_of_the_quantiles_beyond_the_budget() -> None:
    quantiles = np.array([[0.1] * 10 + [2.0] * 5], np.float32)
    _, rows = features.money_features(1.0, 1.0, 1.0, 0.0, quantiles)
    over = rows[0, features.CANDIDATE_MONEY_FEATURES.index("chance_over")]
    assert over == pytest.approx(1.0 - 0.85, abs=1e-6)  # from the midpoint of .8 and .9 on


def test_scaling_prices_and_budgets_together_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    quantiles = np.sort(rng.lognormal(-4, 1, (5, 15)).astype(np.float32), axis=-1)
    one = features.money_features(0.3, 0.5, 6.0, 4.0, quantiles)
    scaled = features.money_features(30.0, 50.0, 6.0, 0.04, quantiles * 100)
    assert one[0] == pytest.approx(scaled[0], abs=1e-4)
    assert one[1] == pytest.approx(scaled[1], abs=1e-4)


def test_jax_traces_the_very_lines_that_numpy_runs_and_batches_broadcast() -> None:
    rng = np.random.default_rng(6)
    quantiles = np.sort(rng.lognormal(-4, 1, (7, 4, 15)).astype(np.float32), axis=-1)
    mask = rng.random((7, 4)) < 0.7
    remaining = rng.random(7).astype(np.float32)

    def traced(left: jax.Array, cost: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
        found: tuple[jax.Array, jax.Array] = features.money_features(left, 1.0, 5.0, 2.0, cost, allowed, xp=jnp)
        return found

    whole = features.money_features(remaining, 1.0, 5.0, 2.0, quantiles, mask)
    by_jax = jax.jit(jax.vmap(traced))(remaining, quantiles, mask)
    for numpy_array, jax_array in zip(whole, by_jax, strict=True):
        assert numpy_array == pytest.approx(np.asarray(jax_array), abs=1e-5)
    assert not whole[1][~mask].any()


def test_padding_rows_change_no_money_feature() -> None:
    quantiles = np.array([[0.01] * 15, [0.02] * 15, [0.0] * 15], np.float32)
    money, rows = features.money_features(1.0, 1.0, 3.0, 1.0, quantiles[:2])
    padded, padded_rows = features.money_features(1.0, 1.0, 3.0, 1.0, quantiles, np.array([True, True, False]))
    assert np.array_equal(money, padded)
    assert np.array_equal(rows, padded_rows[:2])


def test_turns_left_by_hand() -> None:
    horizon = features.Horizon((0.0, 0.5, 0.25))
    # at turn 2 and later 1/.25 = 4; at turn 1: 1 + .5*4 = 3; at turn 0: 1 + 3 = 4
    assert [horizon.turns_left(t, None) for t in (0, 1, 2, 9)] == [4.0, 3.0, 4.0, 4.0]
    assert horizon.turns_left(2, 8) == 6.0
    assert horizon.turns_left(8, 8) == 2.0  # declared and passed
    assert features.DEFAULT_HORIZON.turns_left(0, None) == pytest.approx(6.0)


def test_available_money_is_the_least_of_session_and_tenant_and_never_negative() -> None:
    view = observation([candidate()], remaining_usd=2.0, tenant_remaining_usd=0.5).session
    assert features.available_usd(view) == 0.5
    assert features.available_usd(replace(view, remaining_usd=-1.0)) == 0.0


def test_rules_features_and_reload_import_without_jax() -> None:
    lines = (
        "import sys, policy.rules, policy.features, policy.fallback, policy.reload, policy.checkpoint\n"
        "assert not {'jax', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", lines], check=True)
