"""Data of the charts, for uPlot.

`names` of the series and `data` of [x, y1, y2, ...]; `bands` are pairs of series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.decisions.calibration import Calibration
from gateway.ui.queries import Period, Usage, spend_by_model

Chart = dict[str, Any]
Turns = Sequence[Mapping[str, Any]]
Point = Mapping[str, Any]


def spend_series(found: Usage, period: Period, step_ms: int) -> Chart:
    """USD over time (x in seconds) of the eight most expensive models."""
    starts = range(period.since_ms - period.since_ms % step_ms, period.until_ms, step_ms)
    names = [model for model, _, _ in spend_by_model(found)[:8]]
    spent = {(row["model"], row["at_ms"]): row["spent_nanousd"] / 1e9 for row in found}
    return {
        "names": names,
        "data": [[start // 1000 for start in starts]]
        + [[spent.get((name, start), 0) for start in starts] for name in names],
    }


def burn_down(turns: Turns, forecast: Mapping[str, Any], left_nanousd: int) -> Chart:
    """The session's remaining budget in USD after each turn, and the band of its forecast."""
    points = [turn["budget_after_nano_usd"] for turn in turns]
    known = [(turn["turn"] + 1, left / 1e9) for turn, left in zip(turns, points, strict=True) if left is not None]
    numbers = [number for number, _ in known]
    lefts: list[float | None] = [left for _, left in known]
    if not forecast["available"] or not known:
        return {"names": ["left, USD"], "data": [numbers, lefts]}
    now = numbers[-1]
    end = now + max(1, forecast["turns_to_go"]["p50"])
    cost = forecast["cost_to_go"]
    gap: list[float | None] = [None] * (len(numbers) - 1)
    left = left_nanousd / 1e9
    return {
        "names": ["left, USD", "forecast, half of such sessions", "forecast, 90 %"],
        "data": [
            [*numbers, end],
            [*lefts, None],
            [*gap, left, left - cost["p50_nano_usd"] / 1e9],
            [*gap, left, left - cost["p90_nano_usd"] / 1e9],
        ],
        "bands": [[2, 3]],
        "dashed": [2, 3],
    }


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
    x = [found.predicted * 100 for found in calibration.bins]
    return {
        "names": ["scores", "if predictions were right"],
        "data": [x, [found.score * 100 for found in calibration.bins], x],
        "dashed": [2],
        "across": "predicted quality, points",
    }
