"""Verdict on a policy's trial: regressed, held or on trial, with reasons. Pure arithmetic.

A canary is compared with concurrent sessions by confidence sequences (`gateway/policies/confidence_sequences.py`), so
that it may be judged every few seconds without losing confidence. A shadow serves no one; it only has to answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.policies.confidence_sequences import Arm, Bounds, compare

Outcome = Literal["on trial", "held", "regressed"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A compared rate with its tolerance (no regression within) and margin (excluded to hold).

    `worse` is +1 when more is worse, -1 when less is. `relative`: tolerance and margin are shares of the control's
    rate. `unit` is the largest value of one turn, 0 when unbounded.
    """

    name: str
    worse: int
    tolerance: float
    margin: float
    relative: bool = False
    unit: float = 1.0


MEASURES: tuple[Measure, ...] = (
    Measure("cost", +1, 0.05, 0.25, relative=True, unit=0.0),
    Measure("failures", +1, 0.005, 0.05),
    Measure("quality", -1, 0.01, 0.05),
    Measure("starved", +1, 0.02, 0.10),
)


ALPHA = 0.05
"""About the probability, over the whole trial and all measures, of rolling back a canary as good as its control."""
FIRST_LOOK_SESSIONS = 30
"""Fewer sessions are not judged: the sequences are asymptotic."""
BEST_AT_SESSIONS = 100
HOLD_SESSIONS = 100
MAX_TENANT_SHARE = 0.25
"""Share of a measure's turns beyond which a tenant's sessions weigh less, as in the nightly gate."""
SHADOW_TURNS = 200
SHADOW_ANSWERED = 0.99


@dataclass(frozen=True, slots=True)
class Arms:
    """The trial's policy and its control, by the name of the measure."""

    canary: Mapping[str, Arm] = field(default_factory=dict)
    control: Mapping[str, Arm] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of a trial with its reasons; `numbers` has rates and bounds by measure."""

    outcome: Outcome
    reasons: tuple[str, ...]
    turns: int = 0
    sessions: int = 0
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The verdict as the admin API and the CLI show it."""
        return {
            "outcome": self.outcome,
            "reasons": list(self.reasons),
            "sessions": self.sessions,
            "turns": self.turns,
            "measures": {name: dict(values) for name, values in self.numbers.items()},
        }


def judge_canary(arms: Arms, *, hours: float, least_hours: float) -> Verdict:
    """Judge a canary against its control."""
    seen = arms.canary.get("cost", Arm())
    sessions, turns = seen.sessions, int(seen.m)
    if sessions < FIRST_LOOK_SESSIONS:
        reason = f"not enough data: {sessions:,} of at least {FIRST_LOOK_SESSIONS:,} sessions"
        return Verdict("on trial", (reason,), turns, sessions)
    regressions, doubts, numbers = [], [], {}
    for measure in MEASURES:
        canary, control = arms.canary.get(measure.name, Arm()), arms.control.get(measure.name, Arm())
        shown = _bounds(measure, canary, control, 0.0)
        values = {"canary": canary.rate, "control": control.rate, "low": shown.low, "high": shown.high}
        numbers[measure.name] = {name: value for name, value in values.items() if math.isfinite(value)}
        beyond = _bounds(measure, canary, control, measure.tolerance)
        within = _bounds(measure, canary, control, measure.margin)
        if _certainly_worse(measure, beyond):
            regressions.append((measure, _regression(measure, canary, control)))
        if not _certainly_not_worse(measure, within):
            doubts.append(f"{measure.name} may still be {_amount(measure, measure.margin)} worse")
    better = numbers["quality"].get("low", -1.0) > 0.0
    reasons = [text for measure, text in regressions if not (measure.name == "cost" and better)]
    if reasons:
        return Verdict("regressed", tuple(reasons), turns, sessions, numbers)
    if sessions < HOLD_SESSIONS:
        doubts.insert(0, f"{sessions:,} of {HOLD_SESSIONS:,} sessions")
    if hours < least_hours:
        doubts.insert(0, f"{hours:.1f} of {least_hours:g} hours")
    if doubts:
        return Verdict("on trial", ("not enough data: " + "; ".join(doubts),), turns, sessions, numbers)
    return Verdict("held", (f"no regression in {sessions:,} sessions, {turns:,} turns",), turns, sessions, numbers)


def weigh_tenants(arms: Mapping[str, tuple[Arm, Arm]]) -> tuple[Arm, Arm]:
    """Sum all tenants' canary and control, with less weight for large tenants.

    A tenant with more than MAX_TENANT_SHARE of the turns of either arm weighs that share over its own, in both: callers
    name their sessions, and so may place them in one arm. It may keep more than that share, since the sum shrinks too:
    of 60 % it keeps 38 %. A single tenant has weight 1.
    """
    seen = {tenant: both for tenant, both in arms.items() if any(arm.m for arm in both)}
    totals = [sum(both[arm].m for both in seen.values()) for arm in (0, 1)]
    weights = {}
    for tenant, both in seen.items():
        share = max(arm.m / total for arm, total in zip(both, totals, strict=True) if total)
        weights[tenant] = min(1.0, MAX_TENANT_SHARE / share)
    largest = max(weights.values(), default=1.0)
    parts = [(weights[tenant] / largest, both) for tenant, both in seen.items()]
    canary, control = (_weighed_sum([(weight, both[arm]) for weight, both in parts]) for arm in (0, 1))
    return canary, control


def _weighed_sum(parts: Sequence[tuple[float, Arm]]) -> Arm:
    """Sum of arms by weight; its sessions are as many equal ones as would be as certain."""
    heavy = sum(weight * arm.sessions for weight, arm in parts)
    square = sum(weight**2 * arm.sessions for weight, arm in parts)
    return Arm(
        sessions=int(heavy**2 / square + 1e-9) if square else 0,
        y=sum(weight * arm.y for weight, arm in parts),
        m=sum(weight * arm.m for weight, arm in parts),
        yy=sum(weight**2 * arm.yy for weight, arm in parts),
        ym=sum(weight**2 * arm.ym for weight, arm in parts),
        mm=sum(weight**2 * arm.mm for weight, arm in parts),
    )


def judge_shadow(turns: int, answered: int) -> Verdict:
    """Judge a shadow by the share of turns it could answer; it spends nothing to compare."""
    if turns < SHADOW_TURNS:
        return Verdict("on trial", (f"not enough data: {turns:,} of {SHADOW_TURNS:,} turns",), turns)
    summary = f"answered {answered:,} of {turns:,} turns"
    if answered < SHADOW_ANSWERED * turns:
        return Verdict("regressed", (f"{summary}, at least {SHADOW_ANSWERED:.0%} are required",), turns)
    return Verdict("held", (summary,), turns)


def _bounds(measure: Measure, canary: Arm, control: Arm, allowed: float) -> Bounds:
    """Bounds on the canary's rate minus the control's and the allowed difference."""
    allowed *= measure.worse
    scale = 1.0 + allowed if measure.relative else 1.0
    found = compare(
        canary, control, alpha=ALPHA / len(MEASURES), best_at=BEST_AT_SESSIONS, scale=scale,
        unit=measure.unit,
    )  # fmt: skip
    shift = 0.0 if measure.relative else allowed
    return Bounds(found.mean - shift, found.low - shift, found.high - shift)


def _certainly_worse(measure: Measure, beyond: Bounds) -> bool:
    return beyond.low > 0.0 if measure.worse > 0 else beyond.high < 0.0


def _certainly_not_worse(measure: Measure, within: Bounds) -> bool:
    return within.high < 0.0 if measure.worse > 0 else within.low > 0.0


def _regression(measure: Measure, canary: Arm, control: Arm) -> str:
    if measure.relative:
        how = f"{canary.rate / control.rate - 1.0:+.0%} per turn" if control.rate > 0 else "from nothing"
    else:
        how = f"{control.rate:.3f} -> {canary.rate:.3f} per turn"
    return f"{measure.name} {how}, worse by more than {_amount(measure, measure.tolerance)} with certainty"


def _amount(measure: Measure, value: float) -> str:
    return f"{value:.0%}" if measure.relative else f"{value:g}"
