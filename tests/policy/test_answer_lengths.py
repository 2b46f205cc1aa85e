"""The predicted length of an answer: its equation by hand, its order, and what a checkpoint may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.answer_lengths import MEDIAN, MOST_LOG_TOKENS, AnswerLengths, log_tokens
from policy.checkpoint import layers_as_part, load, save
from policy.features import STATE_DIM
from policy.learned import lengths_from
from policy.manifest import CheckpointError, Recipe
from policy.mdp import COST_LEVELS
from tests.policy.networks import SMALL, layers

F32 = np.float32
L = len(COST_LEVELS)


def head(**changes: Any) -> AnswerLengths:
    """`small` answers with 100 tokens at the median and `large` with 400; every level is a tenth apart."""
    steps = 0.1 * (np.arange(L) - MEDIAN)
    arrays = {
        "centre": np.zeros(STATE_DIM), "scale": np.ones(STATE_DIM), "weights": np.zeros((STATE_DIM, 2)),
        "widths": np.zeros(STATE_DIM), "offset": np.zeros(1),
        "quantiles": np.log([[100.0], [400.0]]) + steps, "known": np.ones(2),
    } | changes  # fmt: skip
    return AnswerLengths.from_arrays(("small", "large"), {name: x.astype(F32) for name, x in arrays.items()})


def state(columns: dict[int, float] | None = None) -> np.ndarray[Any, Any]:
    found = np.zeros(STATE_DIM, F32)
    for at, value in (columns or {}).items():
        found[at] = value
    return found


def test_without_weights_every_turn_has_the_models_own_quantiles() -> None:
    found = head().by_model(state({3: 2.0}))
    assert found["small"][MEDIAN] == pytest.approx(100.0, rel=1e-5)
    assert found["large"][MEDIAN + 1] == pytest.approx(400.0 * np.exp(0.1), rel=1e-5)


def test_the_equation_by_hand() -> None:
    # Median 2, shift .5, stretch 2: one level above the median lies 2 * .1 higher.
    quantiles = np.array([2.0 + 0.1 * (np.arange(L) - MEDIAN)])
    found = log_tokens(quantiles, np.array([0.5]), np.array(2.0))
    assert found[0, MEDIAN] == pytest.approx(2.5)
    assert found[0, MEDIAN + 1] == pytest.approx(2.7)


def test_a_turn_moves_the_median_of_each_model_and_the_width_of_all() -> None:
    weights, widths = np.zeros((STATE_DIM, 2)), np.zeros(STATE_DIM)
    weights[3], widths[4] = [0.5, -0.25], np.log(2.0)
    found = head(weights=weights, widths=widths).by_model(state({3: 2.0, 4: 1.0}))
    assert found["small"][MEDIAN] == pytest.approx(100.0 * np.e, rel=1e-5)
    assert found["large"][MEDIAN] == pytest.approx(400.0 * np.exp(-0.5), rel=1e-5)
    assert found["small"][MEDIAN + 1] == pytest.approx(100.0 * np.exp(1.0 + 0.2), rel=1e-5)


def test_levels_ascend_and_stay_finite_whatever_the_turn() -> None:
    rng = np.random.default_rng(0)
    wild = head(weights=rng.standard_normal((STATE_DIM, 2)), widths=rng.standard_normal(STATE_DIM))
    tokens = wild.tokens(1e6 * rng.standard_normal((50, STATE_DIM)))
    assert np.isfinite(tokens).all()
    assert (np.diff(tokens, axis=-1) >= 0.0).all()


def test_a_model_with_too_few_turns_has_no_prediction() -> None:
    assert set(head(known=np.array([1.0, 0.0])).by_model(state())) == {"small"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.zeros((STATE_DIM, 3))}, "lengths/weights"),
        ({"quantiles": np.zeros((2, L)) - np.arange(L)}, "ascending"),
        ({"quantiles": np.full((2, L), MOST_LOG_TOKENS + 1)}, "ascending"),
    ],
)
def test_impossible_arrays_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(**changes)


def test_a_checkpoint_without_models_has_no_head(tmp_path: Path) -> None:
    plain = {"network": layers_as_part(layers(0, SMALL))}
    save(tmp_path / "without", Recipe("without", sizes=SMALL), plain)
    assert lengths_from(load(tmp_path / "without")) is None
    with pytest.raises(CheckpointError, match="lengths"):
        save(tmp_path / "no-models", Recipe("no-models", sizes=SMALL), plain | {"lengths": head().arrays()})


def test_a_head_survives_a_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    quality = {
        "centre": np.zeros(STATE_DIM), "scale": np.ones(STATE_DIM), "landmarks": rng.standard_normal((4, STATE_DIM)),
        "width": np.ones(1), "means": np.full(2, 0.5), "weights": np.zeros((4, 3)), "offset": np.zeros(3),
    }  # fmt: skip
    parts = {"quality": {name: x.astype(F32) for name, x in quality.items()}, "lengths": head().arrays()}
    save(tmp_path / "tuned", Recipe("tuned", rule="tuned-lambda", models=("small", "large")), parts)
    found = lengths_from(load(tmp_path / "tuned"))
    assert found is not None
    assert found.by_model(state()) == head().by_model(state())
    broken = parts | {"lengths": head().arrays() | {"quantiles": np.zeros((2, 3), F32)}}
    with pytest.raises(CheckpointError, match="lengths/quantiles"):
        save(tmp_path / "broken", Recipe("broken", rule="tuned-lambda", models=("small", "large")), broken)
