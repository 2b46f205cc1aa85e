"""The transition log: what is written of a decision is what was seen and what was drawn."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.decisions.log import describe_candidates, pending_row
from gateway.routing.router import Shadow, forced
from policy.facts import LOG_VERSION, LoggedColumns, observation_of, unpack
from policy.features import encode
from policy.mdp import COST_LEVELS, Decision, Observation
from policy.rules import Random, Strongest
from tests.policy.observations import candidate, observation, random_observation

SEEN = observation(
    [candidate("small", 0.001, 0.6), replace(candidate("big", 0.01, 0.9), feasible=False, why_not="lacks vision")],
    lambda_per_usd=2.0,
)
NAMES = {
    "model", "feasible", "why_not", "probability", "quality", "cost_nano_usd", "cost_quantiles_nano_usd", "q_quality",
    "q_cost",
}  # fmt: skip


def row(seen: Observation, decision: Decision, shadow: Shadow | None = None) -> dict[str, object]:
    return pending_row(
        seen, decision, uniform=0.25, requested_model="auto", endpoint="chat", request_text=None,
        shadow=shadow, now_ms=5,
    )  # fmt: skip


def test_candidates_are_described_by_the_documented_names() -> None:
    small, big = describe_candidates(SEEN, forced(SEEN, "capability"))
    assert set(small) == NAMES
    assert (small["model"], small["feasible"], small["why_not"], small["probability"]) == ("small", True, None, 1.0)
    assert small["cost_nano_usd"] == 1_000_000
    assert small["cost_quantiles_nano_usd"] == [1_000_000] * len(COST_LEVELS)
    assert small["quality"] == pytest.approx(0.6)
    assert (big["feasible"], big["why_not"], big["probability"]) == (False, "lacks vision", 0.0)
    assert big["q_quality"] is big["q_cost"] is None


def test_the_row_holds_the_draw_and_the_facts_the_policy_saw() -> None:
    decision = forced(SEEN, "capability")
    made = row(SEEN, decision, Shadow("trial", "big"))
    assert (made["model"], made["action"], made["propensity"], made["reason"]) == ("small", 0, 1.0, "capability")
    assert (made["uniform"], made["lambda_per_usd"], made["expected_turns"]) == (0.25, 2.0, 4)
    assert (made["shadow_policy_id"], made["shadow_model"]) == ("trial", "big")
    assert made["feature_version"] == LOG_VERSION
    features, candidate_features = made["features"], made["candidate_features"]
    assert isinstance(features, bytes)
    assert isinstance(candidate_features, bytes)
    columns = LoggedColumns(
        names=["small", "big"],
        cost_quantiles_usd=[candidate.cost_quantiles_usd for candidate in SEEN.candidates],
        exclusions=["", "lacks vision"],
        budget_usd=SEEN.session.budget_usd,
        remaining_usd=SEEN.session.remaining_usd,
        expected_turns=4,
        lambda_per_usd=2.0,
    )
    read = observation_of(unpack(features, candidate_features), columns)
    assert [candidate.feasible for candidate in read.candidates] == [True, False]
    np.testing.assert_array_equal(encode(read).state, encode(SEEN).state)
    np.testing.assert_array_equal(encode(read).candidates, encode(SEEN).candidates)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0, exclude_max=True))
def test_the_logged_propensity_is_the_logged_probability_of_the_logged_model(seed: int, uniform: float) -> None:
    seen = random_observation(np.random.default_rng(seed))
    for policy in (Random(), Strongest()):
        made = row(seen, policy.decide(seen, uniform))
        described = orjson.loads(made["candidates"])  # type: ignore[arg-type]
        action = made["action"]
        assert isinstance(action, int)
        assert described[action]["model"] == made["model"]
        assert described[action]["feasible"]
        assert described[action]["probability"] == pytest.approx(made["propensity"])
        assert sum(c["probability"] for c in described) == pytest.approx(1.0)
        assert all(c["probability"] == 0.0 for c in described if not c["feasible"])
