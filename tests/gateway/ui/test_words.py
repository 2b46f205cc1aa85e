"""A decision explained in sentences."""

from __future__ import annotations

from typing import Any

from gateway.ui.words import explain


def candidate(model: str, cost: int, quality: float | None, **changes: Any) -> dict[str, Any]:
    return {"model": model, "feasible": True, "why_not": None, "cost_nano_usd": cost, "quality": quality} | changes


def decision(**changes: Any) -> dict[str, Any]:
    return {
        "model": "mid",
        "reason": "policy",
        "candidates": [
            candidate("small", 1_000_000, 0.6),
            candidate("mid", 2_000_000, 0.75),
            candidate("large", 9_000_000, 0.8),
            candidate("blind", 1, None, feasible=False, why_not="no image input"),
        ],
        "budget_before_nano_usd": 100_000_000,
        "cost_nano_usd": 2_500_000,
        "finish_reason": "stop",
    } | changes


def test_the_choice_is_compared_with_the_cheapest_and_the_most_expensive_alternative() -> None:
    assert explain(decision()) == [
        "mid answered. The policy expected the best session with it.",
        "The cheapest other candidate, small, was expected to cost $0.001 instead of $0.002 and to be 15.0 points "
        "worse.",
        "The most expensive one, large, was expected to cost $0.009 instead of $0.002 and to be 5.0 points better.",
        "Not available for this turn: blind (no image input).",
        "It cost $0.0025, 2.5 % of what the session had left.",
    ]


def test_a_pending_or_unknown_decision_still_reads() -> None:
    sentences = explain(decision(reason="odd", cost_nano_usd=None, candidates=[], finish_reason="length"))
    assert sentences == [
        "mid answered. The recorded reason was 'odd'.", "The answer was cut off at its output token limit.",
    ]  # fmt: skip
