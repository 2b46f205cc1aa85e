"""Expected against reported cached tokens, as the nightly report prints them."""

from __future__ import annotations

import numpy as np
import pytest

from policy.features import CANDIDATE_DIM, STATE_DIM, encode
from tests.policy.observations import candidate, observation
from train.log.episodes import Episodes, blank_episodes
from train.nightly.page import page
from train.nightly.prompt_caches import cache_calibration
from train.nightly.text_report import describe


def logged(reported: list[float], expected: int = 8_000) -> Episodes:
    """Turns of one session: the first candidate is warm and answers every even turn, the cold one the others."""
    turns = len(reported)
    episodes = blank_episodes(("s",), ("t",), ("cold", "warm"), ("p",), (1, turns, 2, STATE_DIM, CANDIDATE_DIM))
    seen = encode(
        observation(
            [
                candidate("warm", input_tokens=10_000, warm_tokens=expected),
                candidate("cold", input_tokens=10_000, warm_tokens=0),
            ]
        )
    )
    episodes.valid[:] = True
    episodes.state[:], episodes.candidates[:] = seen.state, seen.candidates
    episodes.model[:] = [1, 0]
    episodes.action[0] = np.arange(turns) % 2
    episodes.cached_tokens[0] = reported
    return episodes


@pytest.mark.parametrize(("reported", "calibrated"), [(8_000.0, True), (7_500.0, True), (2_000.0, False)])
def test_a_model_s_reported_share_is_told_for_the_turns_that_expected_any(reported: float, calibrated: bool) -> None:
    found = cache_calibration(logged([reported, 0.0] * 4))
    assert list(found) == ["warm"]
    assert (found["warm"]["turns"], found["warm"]["reported_tokens"]) == (4, 4 * reported)
    assert found["warm"]["expected_tokens"] == pytest.approx(32_000, rel=1e-3)
    assert found["warm"]["ratio"] == pytest.approx(reported / 8_000, abs=1e-3)
    assert found["warm"]["calibrated"] is calibrated
    report = {"date": "2026-11-30", "outcome": "keep", "prompt_caches": found}
    assert any(line.startswith("prompt cache of warm: ") for line in describe(report))
    assert f"{found['warm']['ratio']:.1%}" in page(report)


def test_turns_without_a_report_or_an_expectation_say_nothing() -> None:
    assert cache_calibration(logged([float("nan")] * 4)) == {}
    assert cache_calibration(logged([500.0] * 4, expected=0)) == {}
