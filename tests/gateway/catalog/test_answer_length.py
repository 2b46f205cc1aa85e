"""Forecasts of answer lengths: the prior at first, then what the model really does."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.answer_length import OutputForecast, quantile_of
from policy.mdp import COST_LEVELS

MEDIAN = COST_LEVELS.index(0.5)
LENGTHS = st.lists(st.integers(-5, 100_000), max_size=30)


def test_before_any_answer_the_prior_s_median_is_220_tokens_and_its_spread_a_factor_of_e() -> None:
    quantiles = OutputForecast().quantiles("small", 10**6)
    assert quantiles[MEDIAN] == pytest.approx(220.0)
    # 0.98 of a normal lies below 2.0537 deviations.
    assert quantiles[COST_LEVELS.index(0.98)] == pytest.approx(220.0 * math.exp(2.0537), rel=1e-3)
    assert len(quantiles) == len(COST_LEVELS)


def test_one_answer_moves_the_prior_by_a_ninth_and_counts_itself_for_one_in_26() -> None:
    """The log-normal's median is log 220 + log 10 / 9, the answer's log 220 + log 10: 25 parts and one."""
    forecast = OutputForecast()
    forecast.observe("small", 2_200)
    assert forecast.quantiles("small", 10**6)[MEDIAN] == pytest.approx(220.0 * 10 ** ((25 / 9 + 1) / 26))


def test_the_tail_of_many_answers_is_theirs_and_not_a_log_normal_s() -> None:
    """Nine in ten answers have 1 to 1,000 tokens, none more than 1,100: nothing like e^(2.05 deviations)."""
    forecast = OutputForecast()
    for i in range(500):
        forecast.observe("small", 1_100 if i % 10 == 0 else round(10 ** (3 * (i % 97) / 97)))
    assert forecast.quantiles("small", 10**6)[COST_LEVELS.index(0.98)] < 1_500


def test_a_model_that_changes_forgets_how_it_was() -> None:
    forecast = OutputForecast()
    for length in [4_000] * 600 + [40] * 3_000:
        forecast.observe("small", length)
    quantiles = forecast.quantiles("small", 10**6)
    assert quantiles[0] == pytest.approx(40.0, rel=0.1)
    assert quantiles[-1] == pytest.approx(40.0, rel=0.1)


@pytest.mark.parametrize(("level", "expected"), [(0.5, 2.0), (0.0, 1.0), (1.0, 3.0), (0.35, 1.5)])
def test_the_quantile_of_a_sample_is_median_unbiased(level: float, expected: float) -> None:
    """Of 1, 2, 3: place .35 * (3 + 1/3) + 1/3 = 1.5, halfway between the first and the second."""
    assert quantile_of([1.0, 2.0, 3.0], level) == pytest.approx(expected)


def test_many_answers_of_one_length_are_expected_again() -> None:
    forecast = OutputForecast()
    for _ in range(3_000):
        forecast.observe("small", 40)
    quantiles = forecast.quantiles("small", 10**6)
    assert quantiles[MEDIAN] == pytest.approx(40.0, rel=0.01)
    assert quantiles[-1] < 60.0


def test_empty_answers_teach_nothing() -> None:
    forecast = OutputForecast()
    forecast.observe("small", 0)
    assert forecast.quantiles("small", 10**6) == OutputForecast().quantiles("small", 10**6)


def test_a_newcomer_is_expected_to_answer_like_a_draw_among_the_others_and_the_prior() -> None:
    """After 8 answers of 220 e^2 tokens, half of big's evidence is its own: it counts .5, the prior 1.

    Its mean log is log 220 + 1, its variance (8 * 1 + 8 * 8 / 16 * 2^2) / 16 = 1.5. Of the two, with weights 1 and .5,
    the mean is log 220 + 1/3, the variance of the means (1 (1/3)^2 + .5 (2/3)^2) / 1.5 = 2/9.
    """
    forecast = OutputForecast()
    for _ in range(8):
        forecast.observe("big", round(220 * math.exp(2)))
    quantiles = forecast.quantiles("new", 10**6)
    assert quantiles[MEDIAN] == pytest.approx(220.0 * math.exp(1 / 3), rel=1e-3)
    assert variance_log(quantiles) == pytest.approx((1.0 + 0.5 * 1.5) / 1.5 + 2 / 9, rel=1e-3)


def test_a_newcomer_among_models_that_answer_alike_is_expected_to_do_the_same() -> None:
    forecast = OutputForecast()
    for model in range(20):
        for _ in range(100):
            forecast.observe(f"model {model}", 4_000)
    assert forecast.quantiles("new", 10**6)[MEDIAN] == pytest.approx(4_000, rel=0.3)
    forecast.observe("new", 4_000)
    assert forecast.quantiles("new", 10**6)[MEDIAN] == pytest.approx(4_000, rel=0.3)


def test_a_model_s_own_answers_outweigh_the_others() -> None:
    forecast = OutputForecast()
    forecast.observe("big", 50_000)
    for _ in range(500):
        forecast.observe("small", 40)
    assert forecast.quantiles("small", 10**6)[MEDIAN] == pytest.approx(40.0, rel=0.15)


def variance_log(quantiles: tuple[float, ...]) -> float:
    """Variance of log tokens, by the 0.98 quantile of a normal, 2.0537 deviations above the median."""
    return ((math.log(quantiles[COST_LEVELS.index(0.98)]) - math.log(quantiles[MEDIAN])) / 2.0537) ** 2


def test_a_call_of_unknown_speed_generates_80_tokens_a_second() -> None:
    forecast = OutputForecast()
    assert forecast.generated("small", 1.5, 10**6) == 120
    assert forecast.generated("small", 1.5, 50) == 50
    assert forecast.generated("small", 0.0, 10**6) == forecast.generated("small", -1.0, 10**6) == 0


def test_the_speed_of_a_model_is_the_geometric_mean_of_what_was_seen_and_one_prior() -> None:
    forecast = OutputForecast()
    forecast.observe("small", 40, 2.0)
    # sqrt(80 * 20) = 40 tokens a second
    assert forecast.generated("small", 0.5, 10**6) == 20
    assert forecast.generated("big", 0.5, 10**6) == 40


def test_no_time_makes_an_answer_longer_than_such_answers_are() -> None:
    forecast = OutputForecast()
    for _ in range(3_000):
        forecast.observe("small", 40, 0.5)
    # All were 40 tokens long; the forecast keeps a deviation of a tenth, 2.0537 of them below the 0.98 quantile.
    # of which the last 500, all of 40, count for 20 parts in 21.
    assert forecast.generated("small", 60.0, 10**6) == math.ceil(40 * math.exp(0.20537 / 21))


@given(LENGTHS, st.integers(1, 10**6))
def test_quantiles_rise_are_positive_and_stay_below_the_limit(lengths: list[int], limit: int) -> None:
    forecast = OutputForecast()
    for length in lengths:
        forecast.observe("small", length)
    quantiles = forecast.quantiles("small", limit)
    assert all(0.0 < q <= limit for q in quantiles)
    assert list(quantiles) == sorted(quantiles)


@given(LENGTHS, st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_higher_limit_never_lowers_a_quantile(lengths: list[int], one: int, other: int) -> None:
    forecast = OutputForecast()
    for length in lengths:
        forecast.observe("small", length)
    low, high = sorted((one, other))
    pairs = zip(forecast.quantiles("small", low), forecast.quantiles("small", high), strict=True)
    assert all(a <= b for a, b in pairs)
