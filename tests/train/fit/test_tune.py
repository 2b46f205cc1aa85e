"""The dial between quality and starvation: the boldest price of starving that starves few enough."""

from __future__ import annotations

import itertools

import pytest

from train.config import TrainConfig
from train.fit.tune import PENALTIES, allowed_share, bisect_penalty, laplace


@pytest.mark.parametrize(
    ("most_starved", "found"),
    [(0.5, 0.0), (0.1, 4.0), (0.01, 40.0)],  # .4 / (1 + penalty) starve: at 3 just a tenth, at 4 .08
)
def test_the_boldest_price_that_starves_few_enough_is_found_in_few_trials(most_starved: float, found: float) -> None:
    asked: list[float] = []

    def at(penalty: float) -> float:
        asked.append(penalty)
        return 0.4 / (1.0 + penalty) + 1e-9

    dial = bisect_penalty(at, lambda share: share, most_starved)
    assert dial.calibrated == found
    assert len(asked) == len(set(asked)) <= 7
    assert list(dial.tried) == sorted(asked)


def test_prices_are_close_enough_to_miss_little() -> None:
    """Between 3 and 40 each is at most half as much again as the one before: one step doubled starvation."""
    assert all(after <= 1.5 * before for before, after in itertools.pairwise(PENALTIES) if before >= 3.0)


def test_a_night_tells_the_starved_share_that_it_calibrates_to() -> None:
    config = TrainConfig()
    most, sessions = config.plan.most_starved, config.ope.tuning_sessions
    assert allowed_share(most, sessions) == most
    passing = [starved for starved in range(10) if laplace(starved / sessions, sessions) <= most]
    assert passing == [0, 1], "more than none: another penalty than the most careful can pass"
    few = [starved for starved in range(3) if laplace(starved / 20, 20) <= allowed_share(most, 20)]
    assert few == [0]
