"""The rule which turns of the decision log are not for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policy.facts import LOG_VERSION

PINNED_REASONS = frozenset({"pinned", "fallback"})
"""Reasons of turns whose executed model was not the policy's first draw; their propensity is not that of the model."""
KNOWN_VERSIONS = (1, 2, LOG_VERSION)
"""Layouts of the log; version 1 has encoded features instead of facts."""


def why_not_trained(row: Mapping[str, Any]) -> str:
    """Reason why training leaves this turn out, or ""."""
    if row["origin"] is not None:
        return str(row["origin"])
    if row["status"] != "completed":
        return str(row["status"])
    if row["reason"] in PINNED_REASONS:
        return str(row["reason"])
    if row["feature_version"] not in KNOWN_VERSIONS:
        return f"log of version {row['feature_version']}"
    if row["cost_nanousd"] is None:
        return "no bill"
    return ""
