"""Plots of the frontier: quality by session cost; quality and starvation by budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

FORMATS = ("svg", "png")
COLOURS = ("#0b6e99", "#b3541e", "#4b7f52", "#7d3c98", "#8a6d1f")
Point = Mapping[str, Any]


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw frontier.svg and frontier.png. The same report gives the same bytes of SVG."""
    figure = Figure(figsize=(15.0, 5.2), layout="constrained")
    front, budget, starved = figure.subplots(1, 3)
    for colour, policy in zip(COLOURS * len(report["policies"]), report["policies"], strict=False):
        _curve(front, policy["lambda_sweep"], "cost_usd", "quality", colour, policy["policy"])
        _presets(front, policy["presets"], colour)
        _curve(budget, policy["budget_sweep"], "budget_usd", "quality", colour, policy["policy"])
        _curve(starved, policy["budget_sweep"], "budget_usd", "starved_rate", colour, policy["policy"])
        _answer(budget, policy["answer"], colour)
    for model in report["models"]:
        front.errorbar(*_place(model), **_bars(model), fmt="s", color="#555555", ms=4, lw=0.8)
        name = model["policy"].removeprefix("only ")
        front.annotate(name, _place(model), textcoords="offset points", xytext=(5, -9), fontsize=7)
    front.margins(x=0.25)
    _label(front, "USD per session", "quality per turn", "lambda swept, budgets of the log")
    _label(budget, "budget of every session, USD", "quality per turn", "budgets swept, lambda 0")
    _label(starved, "budget of every session, USD", "share of sessions", "sessions starved, lambda 0")
    starved.set_ylim(-0.02, 1.02)
    figure.legend(*front.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(COLOURS))
    meta = report["meta"]
    figure.suptitle(f"{meta['sessions']:,} held-out sessions, 95 % intervals", fontsize=9)
    paths = [folder / f"frontier.{kind}" for kind in FORMATS]
    for path in paths:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _curve(axes: Axes, points: Sequence[Point], across: str, up: str, colour: str, name: str) -> None:
    ordered = sorted(points, key=lambda point: _across(point, across))
    x = [_across(point, across) for point in ordered]
    axes.plot(x, [p[up]["mean"] for p in ordered], "o-", color=colour, ms=3, lw=1.2, label=name)
    low, high = ([p[up][end] for p in ordered] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)


def _presets(axes: Axes, presets: Mapping[str, Point], colour: str) -> None:
    """Mark the presets; those at one point share a label."""
    named: dict[tuple[float, float], list[str]] = {}
    for name, point in presets.items():
        named.setdefault(_place(point), []).append(f"@{name}")
    for place, names in named.items():
        axes.plot(*place, "D", color=colour, ms=6, mfc="white")
        label = axes.annotate(" ".join(names), place, textcoords="offset points", xytext=(-5, 5), fontsize=7)
        label.set(color=colour, ha="right", in_layout=False)


def _answer(axes: Axes, answer: Mapping[str, Any] | None, colour: str) -> None:
    """Mark the requested quality and the least budget that reaches it."""
    if answer is None:
        return
    axes.axhline(answer["quality"], color="#555555", lw=0.6)
    if answer["budget_usd"] is not None:
        axes.plot([answer["budget_usd"]] * 2, [0.0, answer["quality"]], ":", color=colour, lw=1)


def _label(axes: Axes, across: str, up: str, title: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.2)


def _across(point: Point, name: str) -> float:
    value = point[name]
    return float(value["mean"] if isinstance(value, Mapping) else value)


def _place(point: Point) -> tuple[float, float]:
    return point["cost_usd"]["mean"], point["quality"]["mean"]


def _bars(point: Point) -> dict[str, Any]:
    cost, quality = point["cost_usd"], point["quality"]
    return {
        "xerr": [[max(cost["mean"] - cost["low"], 0.0)], [max(cost["high"] - cost["mean"], 0.0)]],
        "yerr": [[max(quality["mean"] - quality["low"], 0.0)], [max(quality["high"] - quality["mean"], 0.0)]],
    }
