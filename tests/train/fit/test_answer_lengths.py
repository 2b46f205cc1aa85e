"""The fit of the answers' lengths: equations by hand, what it learns, and when it is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policy.answer_lengths import MEDIAN
from policy.features import STATE_DIM
from policy.mdp import COST_LEVELS
from train.fit.answer_lengths import (
    LEAST_OF_MODEL,
    Lengths,
    calibrate,
    fit_answer_lengths,
    lengths_of,
    log_quantiles,
    loss,
    pinball,
    shrunk_quantiles,
    train,
)
from train.log.episodes import blank_episodes

MODELS = ("small", "large", "rare")
L = len(COST_LEVELS)
Q90 = COST_LEVELS.index(0.9)


def drawn(count: int, seed: int, *, informative: bool = True) -> Lengths:
    """Column 0 says how long answers are, around 100 tokens on `small` and 300 on `large`; the rest is noise."""
    rng = np.random.default_rng(seed)
    state = 0.1 * rng.standard_normal((count, STATE_DIM))
    state[:, 0] = rng.standard_normal(count)
    model = rng.integers(0, 2, count)
    known = 0.8 * state[:, 0] if informative else 0.0
    log_tokens = np.log(np.array([100.0, 300.0]))[model] + known + 0.3 * rng.standard_normal(count)
    return Lengths(state, model, log_tokens, np.arange(count) // 3)


def test_pinball_by_hand() -> None:
    # An answer a nat above its q90 costs .9, one a nat below .1.
    quantiles = np.zeros((1, L))
    assert pinball(np.array([1.0]), quantiles)[0, Q90] == pytest.approx(0.9)
    assert pinball(np.array([-1.0]), quantiles)[0, Q90] == pytest.approx(0.1)


def test_the_loss_by_hand() -> None:
    # Quantiles 0, shift 2 * (.3 + .2) and an answer at 1: no error, both penalties of one turn.
    params = {"shared": np.array([0.3]), "own": np.array([[0.2]]), "widths": np.zeros(1), "offset": np.zeros(1)}
    found = loss(params, np.array([[2.0]]), np.array([1.0]), np.array([0]), np.zeros((1, L)), 1)
    assert float(found) == pytest.approx(0.3 * 0.09 + 3.0 * 0.04, abs=1e-6)


def test_quantiles_of_few_turns_are_mostly_those_of_all_models() -> None:
    # 50 turns weigh as much as the shared distribution.
    values = np.concatenate([np.linspace(0.0, 1.0, 951), np.full(50, 5.0)])
    model = np.array([0] * 951 + [1] * 50)
    found = shrunk_quantiles(values, model, 3)
    around = np.quantile(values - np.array([0.5, 5.0])[model], 0.9)
    assert found[1, Q90] == pytest.approx(0.5 * 5.0 + 0.5 * (5.0 + around))
    assert found[0, Q90] == pytest.approx(0.9, abs=0.01)
    assert found[2, MEDIAN] == pytest.approx((0.5 + 5.0) / 2, abs=0.01), "a model without turns lies among the others"


def test_the_head_learns_what_the_turn_says_and_is_calibrated() -> None:
    head, report = fit_answer_lengths(drawn(3_000, 0), MODELS, 0)
    assert head is not None
    assert report["held_out_loss"] < 0.6 * report["own_distribution_loss"]
    fresh = drawn(3_000, 1)
    within = fresh.log_tokens[:, None] <= np.log(head.tokens(fresh.state)[np.arange(3_000), fresh.model])
    for k in range(2):
        assert within[fresh.model == k, Q90].mean() == pytest.approx(0.9, abs=0.05)
    for name in ("small", "large"):
        assert report["coverage"][name]["q90"] == pytest.approx(0.9, abs=0.05)
    assert set(head.by_model(fresh.state[0])) == {"small", "large"}, "`rare` keeps its own distribution"


def test_turns_that_say_nothing_leave_no_head() -> None:
    head, report = fit_answer_lengths(drawn(1_200, 2, informative=False), MODELS, 0)
    assert head is None
    assert not report["kept"]


def test_a_short_log_leaves_no_head() -> None:
    assert fit_answer_lengths(drawn(200, 3), MODELS, 0) == (None, {"turns": 200, "models": 2, "kept": False})


def test_a_model_with_few_turns_is_left_out_of_a_long_log() -> None:
    turns = drawn(1_500, 4)
    model = turns.model.copy()
    model[: LEAST_OF_MODEL - 1] = 2
    head, report = fit_answer_lengths(turns._replace(model=model), MODELS, 0)
    assert report["models"] == 2
    assert head is not None
    assert head.known.tolist() == [1.0, 1.0, 0.0]


def test_the_same_log_gives_the_same_head() -> None:
    first, again = (fit_answer_lengths(drawn(600, 5), MODELS, 7)[0] for _ in range(2))
    assert first is not None
    assert again is not None
    assert all(np.array_equal(x, again.arrays()[name]) for name, x in first.arrays().items())


def test_calibration_moves_the_median_by_the_median_error() -> None:
    turns = drawn(800, 6)
    head = train(turns, MODELS[:2], shrunk_quantiles(turns.log_tokens, turns.model, 2), 0)
    late = turns._replace(log_tokens=turns.log_tokens + 1.0)  # every answer is e times as long as it was
    before, after = (log_quantiles(calibrate(head, held), turns)[:, MEDIAN] for held in (turns, late))
    assert after - before == pytest.approx(1.0, abs=0.01)


def test_only_known_counts_of_the_logged_action_are_read() -> None:
    episodes = blank_episodes(("a", "b"), ("t", "t"), MODELS[:2], ("p",), (2, 2, 2, STATE_DIM, 3))
    changes: dict[str, Any] = {
        "valid": [[True, True], [True, False]], "output_tokens": [[50.0, np.nan], [0.0, 70.0]],
        "model": [[[1, 0], [0, 1]], [[0, 1], [0, 1]]], "action": [[0, 1], [0, 0]],
    }  # fmt: skip
    for name, value in changes.items():
        getattr(episodes, name)[...] = value
    found = lengths_of(episodes)
    assert np.exp(found.log_tokens) == pytest.approx([50.0])
    assert (found.model.tolist(), found.session.tolist()) == ([1], [0])
