"""Months of the gate: is a test that is valid over all nights together better than one for each night?

    python -m tests.harness.gate_months --months 100

Every night tests a candidate on all held-out sessions so far, 100 more than the night before: the same candidate until
it passes, or another one each night. Beside a night's own bound (1.96 standard errors, half of the gate's error
probability) stand two that hold for all nights at once: a confidence sequence on the same evidence, and one on what
each night's candidate did in that night's sessions alone, pooled over the nights. The estimates are made by the code
that makes them at night; the bootstrap, which only widens them, is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tests.harness.gate_trials import CONFIG, F64, HALF, a_log, played
from train.evaluate import ope
from train.log.episodes import Episodes

NIGHTS = 30
SESSIONS = 100
"""Held-out sessions that a night adds."""
EXPLORED = 0.1
TUNED_TO = 500.0
"""Sessions at which the confidence sequences are narrowest."""
TESTS = ("night", "sequence", "pooled")


@dataclass(frozen=True)
class Differences:
    """One candidate against the incumbent, by session: estimate, its modelled part, and the draws' known variance."""

    estimate: F64
    modelled: F64
    noise: F64


def reach(sessions: int, error: float) -> float:
    """Half-width of a one-sided confidence sequence, in standard deviations: the normal mixture.

    With the sample's variance, so asymptotic: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (arXiv 2103.06476), after
    Robbins 1970.
    """
    rho = (-2.0 * np.log(error) + np.log(1.0 - 2.0 * np.log(error))) / TUNED_TO
    inside = sessions * rho + 1.0
    return float(np.sqrt(2.0 * inside / (sessions**2 * rho) * np.log(1.0 + np.sqrt(inside) / (2.0 * error))))


def lower(turns: F64, seen: Differences, at: slice, width: float) -> float:
    """Lower bound of the gain per turn over these sessions; the deviation is that of `evaluate.gain_sd`."""

    def variance(values: F64) -> float:
        return float(np.var(values - values.sum() / turns[at].sum() * turns[at]))

    known = variance(seen.modelled[at]) + float(seen.noise[at].mean())
    deviation = np.sqrt(max(variance(seen.estimate[at]), known)) / turns[at].mean()
    return float(seen.estimate[at].sum() / turns[at].sum() - width * deviation)


def a_month(seed: int, *, gain: float, candidates: int) -> dict[str, int | None]:
    """The first night on which each test promotes, of candidates that are all better by `gain` per turn."""
    generator = np.random.default_rng(seed)
    episodes = a_log(generator, NIGHTS * SESSIONS, EXPLORED)
    turns = episodes.valid.sum(axis=1).astype(np.float64)
    each = list(differences(generator, episodes, gain, candidates))
    nights = [slice(night * SESSIONS, (night + 1) * SESSIONS) for night in range(NIGHTS)]
    columns = ([getattr(each[n % candidates], name)[at] for n, at in enumerate(nights)] for name in each[0].__dict__)
    fresh = Differences(*(np.concatenate(parts) for parts in columns))
    first: dict[str, int | None] = dict.fromkeys(TESTS)
    z = NormalDist().inv_cdf(1.0 - HALF)
    for night in range(NIGHTS):
        so_far, sessions = slice(0, (night + 1) * SESSIONS), (night + 1) * SESSIONS
        bounds = (
            (each[night % candidates], z / np.sqrt(sessions)),
            (each[night % candidates], reach(sessions, HALF)),
            (fresh, reach(sessions, HALF)),
        )
        for test, (seen, width) in zip(TESTS, bounds, strict=True):
            if first[test] is None and lower(turns, seen, so_far, width) > 0.0:
                first[test] = night + 1
    return first


def differences(
    generator: np.random.Generator, episodes: Episodes, gain: float, candidates: int
) -> Iterator[Differences]:
    """Fill the log, then play candidates that take the second action on three turns of ten, each on others."""
    shape = episodes.valid.shape
    truth = np.stack([np.full(shape, 0.8), np.full(shape, 0.8 + gain / 0.3)], axis=-1)
    action: NDArray[np.int32] = (generator.random(shape) < EXPLORED).astype(np.int32)
    chance = np.take_along_axis(truth, action[..., None], axis=-1)[..., 0]
    episodes.action[:] = action
    episodes.propensity[:] = np.where(action == 1, EXPLORED, 1.0 - EXPLORED)
    episodes.reward[:] = np.where(episodes.valid, generator.random(shape) < chance, np.nan)
    grades = np.clip(truth + 0.1 * generator.standard_normal(truth.shape), 0.0, 1.0)
    incumbent = played(episodes, np.zeros(shape, np.int64), grades)
    for _ in range(candidates):
        candidate = played(episodes, (generator.random(shape) < 0.3).astype(np.int64), grades)
        apart = np.where(episodes.valid, candidate.logged.v - incumbent.logged.v, 0.0)
        noise = ope.known_noise(
            candidate.probabilities, incumbent.probabilities, episodes.probabilities.astype(np.float64), grades,
            episodes.valid, CONFIG.ope.weight_cap,
        )  # fmt: skip
        yield Differences((candidate.score - incumbent.score).sum(axis=1), apart.sum(axis=1), noise)


def main() -> None:
    """Print how many months promote, and the median night of those that do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--months", type=int, default=100)
    months = parser.parse_args().months
    print("| gain | candidates | test | months with a promotion | median night |\n|--:|---|---|--:|--:|")
    for candidates, words in ((1, "the same every night"), (NIGHTS, "another every night")):
        for gain in (-0.05, 0.0, 0.02, 0.05):
            found = [a_month(seed, gain=gain, candidates=candidates) for seed in range(months)]
            for test in TESTS:
                nights = [night for month in found if (night := month[test]) is not None]
                median = f"{np.median(nights):.0f}" if nights else ""
                print(f"| {gain:+.2f} | {words} | {test} | {len(nights)} of {months} | {median} |", flush=True)


if __name__ == "__main__":
    main()
