"""Target figures of the benchmark, over all sources and for each.

A figure is None where a run has no data for it: no prompt-cache cell, no third model, a quality that is never reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from policy.arrays import F64
from train.replay.summary import ALL, Row, group_rows, in_whole, newcomers, of_fronts
from train.replay.sweeps import FRONT

Figures = Mapping[str, float | None]

OURS, PLANNER, CALIBRATED, NETWORK = "ours", "ours-ungated", "ours-calibrated", "ours-network"
USUAL = ("best-fixed", "threshold", "published-safe")
"""What a user would run otherwise: a model, RouteLLM's rule, the published method."""
MOST_BANKRUPT = 0.01
"""Bankruptcy rate at which the published method is compared."""
CELL = ("source", "models", "turns", "phi", "mode", "base_context", "cached_price", "write_price")


@dataclass(frozen=True)
class Goal:
    """A figure with its bound and description."""

    figure: str
    bound: float
    side: Literal["at least", "at most", "above"]
    words: str

    def met(self, found: float) -> bool:
        """Tell whether a value meets the bound."""
        if self.side == "above":
            return found > self.bound
        return found >= self.bound - 1e-9 if self.side == "at least" else found <= self.bound + 1e-9


AIMS = (
    Goal("network_share", 0.9, "at least", "share of all cells that a Flax network decides"),
    Goal("network_vs_planner", -0.0005, "at least", "network - planner, budget cells"),
    Goal("network_vs_tuned", 0.003, "at least", "network - best tuned baseline, mean over budget cells"),
    Goal("calibrated_vs_safe", 0.0, "at least", "calibrated network - best baseline that starves at most 1 %"),
    Goal("ours_vs_usual", 0.03, "at least", "ours - the best of a fixed model, RouteLLM's rule, the published method"),
    Goal("cold_vs_default", 0.005, "at least", "network of a fresh install - default rule, all cells"),
    Goal("ours_below_tuned", 0.0, "at most", "cells where ours is certainly below the best tuned baseline"),
    Goal("ours_vs_tuned", 0.01, "at least", "ours - best tuned baseline, mean over budget cells"),
    Goal("planner_vs_tuned", 0.01, "at least", "planner - best tuned baseline, mean over budget cells"),
    Goal("ours_vs_published", 0.03, "at least", "ours - SeqRoute as published at most 1 % bankrupt, budget cells"),
    Goal("ours_vs_strongest", 0.10, "at least", "ours - the strongest until the money is gone, budget cells"),
    Goal("cache_vs_blind", 0.04, "at least", "planner - planner blind to the cache, prompt-cache cells"),
    Goal("cache_switches", 1.0, "at most", "switches a session of the planner, prompt-cache cells"),
    Goal("starved_calibrated", 0.01, "at most", "sessions starved at the calibrated setting, budget cells in cut"),
    Goal("unanswered_degrade", 0.0, "at most", "ours: sessions with an unanswered turn, budget cells in degrade"),
    Goal("saving_vs_published", 0.0, "above", "saved at the strongest's quality, more than the published one"),
    Goal("area_vs_baselines", 0.0, "above", "area under the planner's front - the best baseline's"),
    Goal("newcomer_lost", 0.5, "at most", "share of the gap that a model added by price and prior alone loses"),
)  # fmt: skip


def aims(rows: Sequence[Row], points: Sequence[Row]) -> list[dict[str, Any]]:
    """One line for each target and source (`all`: over all cells), with the verdict."""
    found = []
    for source in (ALL, *dict.fromkeys(row["source"] for row in rows)):
        known = figures(*([row for row in part if source in (ALL, row["source"])] for part in (rows, points)))
        for aim in AIMS:
            value = known[aim.figure]
            found.append(
                {
                    "kind": "aim",
                    "source": source,
                    "figure": aim.figure,
                    "aim": f"{aim.side} {aim.bound:g}",
                    "found": None if value is None else round(value, 6),
                    "met": None if value is None else aim.met(value),
                    "words": aim.words,
                }
            )
    return found


def figures(rows: Sequence[Row], points: Sequence[Row]) -> Figures:
    """All figures over these rows and points of fronts."""
    whole = in_whole(rows)
    plain = [row for row in whole if row["budget"] == "phi"]
    cached = [row for row in whole if row["budget"] != "phi"]
    savings, areas = zip(*_fronts(points), strict=True) if points else ((), ())
    return {
        "network_share": mean(row["served"] == "network" for row in whole if row["policy"] == OURS),
        "network_vs_planner": gain(plain, NETWORK, PLANNER),
        "network_vs_tuned": mean(row["diff_vs_best_tuned"] for row in plain if row["policy"] == NETWORK),
        "calibrated_vs_safe": gain(plain, CALIBRATED, "safe-tuned"),
        "ours_vs_usual": gain(plain, OURS, *USUAL),
        "cold_vs_default": gain(whole, "ours-pretrained", "gateway-default"),
        "ours_below_tuned": _total(float(row["diff_hi"]) < 0.0 for row in whole if row["policy"] == OURS),
        "ours_vs_tuned": mean(row["diff_vs_best_tuned"] for row in plain if row["policy"] == OURS),
        "planner_vs_tuned": mean(row["diff_vs_best_tuned"] for row in plain if row["policy"] == PLANNER),
        "ours_vs_published": gain(plain, OURS, "published-safe"),
        "ours_vs_strongest": gain(plain, OURS, "strongest"),
        "cache_vs_blind": gain(cached, PLANNER, "ours-blind"),
        "cache_switches": mean(row["switches"] for row in cached if row["policy"] == PLANNER),
        "starved_calibrated": mean(
            row["starved_rate"] for row in plain if row["policy"] == CALIBRATED and row["mode"] == "cut"
        ),
        "unanswered_degrade": mean(
            row["unanswered_rate"] for row in plain if row["policy"] == OURS and row["mode"] == "degrade"
        ),
        "saving_vs_published": mean(savings),
        "area_vs_baselines": mean(areas),
        "newcomer_lost": _newcomers_lost(rows),
    }


def lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The targets as text, with the sources that miss each."""
    for line in found:
        if line["source"] != ALL:
            continue
        missing = [
            f"{other['source']} {other['found']:.3g}"
            for other in found
            if other["figure"] == line["figure"] and other["source"] != ALL and other["met"] is False
        ]
        value = "-" if line["found"] is None else f"{line['found']:+.4f}"
        verdict = {None: "-", True: "met", False: "missed"}[line["met"]]
        yield f"{verdict:7} {line['aim']:>14} {value:>9}  {line['words']}" + (
            f"  [missed by: {', '.join(missing)}]" if missing and len(missing) < len(found) else ""
        )


def cost_at(cost: F64, quality: F64, wanted: float) -> float | None:
    """Interpolated least cost at which a front reaches a quality; None where it never does."""
    order = np.argsort(cost, kind="stable")
    cost, best = cost[order], np.maximum.accumulate(quality[order])
    at = int(np.searchsorted(best, wanted - 1e-9))
    if at == len(best):
        return None
    if at == 0:
        return float(cost[0])
    share = (wanted - best[at - 1]) / max(float(best[at] - best[at - 1]), 1e-12)
    return float(cost[at - 1] + min(share, 1.0) * (cost[at] - cost[at - 1]))


def _fronts(points: Sequence[Row]) -> Iterator[tuple[float | None, float]]:
    """Differences by catalogue: saving against the published method, area against baselines."""
    for _, mine in group_rows([point for point in points if point["figure"] == FRONT], "source", "models"):
        strong = max((point for point in mine if point["policy"] == "fixed"), key=lambda point: float(point["quality"]))
        safe = [point for point in mine if point["policy"] == "published" and point["bankrupt_rate"] <= MOST_BANKRUPT]
        ours = _saving([point for point in mine if point["policy"] == PLANNER], strong)
        theirs = _saving(safe, strong)
        # A policy that never reaches the strongest's quality saves nothing.
        saved = (ours or 0.0) - (theirs or 0.0)
        areas = {line["policy"]: float(line["area"]) for line in of_fronts(mine)}
        yield saved, areas[PLANNER] - max(area for policy, area in areas.items() if policy != PLANNER)


def _saving(points: Sequence[Row], strong: Row) -> float | None:
    """Share of the strongest model's cost that a policy saves at its quality; 0 where the strongest is cheaper."""
    if not points:
        return None
    cost, quality = (np.array([float(point[name]) for point in points]) for name in ("cost_usd", "quality"))
    least = cost_at(cost, quality, float(strong["quality"]))
    return None if least is None else max(1.0 - least / max(float(strong["cost_usd"]), 1e-12), 0.0)


def gain(rows: Sequence[Row], policy: str, *others: str) -> float | None:
    """Mean gain, over the cells that all played, over the best of the others in training."""
    played = {
        name: {tuple(row[column] for column in CELL): row for row in rows if row["policy"] == name}
        for name in (policy, *others)
    }
    common = sorted(set.intersection(*(set(cells) for cells in played.values())), key=str)
    gains = []
    for cell in common:
        best = max((played[name][cell] for name in others), key=lambda row: row.get("training_quality") or 0.0)
        gains.append(float(played[policy][cell]["quality"]) - float(best["quality"]))
    return mean(gains)


def _newcomers_lost(rows: Sequence[Row]) -> float | None:
    """Share of all gaps together that is lost: gaps near zero have no weight."""
    found = newcomers(rows)
    gap = sum(max(float(line["gap"]), 0.0) for line in found)
    lost = sum(float(line["ours-trained"]) - float(line["ours"]) for line in found if float(line["gap"]) > 0.0)
    return lost / gap if gap > 1e-9 else None


def mean(values: Any) -> float | None:
    """Mean of the values that are known; None where none is."""
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _total(values: Iterator[bool]) -> float | None:
    known = list(values)
    return float(sum(known)) if known else None
