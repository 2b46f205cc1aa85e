"""Session horizon and lambda presets (`cheap`, `balanced`, `best`) learned from the log."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F64
from policy.features import Horizon, expected_cost_usd
from train.log.episodes import Episodes

PRIOR_HAZARD, PRIOR_SESSIONS = 1.0 / 6.0, 5.0
MAX_TURNS = 64
PRESET_SHARES = {"cheap": 0.1, "balanced": 0.5}
"""Mean bill of a preset between the cheapest and that of quality alone, on a log scale; `best` is at 1."""


def learn_horizon(lengths: NDArray[np.integer]) -> Horizon:
    """Hazard of a session's end by turn, shrunk to a geometric horizon of mean six.

    Kaplan & Meier 1958 without censoring: sessions in the log are taken to have ended.
    """
    if len(lengths) == 0:
        return Horizon()
    turns = np.arange(1, min(int(lengths.max()), MAX_TURNS) + 1)
    reached = np.array([(lengths >= t).sum() for t in turns])
    ended = np.array([(lengths == t).sum() for t in turns])
    hazard = (ended + PRIOR_HAZARD * PRIOR_SESSIONS) / (reached + PRIOR_SESSIONS)
    return Horizon(tuple(float(np.clip(h, 0.01, 0.99)) for h in hazard))


def calibrate_presets(episodes: Episodes, grades: F64) -> dict[str, float]:
    """Calibrate lambda of each preset, in quality per USD. `grades` are (S, T, K).

    `best` is 0; `balanced` is where the mean bill is the geometric mean of the cheapest and the best policy's,
    `cheap` where it is within a tenth of the way from the cheapest, on a log scale.
    """
    valid = episodes.valid
    costs = expected_cost_usd(episodes.cost_quantiles_usd[valid].astype(np.float64))
    mask, quality = episodes.mask[valid], grades[valid]
    if not len(costs):
        return {"cheap": 100.0, "balanced": 5.0, "best": 0.0}
    least = np.where(mask, costs, np.inf).min(axis=-1).mean()
    prices = np.concatenate([[0.0], np.geomspace(1e-2, 1e4, 61) / max(float(costs[mask].mean()), 1e-12) * 1e-2])
    bills = np.array([_mean_bill(quality, costs, mask, price) for price in prices])
    spread = np.log(max(bills[0], 1e-12) / max(least, 1e-12))
    found = {}
    for name, share in PRESET_SHARES.items():
        target = least * np.exp(share * spread)
        within = np.flatnonzero(bills <= target * (1 + 1e-9))
        found[name] = float(min(prices[within[0]] if len(within) else prices[-1], 1e9))
    return found | {"best": 0.0}


def _mean_bill(quality: F64, costs: F64, mask: NDArray[np.bool_], price: float) -> float:
    choice = np.argmax(np.where(mask, quality - price * costs, -np.inf), axis=-1)
    return float(np.take_along_axis(costs, choice[:, None], axis=-1).mean())
