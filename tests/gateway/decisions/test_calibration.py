"""Calibration and drift on turns whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.decisions.calibration import Calibration, calibrate
from gateway.decisions.savings import RoutedTurn


def turn(number: int, billed: int, score: float | None = None, quality: float | None = 0.8, **more: Any) -> RoutedTurn:
    candidates = [{"model": "small", "cost_nano_usd": 100, "quality": quality}]
    fields: dict[str, Any] = {"model": "small", "candidates": candidates, "at_ms": number}
    return RoutedTurn(
        tenant_id="t", session_id=f"s{number // 2}", billed_nanousd=billed, propensity=1.0, score=score,
        **(fields | more),
    )  # fmt: skip


def noisy(change: float, worse: float) -> Calibration:
    generator = np.random.default_rng(11)
    return calibrate([
        turn(n, round(100 * (1 + change * (n >= 200)) * generator.gamma(400.0, 0.0025)),
             float(generator.random() < 0.8 - worse * (n >= 200)))
        for n in range(400)
    ])  # fmt: skip


def test_bills_and_scores_are_compared_with_what_was_predicted() -> None:
    found = calibrate([turn(0, 150, 0.5), turn(1, 50, 0.7), turn(2, 400)])
    [model] = found.models
    assert (model.turns, model.cost_ratio, model.graded) == (3, 2.0, 2)
    assert model.predicted_quality == pytest.approx(0.8)
    assert model.score == pytest.approx(0.6)
    assert (model.cost_drift, model.score_drift, model.drifted) == (None, None, False)
    [bin_of_08] = found.bins
    assert bin_of_08.turns == 2
    assert bin_of_08.score == pytest.approx(0.6)


def test_drift_needs_size_and_certainty() -> None:
    assert not noisy(0.0, 0.0).models[0].drifted
    costlier = noisy(0.5, 0.0).models[0]
    assert costlier.drifted
    assert costlier.cost_drift == pytest.approx(0.5, abs=0.1)
    worse = noisy(0.0, 0.4).models[0]
    assert worse.drifted
    assert worse.score_drift == pytest.approx(-0.4, abs=0.12)
    assert not noisy(0.04, 0.0).models[0].drifted


def test_turns_without_predictions_say_nothing() -> None:
    assert calibrate([]).models == ()
    assert calibrate([turn(0, 100, model="gone")]).models == ()
    [unrated] = calibrate([turn(0, 100, 0.5, quality=None)]).models
    assert (unrated.graded, unrated.score) == (0, None)
