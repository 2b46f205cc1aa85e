"""Calibration of prompt caches: expected against reported cached tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from policy.facts import CANDIDATE_FACTS
from policy.features import decode
from train.log.episodes import Episodes

TARGET = (0.9, 1.1)
"""Reported over expected tokens of a calibrated model."""
_WARM = CANDIDATE_FACTS.index("warm_tokens")


def cache_calibration(episodes: Episodes) -> dict[str, Any]:
    """Expected and reported cached tokens by model, of the turns that expected any."""
    i, j = np.nonzero(episodes.valid & np.isfinite(episodes.cached_tokens))
    if not len(i):
        return {}
    turns, action = np.arange(len(i)), episodes.action[i, j]
    expected = decode(episodes.state[i, j], episodes.candidates[i, j]).candidates[turns, action, _WARM]
    reported, model = episodes.cached_tokens[i, j], episodes.model[i, j, action]
    found: dict[str, Any] = {}
    for k in np.unique(model[expected > 0.0]):
        own = (model == k) & (expected > 0.0)
        ratio = float(reported[own].sum() / expected[own].sum())
        found[episodes.models[k]] = {
            "turns": int(own.sum()),
            "expected_tokens": round(float(expected[own].sum())),
            "reported_tokens": round(float(reported[own].sum())),
            "ratio": round(ratio, 4),
            "calibrated": TARGET[0] <= ratio <= TARGET[1],
        }
    return found


def cache_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The calibration as lines of text."""
    return [
        f"prompt cache of {name}: {row['reported_tokens']:,} of {row['expected_tokens']:,} expected tokens were "
        f"reported as cached ({row['ratio']:.1%}; calibrated is {TARGET[0]:.0%} to {TARGET[1]:.0%})"
        for name, row in found.items()
    ]
