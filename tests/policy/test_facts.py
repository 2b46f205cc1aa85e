"""Facts of the log: what is packed comes back, and features of an old log are facts again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from policy.facts import CANDIDATE_FACTS, SESSION_FACTS, LoggedColumns, observation_of, pack, unpack
from policy.features import decode, encode
from policy.mdp import Observation
from policy.text import HASHED_SPACE
from tests.policy.observations import candidate, observation, random_observation


def columns_of(seen: Observation) -> LoggedColumns:
    return LoggedColumns(
        names=[c.name for c in seen.candidates],
        cost_quantiles_usd=[c.cost_quantiles_usd for c in seen.candidates],
        exclusions=["" if c.feasible else c.why_not or "infeasible" for c in seen.candidates],
        budget_usd=seen.session.budget_usd,
        remaining_usd=seen.session.remaining_usd,
        expected_turns=seen.session.expected_turns,
        lambda_per_usd=seen.lambda_per_usd,
    )


@given(st.integers(0, 2**32 - 1))
def test_an_unpacked_observation_encodes_to_the_same_bits(seed: int) -> None:
    seen = random_observation(np.random.default_rng(seed))
    read = observation_of(unpack(*pack(seen)), columns_of(seen))
    assert encode(read).mask.tolist() == seen.mask.tolist()
    np.testing.assert_array_equal(encode(read).state, encode(seen).state)
    np.testing.assert_array_equal(encode(read).candidates, encode(seen).candidates)


@given(st.integers(0, 2**32 - 1))
def test_decoded_features_encode_to_themselves(seed: int) -> None:
    seen = random_observation(np.random.default_rng(seed))
    longest = max(c.input_tokens for c in seen.candidates)
    seen = replace(seen, candidates=tuple(replace(c, input_tokens=longest) for c in seen.candidates))
    encoded = encode(seen)
    again = encode(observation_of(decode(encoded.state, encoded.candidates), columns_of(seen)))
    np.testing.assert_allclose(again.state, encoded.state, atol=1e-5)
    np.testing.assert_allclose(again.candidates, encoded.candidates, atol=1e-4)


def test_decoding_keeps_leading_axes() -> None:
    encoded = encode(observation([candidate("small", 0.001, 0.6), candidate("big", 0.01, 0.9)]))
    facts = decode(np.stack([encoded.state] * 3), np.stack([encoded.candidates] * 3))
    assert facts.session.shape == (3, len(SESSION_FACTS))
    assert facts.candidates.shape == (3, 2, len(CANDIDATE_FACTS))


def test_a_logged_candidate_has_the_effort_of_its_name() -> None:
    seen = observation([candidate("team#deep"), candidate("team#deep#low", effort="low")])
    read = observation_of(unpack(*pack(seen)), columns_of(seen))
    assert [c.effort for c in read.candidates] == [c.effort for c in seen.candidates]


def test_what_a_session_does_not_know_stays_unknown() -> None:
    seen = observation([candidate("small", 0.001, 0.6)])
    session = replace(seen.session, last_quality=None, mean_quality=0.25, seconds_since_last=None)
    read = observation_of(unpack(*pack(replace(seen, session=session))), columns_of(seen))
    assert (read.session.last_quality, read.session.mean_quality) == (None, 0.25)
    assert read.session.seconds_since_last is None


def test_the_space_of_the_text_and_the_route_come_back_and_version_2_had_neither() -> None:
    seen = replace(observation([candidate("small", 0.001, 0.6)]), text_space=2**32 - 1, route=2**24 - 1)
    features, candidates = pack(seen)
    read = observation_of(unpack(features, candidates), columns_of(seen))
    assert (read.text_space, read.route) == (seen.text_space, seen.route)
    before = observation_of(unpack(features[:-16], candidates), columns_of(seen))
    assert (before.text_space, before.route) == (HASHED_SPACE, 0)
    np.testing.assert_array_equal(encode(before).state, encode(read).state)


def test_bytes_of_another_length_are_refused() -> None:
    features, candidates = pack(observation([candidate("small", 0.001, 0.6)]))
    with pytest.raises(ValueError, match=f"got {len(features) - 1} and {len(candidates)}"):
        unpack(features[1:], candidates)
    with pytest.raises(ValueError, match="multiple of 88"):
        unpack(features, candidates[8:])


def test_text_of_another_size_is_refused() -> None:
    seen = observation([candidate("small", 0.001, 0.6)])
    with pytest.raises(ValueError, match="expected text"):
        pack(replace(seen, text=seen.text[:-1]))
