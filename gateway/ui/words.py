"""A decision in words: why this model answered, in sentences that need no numbers first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.money import usd_string

_REASONS: Mapping[str, str] = {
    "policy": "The policy expected the best session from it.",
    "explore": "It was drawn at random among near-equal candidates, so that the log can teach the next policy.",
    "pinned": "The client asked for this model by name.",
    "only-affordable": "It was the only model that what is left of the budget could pay.",
    "tool-loop": "It had asked for a tool, and the result goes back to the model that asked.",
    "capability": "It was the only model able to serve what the request needs.",
    "fallback": "The first choice failed; this one answered instead.",
    "policy-off": "The learned policy is switched off; the built-in rule decided.",
    "policy-fault": "The learned policy failed in this turn; the built-in rule decided.",
    "shadow": "The built-in rule decided; a learned policy was only asked what it would have done.",
}


def explain(decision: Mapping[str, Any]) -> list[str]:
    """Sentences about one decision as `gateway.decisions.log.explain` describes it."""
    model, reason = decision["model"], decision["reason"]
    sentences = [f"{model} answered. {_REASONS.get(reason, f'The reason noted was {reason!r}.')}"]
    candidates = decision["candidates"]
    others = [c for c in candidates if c["model"] != model and c["feasible"]]
    chosen = next((c for c in candidates if c["model"] == model), None)
    if chosen is not None and others:
        sentences += _compare(chosen, others)
    excluded = [c for c in candidates if not c["feasible"]]
    if excluded:
        listed = "; ".join(f"{c['model']} ({c['why_not'] or 'not feasible'})" for c in excluded[:6])
        sentences.append(f"Not available for this turn: {listed}.")
    before, cost = decision["budget_before_nano_usd"], decision["cost_nano_usd"]
    if cost is not None:
        share = f", {cost / before:.1%} of what the session had left" if before > 0 else ""
        sentences.append(f"It cost {usd_string(cost)} USD{share}.")
    if decision.get("finish_reason") == "length":
        sentences.append("The answer was cut at its limit of output tokens.")
    return sentences


def _compare(chosen: Mapping[str, Any], others: list[Mapping[str, Any]]) -> list[str]:
    said = []
    cheaper = [c for c in others if c["cost_nano_usd"] < chosen["cost_nano_usd"]]
    costlier = [c for c in others if c["cost_nano_usd"] > chosen["cost_nano_usd"]]
    if cheaper:
        least = min(cheaper, key=lambda c: int(c["cost_nano_usd"]))
        gain = _gain(chosen, least)
        said.append(
            f"{least['model']} was expected to cost {usd_string(least['cost_nano_usd'])} USD instead of "
            f"{usd_string(chosen['cost_nano_usd'])} USD{gain}."
        )
    if costlier:
        most = max(costlier, key=lambda c: int(c["cost_nano_usd"]))
        gain = _gain(most, chosen)
        said.append(f"{most['model']} would have cost about {usd_string(most['cost_nano_usd'])} USD{gain}.")
    return said


def _gain(better: Mapping[str, Any], worse: Mapping[str, Any]) -> str:
    if better.get("quality") is None or worse.get("quality") is None:
        return ""
    points = (better["quality"] - worse["quality"]) * 100
    return f", for {abs(points):.1f} points of expected quality {'more' if points >= 0 else 'less'}"
