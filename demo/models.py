"""The simulated models: prices, speed, verbosity and abilities.

List prices and `quality_prior` are public: `gateway.yaml` has them, and a test compares the two. `ability` is hidden:
the gateway has to learn it from graded answers. The priors are wrong on purpose, like leaderboards: right on average,
but not for each kind of task.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS: tuple[str, ...] = ("arithmetic", "lookup", "code", "format", "story")
"""Kinds of task; the keys of every `ability`."""


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """One model of the provider.

    Prices are USD per million tokens. `ability` is, per kind of task, the difficulty (0..1) at which the model is
    right half of the time. `verbosity` scales the length of its answers, `latency_s` is the time to the first token
    and `token_s` the time per token, before the provider's latency scale.
    """

    name: str
    input_usd_per_mtok: float
    cached_input_usd_per_mtok: float
    output_usd_per_mtok: float
    quality_prior: float
    max_input_tokens: int
    max_output_tokens: int
    ability: dict[str, float]
    verbosity: float
    latency_s: float
    token_s: float


MODELS: tuple[SimulatedModel, ...] = (
    SimulatedModel(
        name="sim-nano",
        input_usd_per_mtok=0.05,
        cached_input_usd_per_mtok=0.005,
        output_usd_per_mtok=0.4,
        quality_prior=0.64,
        max_input_tokens=32_000,
        max_output_tokens=4_096,
        ability={"arithmetic": 0.62, "lookup": 0.60, "code": 0.36, "format": 0.50, "story": 0.46},
        verbosity=0.7,
        latency_s=0.006,
        token_s=0.00004,
    ),
    SimulatedModel(
        name="sim-mini",
        input_usd_per_mtok=0.2,
        cached_input_usd_per_mtok=0.02,
        output_usd_per_mtok=1.0,
        quality_prior=0.7,
        max_input_tokens=128_000,
        max_output_tokens=8_192,
        ability={"arithmetic": 0.98, "lookup": 0.76, "code": 0.36, "format": 0.50, "story": 0.60},
        verbosity=0.9,
        latency_s=0.009,
        token_s=0.00006,
    ),
    SimulatedModel(
        name="sim-coder",
        input_usd_per_mtok=0.5,
        cached_input_usd_per_mtok=0.05,
        output_usd_per_mtok=2.0,
        quality_prior=0.72,
        max_input_tokens=128_000,
        max_output_tokens=8_192,
        ability={"arithmetic": 0.56, "lookup": 0.46, "code": 1.14, "format": 1.08, "story": 0.40},
        verbosity=0.8,
        latency_s=0.012,
        token_s=0.00006,
    ),
    SimulatedModel(
        name="sim-mid",
        input_usd_per_mtok=1.0,
        cached_input_usd_per_mtok=0.1,
        output_usd_per_mtok=5.0,
        quality_prior=0.75,
        max_input_tokens=200_000,
        max_output_tokens=8_192,
        ability={"arithmetic": 0.70, "lookup": 0.98, "code": 0.48, "format": 0.56, "story": 0.98},
        verbosity=1.0,
        latency_s=0.016,
        token_s=0.00008,
    ),
    SimulatedModel(
        name="sim-large",
        input_usd_per_mtok=4.0,
        cached_input_usd_per_mtok=0.4,
        output_usd_per_mtok=20.0,
        quality_prior=0.84,
        max_input_tokens=200_000,
        max_output_tokens=16_384,
        ability={"arithmetic": 1.26, "lookup": 1.28, "code": 1.26, "format": 1.26, "story": 1.24},
        verbosity=1.1,
        latency_s=0.024,
        token_s=0.00010,
    ),
)

SLOPE = 0.10
"""Scale of the fall in P(right) = CEILING * sigmoid((ability - difficulty) / SLOPE)."""

CEILING = 0.96
"""Highest chance of a right answer."""
