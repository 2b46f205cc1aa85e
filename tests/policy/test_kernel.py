"""The reward model that serves: one kernel row, one matrix, and a place for models that the log does not know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from policy.features import STATE_DIM
from policy.kernel import KernelQuality, PartedLandmarks, kernel
from policy.mdp import PolicyFault
from policy.text import TEXT_DIM
from tests.policy.observations import candidate, observation


def model(**changes: object) -> KernelQuality:
    """One landmark that every state stands on: kernel 1. small is .5 + .1, large .8 - .2, difficulty -.3."""
    made = KernelQuality(
        models=("small", "large"),
        centre=np.zeros(STATE_DIM, np.float32),
        scale=np.zeros(STATE_DIM, np.float32),
        landmarks=np.zeros((1, STATE_DIM), np.float32),
        width=np.ones(1, np.float32),
        means=np.array([0.5, 0.8], np.float32),
        weights=np.array([[0.1, -0.2, -0.3]], np.float32),
        offset=np.zeros(3, np.float32),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_kernel_is_one_at_a_landmark_and_falls_with_the_squared_distance() -> None:
    # |(3, 4)|^2 = 25, width 10: exp(-2.5).
    found = kernel(np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 0.0]]), np.array([10.0]))
    assert found[:, 0] == pytest.approx([1.0, np.exp(-2.5)])


def test_half_of_the_likeness_is_the_text_s_alone() -> None:
    # The texts are 3 apart, the rest 4: exp(-25 / 10) in all, exp(-9 / 4) of the text; the same text is half of it.
    zero, far, same_text = np.zeros((3, TEXT_DIM + 1))
    far[0], far[-1], same_text[-1] = 3.0, 4.0, 4.0
    found = kernel(np.stack([zero, far, same_text]), zero[None], np.array([10.0, 4.0]))
    expected = [1.0, (np.exp(-2.5) + np.exp(-2.25)) / 2, (np.exp(-1.6) + 1.0) / 2]
    assert found[:, 0] == pytest.approx(expected)


def test_known_models_are_found_by_name_in_any_order() -> None:
    seen = observation([candidate("large", prior=0.1), candidate("small", prior=0.1)])
    assert model().predict(seen) == pytest.approx([0.6, 0.6])
    assert model().average(seen) == pytest.approx([0.8, 0.5])


def test_a_newcomer_is_between_its_prior_and_the_known_models_and_bent_by_shared_difficulty() -> None:
    # Means .5 and .8, priors .1 too high both. Squares about the means: .045 of the qualities and 0 of the errors, .03
    # more each: (.9 - .1) is .15 above .65, of which .075 / .105 is believed. On this turn .3 less.
    seen = observation([candidate("small", prior=0.6), candidate("large", prior=0.9), candidate("new", prior=0.9)])
    assert model().average(seen)[2] == pytest.approx(0.65 + 0.15 * 0.075 / 0.105, abs=1e-4)
    assert model().predict(seen)[2] == pytest.approx(0.65 + 0.15 * 0.075 / 0.105 - 0.3, abs=1e-4)


def test_a_newcomer_s_prior_is_believed_less_the_further_the_known_priors_were_off() -> None:
    # Errors -.3 and +.1: -.1 on average, .08 about it.
    seen = observation([candidate("small", prior=0.8), candidate("large", prior=0.7), candidate("new", prior=0.9)])
    assert model().average(seen)[2] == pytest.approx(0.65 + 0.15 * 0.075 / (0.075 + 0.11), abs=1e-4)


def test_where_no_model_is_known_the_priors_stand_as_they_are() -> None:
    seen = observation([candidate("new", prior=0.7)])
    assert model().average(seen) == pytest.approx([0.7])
    assert model().predict(seen) == pytest.approx([0.4])


def test_predictions_stay_between_0_and_1() -> None:
    seen = observation([candidate("small")])
    assert model(offset=np.full(3, 5.0, np.float32)).predict(seen) == pytest.approx([1.0])
    assert model(offset=np.full(3, -5.0, np.float32)).predict(seen) == pytest.approx([0.0])


def test_arrays_come_back_and_foreign_shapes_are_refused() -> None:
    made = model()
    arrays = made.arrays()
    back = KernelQuality.from_arrays(made.models, arrays)
    assert all((back.arrays()[name] == value).all() for name, value in arrays.items())
    with pytest.raises(ValueError, match="quality/weights"):
        KernelQuality.from_arrays(("small",), arrays | {"means": arrays["means"][:1]})
    with pytest.raises(ValueError, match="width"):
        KernelQuality.from_arrays(made.models, arrays | {"width": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match="width"):
        KernelQuality.from_arrays(made.models, arrays | {"width": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="quality/landmarks: expected numbers of at most 1e"):
        # 1e20 is finite in float32, its square is not.
        KernelQuality.from_arrays(made.models, arrays | {"landmarks": arrays["landmarks"] * 0 + np.float32(1e20)})
    with pytest.raises(ValueError, match="missing or unknown"):
        KernelQuality.from_arrays(made.models, {})


def test_an_observation_of_foreign_features_is_a_fault() -> None:
    seen = observation([candidate("small")])
    with pytest.raises(PolicyFault, match="encoded"):
        model().predict(structs.replace(seen, text=np.zeros(3, np.float32)))


@pytest.mark.parametrize("width", [[300.0, 200.0], [300.0]])
def test_one_turn_is_as_near_to_the_landmarks_as_among_many(width: list[float]) -> None:
    rng, widths = np.random.default_rng(0), np.array(width, np.float32)
    landmarks = rng.standard_normal((64, STATE_DIM)).astype(np.float32)
    states = np.vstack([rng.standard_normal((5, STATE_DIM)), landmarks[:1]]).astype(np.float32)
    parted = PartedLandmarks.of(landmarks, widths)
    assert np.stack([parted.near(x) for x in states]) == pytest.approx(kernel(states, landmarks, widths), abs=1e-6)
