"""The gate over many simulated nights: how often a policy that is no better, or worse, would have been promoted."""

from __future__ import annotations

import numpy as np
import pytest

from tests.harness.gate_months import NIGHTS, a_month
from tests.harness.gate_trials import Half, a_night_without_feedback, an_uneven_night, promoted_of
from train.evaluate.ope import Interval, known_noise, widen


@pytest.mark.parametrize(("sessions", "floor"), [(150, 0.05), (300, 0.02), (300, 0.3)])
@pytest.mark.parametrize("gain", [0.0, -0.05])
def test_of_200_policies_that_are_no_better_or_worse_by_five_points_at_most_five_percent_are_promoted(
    sessions: int, floor: float, gain: float
) -> None:
    assert promoted_of(200, sessions=sessions, floor=floor, gain=gain) <= (10 if gain == 0.0 else 2)


@pytest.mark.parametrize("graded", [0.1, 0.5])
@pytest.mark.parametrize("gain", [0.0, -0.05])
def test_a_log_with_few_grades_promotes_no_more_policies_that_are_no_better(gain: float, graded: float) -> None:
    assert promoted_of(100, sessions=300, floor=0.3, gain=gain, graded=graded) <= (5 if gain == 0.0 else 1)


@pytest.mark.parametrize(
    ("halves", "over_time", "predicted"),
    [
        ((Half(0.5, 0.0, gradable=False), Half(0.1, 0.2)), False, 0.6),  # half cannot be graded
        ((Half(0.02, 0.05), Half(0.5, 0.5)), True, 0.8),  # the judge's sample was raised
    ],
)
def test_uneven_grading_shows_no_gain_of_a_policy_that_is_no_better(
    halves: tuple[Half, Half], over_time: bool, predicted: float
) -> None:
    """Second answers in the estimate, with one graded share per model, found 20 and 16 of 100 such gains certain."""
    nights = [
        an_uneven_night(seed, halves, sessions=1_500, over_time=over_time, predicted=predicted) for seed in range(100)
    ]
    means = np.array([night.gain.mean for night in nights])
    assert sum(night.gain.low > 0.0 for night in nights) <= 5
    assert abs(means.mean()) < 3.0 * means.std() / np.sqrt(len(means))


def test_poor_answers_alone_promote_no_worse_policy_and_feedback_shows_its_loss() -> None:
    silent = [a_night_without_feedback(seed, 0.0) for seed in range(20)]
    assert [night.gain.low > 0.0 for night in silent] == [False] * 20
    means = np.array([a_night_without_feedback(seed, 0.05).gain.mean for seed in range(20)])
    assert abs(means.mean() + 0.045) < 3.0 * means.std() / np.sqrt(20)


@pytest.mark.parametrize("candidates", [1, NIGHTS])
def test_no_night_of_a_month_promotes_a_policy_that_is_worse_by_five_points(candidates: int) -> None:
    months = [a_month(seed, gain=-0.05, candidates=candidates) for seed in range(10)]
    assert [month for month in months if any(month.values())] == []


def test_a_bound_that_holds_for_all_nights_at_once_waits_longer_for_a_better_policy() -> None:
    months = [a_month(seed, gain=0.05, candidates=1) for seed in range(10)]
    nights = {test: [month[test] or NIGHTS + 1 for month in months] for test in ("night", "sequence")}
    assert max(nights["sequence"]) <= NIGHTS
    assert np.mean(nights["night"]) < np.mean(nights["sequence"])


def test_a_policy_that_is_better_by_eight_points_is_promoted_where_the_log_explored() -> None:
    assert promoted_of(40, sessions=300, floor=0.3, gain=0.08) >= 36


def test_the_noise_of_the_log_follows_from_its_propensities() -> None:
    # The candidate takes b (mu .1), the incumbent a (mu .9), q .5: .9 (0 - 1/.9)^2 .25 + .1 (10)^2 .25 = .2778 + 2.5.
    one = np.array([[[0.0, 1.0]]])
    other, behaviour = np.array([[[1.0, 0.0]]]), np.array([[[0.9, 0.1]]])
    valid, grades = np.array([[True]]), np.full((1, 1, 2), 0.5)
    assert known_noise(one, other, behaviour, grades, valid, 100.0) == pytest.approx([0.25 / 0.9 + 2.5])
    assert known_noise(one, other, behaviour, grades, valid, 5.0) == pytest.approx([0.25 / 0.9 + 0.1 * 25 * 0.25])
    assert known_noise(one, one, behaviour, grades, valid, 100.0) == pytest.approx([0.0])


def test_an_interval_is_widened_only_where_the_known_noise_reaches_further() -> None:
    # 2 * 1 / sqrt(4) = 1 to both sides of the mean.
    assert widen(Interval(0.0, -0.5, 3.0), 1.0, 4, 2.0) == Interval(0.0, -1.0, 3.0)
