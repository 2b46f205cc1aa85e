"""Plots of fronts and starvation curves: one of each per catalogue, SVG and PNG."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.replay.sweeps import FRONT, STARVATION

Point = Mapping[str, Any]

SIZE_INCHES = (7.0, 4.5)
COLOURS = {
    "ours": "#c1121f",
    "ours-ungated": "#e07a5f",
    "published": "#5a189a",
    "re-solving": "#1d3557",
    "pacing": "#2a9d8f",
    "tuned-lambda": "#457b9d",
    "threshold": "#8d99ae",
    "strongest": "#6c757d",
    "fixed": "#000000",
}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "seqroute",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}


def draw(points: Sequence[Point], folder: Path) -> list[Path]:
    """Write every plot of a run and return the files. The same points give the same SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    grouped: dict[tuple[str, str, str, str], list[Point]] = defaultdict(list)
    for point in points:
        grouped[point["figure"], point["source"], point["inputs"], point["models"]].append(point)
    written = []
    with mpl.rc_context(STYLE):
        for (kind, source, inputs, models), mine in grouped.items():
            figure = Figure(figsize=SIZE_INCHES, layout="constrained")
            axes = figure.subplots()
            {FRONT: _front, STARVATION: _starvation}[kind](axes, mine)
            count = models.count(",") + 1
            axes.set_title(f"{source}, {inputs} inputs, {count} models, {mine[0]['turns']} turns, unseen prompts")
            axes.legend(frameon=False, fontsize=8)
            written += _save(figure, folder, f"{source}-{inputs}-{count}-{kind}")
    return written


def _front(axes: Axes, points: Sequence[Point]) -> None:
    """Cost on a log scale, because models differ by orders of magnitude; bars are 95 % intervals."""
    for policy, mine in _by_policy(points):
        cost, quality, low, high = _columns(mine, "cost_usd")
        # With few tasks the interval of a resampled mean may exclude the mean itself.
        below = [max(q - x, 0.0) for q, x in zip(quality, low, strict=True)]
        above = [max(x - q, 0.0) for q, x in zip(quality, high, strict=True)]
        line = "none" if policy == "fixed" else "-"
        axes.errorbar(
            cost,
            quality,
            yerr=(below, above),
            label=policy,
            color=COLOURS.get(policy),
            linestyle=line,
            marker="s" if policy == "fixed" else "o",
            markersize=4,
            linewidth=1.2,
            elinewidth=0.5,
        )
    axes.set_xscale("log")
    axes.set_xlabel("USD per session")
    axes.set_ylabel("quality per turn")


def _starvation(axes: Axes, points: Sequence[Point]) -> None:
    """One line per policy along its reserve; the numbers beside the points are the reserve."""
    for policy, mine in _by_policy(points):
        starved = [100.0 * float(point["starved_rate"]) for point in mine]
        quality = [float(point["quality"]) for point in mine]
        axes.plot(starved, quality, "-o", label=policy, color=COLOURS.get(policy), markersize=4, linewidth=1.2)
        for x, y, point in zip(starved, quality, mine, strict=True):
            axes.annotate(f"{point['value']:g}", (x, y), fontsize=6, xytext=(2, 2), textcoords="offset points")
    axes.set_xlabel("sessions starved, %")
    axes.set_ylabel("quality per turn")


def _by_policy(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    found: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        found[point["policy"]].append(point)
    return list(found.items())


def _columns(points: Sequence[Point], across: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """(x, quality, its ends), in order of x."""
    ordered = sorted(points, key=lambda point: float(point[across]))
    names = (across, "quality", "quality_lo", "quality_hi")
    x, quality, low, high = ([float(point[name]) for point in ordered] for name in names)
    return x, quality, low, high


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    vector, raster = folder / f"{stem}.svg", folder / f"{stem}.png"
    figure.savefig(vector, metadata={"Date": None})
    figure.savefig(raster, dpi=150)
    return [vector, raster]
