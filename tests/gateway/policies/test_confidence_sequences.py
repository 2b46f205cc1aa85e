"""Bounds for looking at a trial again and again: the arithmetic by hand, and that they hold at all looks at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gateway.policies.confidence_sequences import Arm, anytime_quantile, compare

TWO = Arm(sessions=2, y=4.0, m=6.0, yy=10.0, ym=14.0, mm=20.0)
"""Two sessions: 1 of 2 turns, 3 of 4."""


def test_a_rate_is_a_ratio_of_sums_and_its_variance_counts_sessions() -> None:
    assert TWO.rate == pytest.approx(2 / 3)
    # Residuals 1 - 4/3 and 3 - 8/3: (1/9 + 1/9) * 2 / 1, over 6 turns squared.
    assert TWO.variance(0.0) == pytest.approx((2 / 9) * 2 / 36)
    assert TWO.variance(1.0) == pytest.approx(((2 / 9) * 2 + 1) / 36)


def test_of_one_session_or_none_nothing_is_known() -> None:
    assert math.isinf(Arm(1, 1.0, 1.0, 1.0, 1.0, 1.0).variance(1.0))
    bounds = compare(Arm(), TWO, alpha=0.05, best_at=100)
    assert (bounds.low, bounds.high) == (-math.inf, math.inf)


def test_the_quantile_is_the_paper_s() -> None:
    # k = -2 ln .1 + ln(-2 ln .1) + 1 = 7.1323; sqrt(2 * 8.1323 / 7.1323 * ln(1 + 2.8517 / .1)) = 2.7783.
    assert anytime_quantile(100, 0.05, 100) == pytest.approx(2.7783, abs=1e-4)
    assert anytime_quantile(100, 0.01, 100) > anytime_quantile(100, 0.05, 100) > 1.645


def test_a_scale_asks_whether_more_than_so_much_is_exceeded() -> None:
    bounds = compare(TWO, TWO, alpha=0.05, best_at=100, scale=1.5)
    assert bounds.mean == pytest.approx(2 / 3 - 1.0)
    error = math.sqrt(TWO.variance(0.0) * (1 + 1.5**2))
    assert bounds.high - bounds.mean == pytest.approx(error * anytime_quantile(2, 0.05, 100))


def test_the_truth_leaves_the_bounds_at_any_of_many_looks_less_often_than_alpha() -> None:
    generator = np.random.default_rng(5)
    trials, sessions, strayed = 400, 1_000, 0
    looks = np.arange(30, sessions + 1, 10)
    for _ in range(trials):
        # Bills are skewed; the control has met nine times as many sessions. The true difference is 0.
        canary, control = generator.lognormal(0.0, 1.0, sessions), generator.lognormal(0.0, 1.0, 9 * sessions)
        one, many = (np.cumsum([x, x * x], axis=1) for x in (canary, control))
        for n in looks:
            arms = [
                Arm(int(k), sums[0, k - 1], float(k), sums[1, k - 1], sums[0, k - 1], float(k))
                for k, sums in ((n, one), (9 * n, many))
            ]
            if compare(*arms, alpha=0.05, best_at=100).low > 0.0:
                strayed += 1
                break
    assert strayed <= 0.05 * trials
