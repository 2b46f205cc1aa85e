"""Summary of a run: policies over all cells, areas of the fronts, value of a newcomer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from train.replay.compose import ORDERINGS
from train.replay.statistics import MIXED
from train.replay.sweeps import FRONT

Row = Mapping[str, Any]
ALL = "all"
OURS = "ours"
OF_NEWCOMERS = ("ours-not-offered", "ours", "ours-trained")


def summary(rows: Sequence[Row], points: Sequence[Row]) -> list[dict[str, Any]]:
    """All summary lines; `kind` is `cells`, `against`, `front`, `newcomer` or `forecast`."""
    return [*over_cells(rows), *against(rows), *of_fronts(points), *newcomers(rows), *forecasts(rows)]


def forecasts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Coverage of the forecasts of a session's rest under `ours`.

    By source and turns before it; `calibrated` counts the cells where P90 covers 85 to 95 %. The coverage is that of
    all their sessions together.
    """
    told = [row for row in in_whole(rows) if row["policy"] == OURS and row["numbers"].get("forecast")]
    found = []
    for source, mine in group_rows(told, "source"):
        for when in dict.fromkeys(when for row in mine for when in row["numbers"]["forecast"]):
            each = [row["numbers"]["forecast"][when] for row in mine if when in row["numbers"]["forecast"]]
            sessions = sum(one["sessions"] for one in each)
            found.append(
                {
                    "kind": "forecast",
                    "source": source,
                    "when": when,
                    "n_cells": len(each),
                    "calibrated": sum(one["calibrated"] for one in each),
                    "sessions": sessions,
                    "p90_coverage": round(sum(one["sessions"] * one["p90_coverage"] for one in each) / sessions, 4),
                }
            )
    return found


def over_cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compare every policy with the best tuned baseline, by source and overall.

    `below` counts the cells where its whole interval is below, `above` those where it is above. Budgets (`phi`) and
    prompt-cache cells (`cache`) apart.
    """
    whole = in_whole(rows)
    found = []
    for cells in ("phi", "cache"):
        of_kind = [row for row in whole if (row["budget"] == "phi") == (cells == "phi")]
        for source in (ALL, *sorted({row["source"] for row in of_kind})):
            chosen = [row for row in of_kind if source in (ALL, row["source"])]
            for policy, mine in group_rows(chosen, "policy"):
                found.append({"kind": "cells", "cells": cells, "source": source, "policy": policy, **_means(mine)})
    return found


def against(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean gain of `ours` over each other policy, over the cells that both played."""
    columns = ("source", "models", "turns", "phi", "mode", "base_context", "cached_price", "write_price")
    found, whole = [], in_whole(rows)
    for cells in ("phi", "cache"):
        quality: dict[str, dict[Any, float]] = defaultdict(dict)
        for row in whole:
            if (row["budget"] == "phi") == (cells == "phi"):
                quality[row["policy"]][tuple(row[name] for name in columns)] = float(row["quality"])
        for other in quality if OURS in quality else ():
            both = quality[OURS].keys() & quality[other].keys()
            mean = float(np.mean([quality[OURS][cell] - quality[other][cell] for cell in sorted(both, key=str)]))
            found.append(
                {"kind": "against", "cells": cells, "policy": OURS, "other": other, "n_cells": len(both)}
                | {"diff": round(mean, 6)}
            )
    return found


def of_fronts(points: Sequence[Row]) -> list[dict[str, Any]]:
    """Area under each policy's front and its least cost at the strongest model's quality.

    Costs are in units of the most expensive fixed model; the area is the mean over costs from 0 to 1 of the best
    quality at no more than that cost. `saving` is None where a policy never reaches that quality.
    """
    found = []
    fronts = [point for point in points if point["figure"] == FRONT]
    for (source, models), mine in group_rows(fronts, "source", "models"):
        fixed = [point for point in mine if point["policy"] == "fixed"]
        strong = max(fixed, key=lambda point: float(point["quality"]))
        costliest = max(float(point["cost_usd"]) for point in fixed)
        for policy, of_policy in group_rows(mine, "policy"):
            cost = np.array([float(point["cost_usd"]) for point in of_policy]) / max(costliest, 1e-12)
            quality = np.array([float(point["quality"]) for point in of_policy])
            reached = cost[quality >= float(strong["quality"]) - 1e-9]
            least = float(reached.min()) * costliest / float(strong["cost_usd"]) if len(reached) else None
            found.append(
                {
                    "kind": "front",
                    "source": source,
                    "models": models,
                    "policy": policy,
                    "area": round(hypervolume(cost, quality), 6),
                    "saving": None if least is None else round(1.0 - least, 6),
                }
            )
    return found


def in_whole(rows: Sequence[Row]) -> list[Row]:
    """Rows of all orderings together, in cells without a newcomer."""
    together = _together(rows)
    return [row for row in rows if row["new_model"] is None and row["ordering"] == together]


def hypervolume(cost: np.ndarray[Any, np.dtype[np.float64]], quality: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Area dominated by (cost, quality) points within cost 0..1 (Zitzler & Thiele 1998)."""
    order = np.argsort(cost, kind="stable")
    best = np.maximum.accumulate(quality[order])
    edges = np.append(np.minimum(cost[order], 1.0), 1.0)
    return float(np.sum(np.diff(edges) * best))


def newcomers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Share of the gap between not offered and fully trained that price and prior alone win."""
    together = _together(rows)
    chosen = [row for row in rows if row["new_model"] is not None and row["ordering"] == together]
    found = []
    for (source, models, model), mine in group_rows(chosen, "source", "models", "new_model"):
        played = [[row["quality"] for row in mine if row["policy"] == name] for name in OF_NEWCOMERS]
        if not all(played):  # not all were requested
            continue
        quality = {name: float(np.mean(each)) for name, each in zip(OF_NEWCOMERS, played, strict=True)}
        gap = quality["ours-trained"] - quality["ours-not-offered"]
        found.append(
            {
                "kind": "newcomer",
                "source": source,
                "models": models,
                "new_model": model,
                **{name: round(value, 6) for name, value in quality.items()},
                "gap": round(gap, 6),
                "won": round((quality["ours"] - quality["ours-not-offered"]) / gap, 6) if gap > 1e-9 else None,
            }
        )
    return found


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    difference = [float(row["diff_vs_best_tuned"]) for row in rows]
    return {
        "n_cells": len(rows),
        "quality": _round(row["quality"] for row in rows),
        "diff_vs_best_tuned": _round(difference),
        "worst_diff": round(min(difference), 6),
        "diff_vs_best_on_test": _round(row["diff_vs_best_on_test"] for row in rows),
        "below": sum(float(row["diff_hi"]) < 0.0 for row in rows),
        "above": sum(float(row["diff_lo"]) > 0.0 for row in rows),
        "starved_rate": _round(row["starved_rate"] for row in rows),
        "bankrupt_rate": _round(row["bankrupt_rate"] for row in rows),
        "switches": _round(row["switches"] for row in rows),
    }


def _round(values: Iterable[Any]) -> float:
    return round(float(np.mean([float(value) for value in values])), 6)


def _together(rows: Sequence[Row]) -> str:
    """Name of all orderings together, or of the only one."""
    present = {row["ordering"] for row in rows}
    return MIXED if MIXED in present or not present else min(present, key=ORDERINGS.index)


def group_rows(rows: Sequence[Row], *names: str) -> list[tuple[Any, list[Row]]]:
    """Group rows by the values of some columns, in order of first occurrence."""
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[names[0]] if len(names) == 1 else tuple(row[name] for name in names)].append(row)
    return list(found.items())
