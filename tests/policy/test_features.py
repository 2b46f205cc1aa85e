from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from msgspec.structs import replace

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
        for array in (encoded.state, encoded.candidates):
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


def test_many_turns_at_once_are_encoded_as_each_alone() -> None:
    rng = np.random.default_rng(4)
    seen = [random_observation(rng, most_candidates=5) for _ in range(50)]
    none = float("nan")
    facts: dict[str, list[float]] = {
        name: [float(getattr(o.session, name)) for o in seen]
        for name in ("turn", "tokens_so_far", "failures", "regenerations", "tool_errors", "tool_loop")
    }
    facts |= {name: [none if (x := getattr(o.session, name)) is None else x for o in seen]
              for name in ("last_quality", "mean_quality")}  # fmt: skip
    facts["seconds_since_last"] = [-1.0 if (x := o.session.seconds_since_last) is None else x for o in seen]
    facts["expected_turns"] = [o.session.expected_turns or 0 for o in seen]
    facts["input_tokens"] = [max(c.input_tokens for c in o.candidates) for o in seen]
    facts["candidates"] = [len(o.candidates) for o in seen]
    found = features.encode_turns(np.stack([o.text for o in seen]), np.stack([o.text_stats for o in seen]), facts)
    assert found == pytest.approx(np.stack([features.encode_state(o) for o in seen]), rel=1e-5, abs=1e-6)
