"""The demo's tables, with every number read from the gateway's database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.player import FEEDBACK_NAME

NANOUSD_PER_USD = 10**9
RESAMPLES = 4000

_SESSIONS = """
SELECT s.session_id, COALESCE(s.expected_turns, s.turns), s.spent_nanousd, s.granted_nanousd,
       COUNT(d.decision_id), COALESCE(SUM(f.score), 0), COUNT(f.score)
FROM sessions s
LEFT JOIN decisions d ON d.tenant_id = s.tenant_id AND d.session_id = s.session_id
    AND d.status IN ('completed', 'truncated')
LEFT JOIN feedback f ON f.decision_id = d.decision_id AND f.name = :feedback
WHERE s.session_id LIKE :label || '-%'
GROUP BY s.tenant_id, s.session_id
ORDER BY s.session_id
"""

_MODELS = """
SELECT session_id, model, policy_id, input_tokens, cached_tokens FROM decisions
WHERE session_id LIKE :label || '-%' AND status IN ('completed', 'truncated') ORDER BY session_id, turn, created_at_ms
"""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass read from the database; arrays have one entry per session, ordered by id.

    `quality` is the mean score over the planned turns: an unanswered turn scores 0. `unanswered` counts those.
    """

    label: str
    policies: tuple[str, ...]
    models: dict[str, int]
    quality: NDArray[np.float64]
    spent_usd: NDArray[np.float64]
    budget_usd: NDArray[np.float64]
    unanswered: NDArray[np.int64]
    answered: int
    graded: int
    score: float
    switches: int
    input_tokens: int
    cached_tokens: int

    @property
    def sessions(self) -> int:
        """Number of sessions."""
        return len(self.quality)

    @property
    def bankrupt(self) -> int:
        """Number of sessions whose budget ran out before their last turn."""
        return int((self.unanswered > 0).sum())

    @property
    def points_per_usd(self) -> float:
        """Sum of scores per dollar."""
        return self.score / float(self.spent_usd.sum()) if self.spent_usd.sum() > 0 else float("nan")

    @property
    def cached_share(self) -> float:
        """The share of prompt tokens that were billed at the cached price."""
        return self.cached_tokens / self.input_tokens if self.input_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the 95 % interval of a bootstrap over sessions."""

    mean: float
    low: float
    high: float


def read_pass(database: Path, label: str) -> Pass:
    """The sessions whose ids begin with `label-`."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10.0)) as connection:
        sessions = connection.execute(_SESSIONS, {"label": label, "feedback": FEEDBACK_NAME}).fetchall()
        decisions = connection.execute(_MODELS, {"label": label}).fetchall()
    models: dict[str, int] = {}
    for _, model, *_rest in decisions:
        models[model] = models.get(model, 0) + 1
    switches = sum(1 for before, after in pairwise(decisions) if before[0] == after[0] and before[1] != after[1])
    planned = np.array([row[1] for row in sessions], np.int64)
    answered = np.array([row[4] for row in sessions], np.int64)
    score = np.array([row[5] for row in sessions], np.float64)
    return Pass(
        label=label,
        policies=tuple(sorted({policy for _, _, policy, _, _ in decisions})),
        models=dict(sorted(models.items(), key=lambda item: -item[1])),
        quality=score / np.maximum(planned, 1),
        spent_usd=np.array([row[2] / NANOUSD_PER_USD for row in sessions], np.float64),
        budget_usd=np.array([row[3] / NANOUSD_PER_USD for row in sessions], np.float64),
        unanswered=np.maximum(planned - answered, 0),
        answered=int(answered.sum()),
        graded=sum(row[6] for row in sessions),
        score=float(score.sum()),
        switches=switches,
        input_tokens=sum(row[3] or 0 for row in decisions),
        cached_tokens=sum(row[4] or 0 for row in decisions),
    )


def ledger_totals(database: Path) -> dict[str, int]:
    """Settled, still reserved and overage amounts of all sessions, in nano-USD."""
    statement = "SELECT SUM(spent_nanousd), SUM(reserved_nanousd), SUM(overage_nanousd) FROM sessions"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10.0)) as connection:
        spent, reserved, overage = connection.execute(statement).fetchone()
    return {"settled": spent or 0, "reserved": reserved or 0, "overage": overage or 0}


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A trained policy in the database; `reasons` are the gate's."""

    policy_id: str
    stage: str
    reasons: tuple[str, ...]


def trained_policies(database: Path) -> list[PolicyRow]:
    """Every trained policy, the champion first, then the newest."""
    statement = "SELECT policy_id, stage, report FROM policies ORDER BY stage <> 'champion', created_at_ms DESC"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10.0)) as connection:
        found = connection.execute(statement).fetchall()
    return [PolicyRow(row[0], row[1], tuple(map(str, json.loads(row[2]).get("reasons") or ()))) for row in found]


def bootstrap(values: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Mean of one value per session, with a bootstrap interval over sessions."""
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def paired(after: Pass, before: Pass) -> Interval:
    """Paired difference in quality between two passes over the same conversations."""
    return bootstrap(after.quality - before.quality)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A text table: a header and lines with the same number of cells."""

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def outcome_sheet(passes: Sequence[tuple[str, Pass]]) -> Sheet:
    """Quality, cost and bankruptcies of each contender, within 80 columns."""
    header = ("policy", "quality (95 %)", "cents/session (95 %)", "points/USD", "bankrupt")
    lines = []
    for name, played in passes:
        quality, cents = bootstrap(played.quality), bootstrap(100.0 * played.spent_usd)
        lines.append(
            (
                name,
                f"{quality.mean:.3f} ({quality.low:.3f}-{quality.high:.3f})",
                f"{cents.mean:.3f} ({cents.low:.3f}-{cents.high:.3f})",
                f"{played.points_per_usd:,.0f}",
                f"{played.bankrupt} of {played.sessions}",
            )
        )
    return Sheet(header, tuple(lines))


def conduct_sheet(passes: Sequence[tuple[str, Pass]]) -> Sheet:
    """Turns, model switches per session, cache share and models of each contender."""
    header = ("policy", "turns", "switches", "cached", "who answered")
    return Sheet(
        header,
        tuple(
            (
                name,
                str(played.answered),
                f"{played.switches / max(1, played.sessions):.1f}",
                f"{played.cached_share:.0%}",
                _shares(played.models),
            )
            for name, played in passes
        ),
    )


def _shares(models: dict[str, int]) -> str:
    total = sum(models.values())
    return ", ".join(f"{name.removeprefix('sim-')} {count / total:.0%}" for name, count in models.items())
