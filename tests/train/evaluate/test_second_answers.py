"""Second answers in the estimates: every outcome of the draws, weighed by its probability, gives the truth."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from policy.features import CANDIDATE_DIM, STATE_DIM
from train.evaluate.simulate import chances, of_seconds, turnwise
from train.log.episodes import Episodes, blank_episodes

TRUTH = np.array([0.9, 0.3, 0.6])
SHARE, SAMPLE = Fraction(1, 2), Fraction(1, 2)
BROKEN = (Fraction(1), Fraction(1), Fraction(1, 2))
"""Share of each model's second answers that get a grade."""
CONTEXTS: tuple[tuple[tuple[Fraction, ...], bool], ...] = (
    ((Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)), True),
    ((Fraction(3, 4), Fraction(1, 4), Fraction(0)), True),
    ((Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)), False),  # one that nobody can answer again
)
ROWS = 64


def outcomes(mu: tuple[Fraction, ...], can: bool) -> list[tuple[int, bool, int | None, bool, int]]:
    """(first, graded, second, graded, of ROWS times) of every outcome: first drawn by mu, second and judge apart."""
    found: list[tuple[int, bool, int | None, bool, Fraction]] = []
    share = SHARE if can else Fraction(0)
    for first, drawn, sampled in product(range(3), (False, True), (False, True)):
        p = mu[first] * (share if drawn else 1 - share) * (SAMPLE if sampled else 1 - SAMPLE)
        if not drawn:
            found.append((first, sampled, None, False, p))
            continue
        for second in {0, 1, 2} - {first}:
            for graded in (False, True):
                q = BROKEN[second] if graded else 1 - BROKEN[second]
                found.append((first, True, second, graded, p / 2 * q))
    return [(a, b, c, d, int(p * ROWS)) for a, b, c, d, p in found if p]


def every_outcome() -> tuple[Episodes, np.ndarray]:
    """A log of one-turn sessions in which each outcome occurs as often as it is likely; and the context of each."""
    rows = [
        (i, outcome) for i, context in enumerate(CONTEXTS) for outcome in outcomes(*context) for _ in range(outcome[4])
    ]
    names = [f"s{i}" for i in range(len(rows))]
    e = blank_episodes(names, ["t"] * len(rows), ("a", "b", "c"), ("p",), (len(rows), 1, 3, STATE_DIM, CANDIDATE_DIM))
    e.valid[:] = e.mask[:] = e.offered[:] = True
    e.model[:] = np.arange(3)
    for row, (i, (first, graded, second, second_graded, _)) in enumerate(rows):
        mu, can = CONTEXTS[i]
        e.probabilities[row, 0] = [float(x) for x in mu]
        e.propensity[row, 0], e.action[row, 0] = float(mu[first]), first
        e.second[row, 0] = [float((1 - x) * SHARE / 2) if can else 0.0 for x in mu]
        e.reward[row, 0] = TRUTH[first] if graded else np.nan
        if second is not None and second_graded:
            e.scores[row, 0, second] = TRUTH[second]
    return e, np.array([i for i, _ in rows])


def estimate(e: Episodes, pi: list[float], grades: np.ndarray) -> np.ndarray:
    probabilities = np.broadcast_to(np.array(pi), e.mask.shape).astype(np.float64)
    logged = turnwise(e, probabilities, e.valid, grades, 1e9)
    seconds = of_seconds(e, probabilities, grades, 1e9)
    return np.asarray((logged.v + logged.ratio * (logged.reward - logged.q) + seconds)[:, 0])


@pytest.mark.parametrize("pi", [[1, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5]])
@pytest.mark.parametrize("predicted", [[0.5, 0.5, 0.5], [0.1, 0.9, 0.2]])
def test_over_all_outcomes_the_estimate_is_the_truth_whatever_the_model_predicts(
    pi: list[float], predicted: list[float]
) -> None:
    e, context = every_outcome()
    assert len(e.session_ids) == ROWS * len(CONTEXTS)
    grades = np.broadcast_to(np.array(predicted), e.mask.shape).astype(np.float64)
    for i in range(len(CONTEXTS)):
        assert estimate(e, pi, grades)[context == i].mean() == pytest.approx(np.dot(pi, TRUTH), abs=1e-6)


def test_a_model_that_never_serves_is_known_by_its_second_answers_alone() -> None:
    e, context = every_outcome()
    grades = np.full(e.mask.shape, 0.5)
    never = context == 1  # the third model has no probability there
    assert estimate(e, [0, 0, 1], grades)[never].mean() == pytest.approx(0.6, abs=1e-6)
    without = replace(e, second=np.zeros_like(e.second), scores=np.full_like(e.scores, np.nan))
    assert estimate(without, [0, 0, 1], grades)[never].mean() == pytest.approx(0.5)


def test_by_hand_the_chance_of_a_grade() -> None:
    """mu = 1/2, 1/4, 1/4; half of the turns have a second answer, each other model's as often; firsts are graded in
    half of the turns and in all with a second answer: 3/4. So of the first model 1/2 * 3/4 + 1/2 * 1/4 = 1/2, of the
    second 1/4 * 3/4 + 3/4 * 1/4 = 3/8, of the third, half of whose second answers fail, 3/16 + 3/32 = 9/32."""
    e, context = every_outcome()
    share = np.isfinite(e.reward).mean()
    found = chances(e)[context == 0][0, 0] * share
    assert found == pytest.approx([1 / 2, 3 / 8, 9 / 32], abs=1e-6)


def test_without_second_answers_the_chance_is_the_probability_to_serve() -> None:
    e, _ = every_outcome()
    plain = replace(e, second=np.zeros_like(e.second), scores=np.full_like(e.scores, np.nan))
    assert chances(plain).tolist() == plain.probabilities.astype(np.float64).tolist()
