"""Learned reward model of the served policies: expected score of each model at this turn.

    score(x, k) = mean_k + offset_k + of_route_k + sum_r K(s(x), z_r) w_rk,    clipped to [0, 1]
    K(s, z) = (exp(-|s - z|^2 / width) + exp(-|text of s - text of z|^2 / text width)) / 2

s scales the state, z_r are landmarks from the log (Nystrom features: Williams & Seeger 2001), the weights come from
ridge regression (train/fit/reward_model.py). Half of the kernel uses the text alone: a turn's topic distinguishes
models even where its length and its place in the session are unusual (docs/decisions/0025). The last column is the
difficulty shared by all models: a model missing from the log has its prior, moved towards the known models
(`with_newcomers`) and bent by that difficulty. A client's route (its system prompt and tools) has an offset, partially
pooled by the same ridge regression; one that the log does not know has none. NumPy only: some tens of microseconds,
without importing JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F32, Bools
from policy.features import STATE_DIM, encode_state
from policy.mdp import Observation, PolicyFault
from policy.text import TEXT_DIM

MAX_LANDMARKS = 1024
MAX_MODELS = 256
MAX_ROUTES = 256
PRIOR_ERROR = 0.1
"""Deviation of a prior taken from another benchmark, after their common error: .10 to .12 for the 22 to 31 models that
two of OpenHands' three benchmarks share."""
PRIOR_MODELS = 3.0
"""Number of models whose known errors and qualities weigh as much as PRIOR_ERROR, assumed for both."""
MAX_LANDMARK = 1e12
"""Far beyond any scaled state; its square, summed over a state, is still finite in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class KernelQuality:
    """Kernel model of the quality of M models, R landmarks; implements `quality.QualityModel`.

    The last column of `weights` and the last entry of `offset` are the shared difficulty's.
    """

    models: tuple[str, ...]
    centre: F32  # (STATE_DIM,)
    scale: F32  # (STATE_DIM,)
    landmarks: F32  # (R, STATE_DIM), scaled
    width: F32  # (2,) of everything and of the text alone; (1,) without a text kernel
    means: F32  # (M,)
    weights: F32  # (R, M + 1)
    offset: F32  # (M + 1,)
    routes: F32 = field(default_factory=lambda: np.zeros(0, np.float32))  # (G,) numbers of the known routes
    of_route: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (G, M + 1)
    offsets: Mapping[int, F32] = field(init=False, repr=False)
    parted: PartedLandmarks = field(init=False, repr=False)
    index: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parted", PartedLandmarks.of(self.landmarks, self.width))
        object.__setattr__(self, "index", MappingProxyType({name: k for k, name in enumerate(self.models)}))
        offsets = {int(route): self.offset + row for route, row in zip(self.routes, self.of_route, strict=True)}
        object.__setattr__(self, "offsets", MappingProxyType(offsets))

    def predict(self, observation: Observation) -> F32:
        """Quality on this turn. Raises PolicyFault when the observation cannot be encoded."""
        try:
            state = encode_state(observation)
        except ValueError as error:
            raise PolicyFault("the observation cannot be encoded") from error
        deviations: list[float] = self.deviation(state, observation.route).tolist()
        columns = self._columns(observation)
        return _between_0_and_1([x + deviations[k] for x, k in zip(self._levels(observation), columns, strict=True)])

    def average(self, observation: Observation) -> F32:
        """Mean quality of each model."""
        return _between_0_and_1(self._levels(observation))

    def deviations(self, state: NDArray[np.floating], route: NDArray[np.integer]) -> F32:
        """Deviations of turns from each model's mean, (N, M + 1).

        States (N, STATE_DIM) and routes (N,); the shared difficulty's is last.
        """
        found = kernel((state - self.centre) * self.scale, self.landmarks, self.width) @ self.weights + self.offset
        if len(self.routes):
            found += (route[:, None] == self.routes) @ self.of_route
        return np.asarray(found, np.float32)

    def deviation(self, state: F32, route: int) -> F32:
        """The deviations of one turn in fewer NumPy calls, which dominate the cost at this size."""
        near = self.parted.near((state - self.centre) * self.scale)
        return np.asarray(np.dot(near, self.weights) + self.offsets.get(route, self.offset), np.float32)

    def arrays(self) -> dict[str, F32]:
        """Arrays by name, as a checkpoint stores them; `from_arrays` is the inverse."""
        names = _ARRAYS + (_OF_ROUTES if len(self.routes) else ())
        return {name: np.asarray(getattr(self, name), np.float32) for name in names}

    @classmethod
    def from_arrays(cls, models: tuple[str, ...], arrays: Mapping[str, F32]) -> KernelQuality:
        """Build a reward model. Raises ValueError when names, shapes or ranges are wrong."""
        names = _ARRAYS + (_OF_ROUTES if "routes" in arrays else ())
        if set(arrays) != set(names):
            raise ValueError(f"quality: missing or unknown arrays {sorted(set(arrays) ^ set(names))}")
        landmarks = arrays["landmarks"]
        rows = len(landmarks) if landmarks.ndim == 2 else 0
        m = len(models)
        if not (1 <= rows <= MAX_LANDMARKS and 1 <= m <= MAX_MODELS):
            raise ValueError(f"quality: expected 1 to {MAX_LANDMARKS} landmarks and 1 to {MAX_MODELS} models")
        expected = {
            "centre": (STATE_DIM,),
            "scale": (STATE_DIM,),
            "landmarks": (rows, STATE_DIM),
            "means": (m,),
            "weights": (rows, m + 1),
            "offset": (m + 1,),
        }
        if "routes" in arrays:
            routes = arrays["routes"].size
            if not 1 <= routes <= MAX_ROUTES:
                raise ValueError(f"quality/routes: expected 1 to {MAX_ROUTES} routes, found {routes}")
            expected |= {"routes": (routes,), "of_route": (routes, m + 1)}
        for name, shape in expected.items():
            if arrays[name].shape != shape:
                raise ValueError(f"quality/{name}: expected {shape}, found {arrays[name].shape}")
        if arrays["width"].shape not in {(1,), (2,)} or not (arrays["width"] > 0.0).all():
            raise ValueError("quality/width: expected one or two positive numbers")
        if not (np.abs(landmarks) <= MAX_LANDMARK).all():
            raise ValueError(f"quality/landmarks: expected numbers of at most {MAX_LANDMARK:g} in size")
        return cls(models, **{name: arrays[name] for name in names})

    def _columns(self, observation: Observation) -> list[int]:
        return [self.index.get(c.name, len(self.models)) for c in observation.candidates]

    def _levels(self, observation: Observation) -> list[float]:
        """Mean quality of every candidate; `with_newcomers` where one is unknown."""
        known, columns = self.means.tolist(), self._columns(observation)
        if max(columns) < len(known):
            return [known[k] for k in columns]
        there = np.array(columns) < len(known)
        means = np.append(self.means, np.float32(0.0)).astype(np.float64)[columns]
        levels: list[float] = with_newcomers(
            means, np.array([c.quality_prior for c in observation.candidates]), there
        ).tolist()
        return levels


def with_newcomers(means: NDArray[np.float64], prior: NDArray[np.float64], known: Bools) -> NDArray[np.float64]:
    """Quality of candidates (..., K): known models' means and the expectation of newcomers.

    The quality of a model missing from the log is assumed to be drawn like the known models' qualities, around their
    mean with variance S^2. Its prior is assumed to have the known priors' mean error, with variance E^2. What its prior
    claims beyond the others therefore counts with the weight S^2 / (S^2 + E^2), so that a model chosen for its prior
    alone loses no more on average than it wins. Both sums of squares begin at PRIOR_MODELS PRIOR_ERROR^2. Where nothing
    is known, all models are newcomers, and the priors are used unchanged.
    """
    count = known.sum(axis=-1, keepdims=True)

    def mean_and_squares(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = np.where(known, values, 0.0).sum(axis=-1, keepdims=True) / np.maximum(count, 1)
        squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=-1, keepdims=True)
        return mean, PRIOR_MODELS * PRIOR_ERROR**2 + squares

    (middle, between), (off, wrong) = mean_and_squares(means), mean_and_squares(means - prior)
    believed = middle + (prior + off - middle) * between / (between + wrong)
    return np.where(known, means, np.where(count > 0, believed, prior))


_ARRAYS = ("centre", "scale", "landmarks", "width", "means", "weights", "offset")
_OF_ROUTES = ("routes", "of_route")


class PartedLandmarks(NamedTuple):
    """Landmarks split into text and the rest, each contiguous, to serve single turns."""

    rest: F32  # (R, D - TEXT_DIM)
    text: F32  # (R, TEXT_DIM)
    squares: F32  # (2, R) squared lengths of rest and text
    rates: F32  # (2, 1) -1 / width of everything and of the text alone
    shares: F32  # (2,) of both kernels

    @classmethod
    def of(cls, landmarks: F32, width: F32) -> PartedLandmarks:
        """Part the landmarks; the text's own kernel has no share where `width` has one entry."""
        text, rest = (np.ascontiguousarray(x) for x in (landmarks[:, :TEXT_DIM], landmarks[:, TEXT_DIM:]))
        squares = np.stack([np.sum(rest * rest, axis=-1), np.sum(text * text, axis=-1)])
        rates, shares = np.array([[-1.0], [-1.0]]) / width.reshape(-1, 1), (0.5, 0.5) if len(width) > 1 else (1.0, 0.0)
        return cls(rest, text, squares, rates.astype(np.float32), np.array(shares, np.float32))

    def near(self, scaled: F32) -> F32:
        """The kernel of one scaled state (D,): (R,)."""
        text, rest = scaled[:TEXT_DIM], scaled[TEXT_DIM:]
        apart = np.empty(self.squares.shape, np.float32)
        np.dot(self.rest, rest, out=apart[0])
        np.dot(self.text, text, out=apart[1])
        apart *= -2.0
        apart += self.squares
        apart[0] += np.dot(rest, rest)
        apart[1] += np.dot(text, text)
        np.maximum(apart, 0.0, out=apart)
        apart[0] += apart[1]
        apart *= self.rates
        return np.asarray(np.dot(self.shares, np.exp(apart, out=apart)))


def kernel(
    scaled: NDArray[np.floating], landmarks: NDArray[np.floating], width: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Kernel matrix of scaled states (..., D) and landmarks (R, D): (..., R).

    `width` has one entry or two.
    """
    text, rest = slice(0, TEXT_DIM), slice(TEXT_DIM, None)
    texts = squared_distances(scaled[..., text], landmarks[:, text])
    found = squared_distances(scaled[..., rest], landmarks[:, rest])
    found += texts
    found /= -width[0]
    np.exp(found, out=found)
    if len(width) > 1:
        texts /= -width[1]
        found += np.exp(texts, out=texts)
        found *= 0.5
    return found


def squared_distances(x: NDArray[np.floating], z: NDArray[np.floating]) -> NDArray[np.floating]:
    """|x - z|^2 of rows (..., D) and (R, D): (..., R), from 0."""
    squares = np.add.reduce(x * x, axis=-1, keepdims=True)
    found = np.asarray(x @ z.T)
    found *= -2.0
    found += squares
    found += np.add.reduce(z * z, axis=-1)
    np.maximum(found, 0.0, out=found)
    return found


def _between_0_and_1(quality: list[float]) -> F32:
    return np.array([min(max(x, 0.0), 1.0) for x in quality], np.float32)
