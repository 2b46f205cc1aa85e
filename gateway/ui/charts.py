"""Data of the charts, for uPlot.

`names` of the series and `data` of [x, y1, y2, ...]; `bands` are pairs of series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.decisions.calibration import Calibration
from gateway.decisions.log import at_effort
from gateway.decisions.savings import could_serve
from gateway.routing.guard import NOT_PINNED
from gateway.ui.queries import Period, Usage, spend_by_model

Chart = dict[str, Any]
Turns = Sequence[Mapping[str, Any]]
Point = Mapping[str, Any]
BIN_TURNS = 10
"""A mean of fewer scores is noise, which the chart leaves to the table."""

LEAST_STEPS = 12
"""Hours or days that a chart of the spend shows at least, however young the log is."""


def spend_series(found: Usage, period: Period, step_ms: int) -> Chart:
    """USD over time (x in seconds) of the eight most expensive models, from the first spend on."""
    since_ms, until_ms = (at_ms - at_ms % step_ms for at_ms in (period.since_ms, period.until_ms))
    first_ms = min((row["at_ms"] for row in found), default=since_ms)
    begins_ms = max(since_ms, min(first_ms - step_ms, until_ms - LEAST_STEPS * step_ms))
    starts = range(begins_ms, period.until_ms, step_ms)
    names = [model for model, _, _ in spend_by_model(found)[:8]]
    spent = {(row["model"], row["at_ms"]): row["spent_nanousd"] / 1e9 for row in found}
    return {
        "names": names,
        "data": [[start // 1000 for start in starts]]
        + [[spent.get((name, start), 0) for start in starts] for name in names],
    }


def burn_down(turns: Turns, forecast: Mapping[str, Any], left_nanousd: int) -> Chart:
    """Remaining budget in USD before and after each turn, and the band of its forecast."""
    points = [(turn["turn"] + 1, turn["budget_after_nano_usd"]) for turn in turns]
    points[:0] = [(turn["turn"], turn["budget_before_nano_usd"]) for turn in turns[:1]]
    known = [(number, left / 1e9) for number, left in points if left is not None]
    numbers = [number for number, _ in known]
    lefts: list[float | None] = [left for _, left in known]
    if not forecast["available"] or not known:
        return {"names": ["left"], "data": [numbers, lefts], "zero": True, "across": "turns"}
    now = numbers[-1]
    end = now + max(1, forecast["turns_to_go"]["p50"])
    cost = forecast["cost_to_go"]
    gap: list[float | None] = [None] * (len(numbers) - 1)
    left = left_nanousd / 1e9
    return {
        "names": ["left", "forecast, half of such sessions", "forecast, 90 %"],
        "data": [
            [*numbers, end],
            [*lefts, None],
            [*gap, left, left - cost["p50_nano_usd"] / 1e9],
            [*gap, left, left - cost["p90_nano_usd"] / 1e9],
        ],
        "bands": [[2, 3]],
        "dashed": [2, 3],
        "zero": True,
        "across": "turns",
    }


@dataclass(frozen=True, slots=True)
class CandidateCosts:
    """Predicted nano-USD of every candidate in each turn; None where it could not answer."""

    names: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    totals: Sequence[int | None]


def candidate_costs(turns: Turns) -> CandidateCosts:
    """Tabulate what each candidate was expected to cost, cheapest first.

    Only a candidate that could answer every turn has a total.
    """
    found = [{at_effort(c["model"], c["effort"]): _cost(c) for c in turn["candidates"]} for turn in turns]
    seen = {name for costs in found for name in costs}

    def mean(name: str) -> float:
        known = [cost for costs in found if (cost := costs.get(name)) is not None]
        return sum(known) / len(known) if known else math.inf

    names = sorted(seen, key=lambda name: (mean(name), name))
    rows = []
    for turn, costs in zip(turns, found, strict=True):
        own = at_effort(turn["model"], turn["effort"])
        chosen = names.index(own) if own in seen else None
        rows.append({"turn": turn["turn"], "chosen": chosen, "nanousd": [costs.get(name) for name in names]})
    return CandidateCosts(names, rows, [_total([costs.get(name) for costs in found]) for name in names])


def _cost(candidate: Mapping[str, Any]) -> int | None:
    known = could_serve(candidate) or candidate["why_not"] == NOT_PINNED
    return int(candidate["cost_nano_usd"]) if known else None


def _total(costs: Sequence[int | None]) -> int | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


def front_points(savings: Mapping[str, Any]) -> list[Point]:
    """The points of the front that differ from their neighbour, from lambda 0 on."""
    points: list[Point] = []
    for point in savings["front"]:
        if not points or (point["cost_usd"], point["quality"]) != (points[-1]["cost_usd"], points[-1]["quality"]):
            points.append(point)
    return points


def front_chart(points: Sequence[Point], today: Point | None) -> Chart:
    """Quality in points over cents per turn, with the interval, and the turns as answered."""
    if not points or today is None:
        return {"names": [], "data": [[]]}
    ordered = sorted(points, key=lambda point: float(point["cost_usd"]))
    marked = sorted([*((point, True) for point in ordered), (today, False)], key=lambda item: item[0]["cost_usd"])

    def column(name: str, wanted: bool) -> list[float | None]:
        return [
            point[name] * 100 if of_front is wanted and point[name] is not None else None for point, of_front in marked
        ]

    return {
        "names": ["rule, lambda swept", "95 % from", "95 % to", "as answered"],
        "data": [
            [point["cost_usd"] * 100 for point, _ in marked],
            column("quality", True), column("quality_low", True), column("quality_high", True),
            column("quality", False),
        ],
        "bands": [[3, 2]],
        "faint": [2, 3],
        "marks": [4],
        "across": "cents per turn",
    }  # fmt: skip


def reliability_chart(calibration: Calibration) -> Chart:
    """Mean score over mean predicted quality, in points, and the line of perfect predictions."""
    bins = [found for found in calibration.bins if found.turns >= BIN_TURNS]
    x = [found.predicted * 100 for found in bins]
    return {
        "names": ["scores", "if predictions were right"],
        "data": [x, [found.score * 100 for found in bins], x],
        "dashed": [2],
        "across": "predicted quality, points",
    }
