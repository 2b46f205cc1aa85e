"""Drift monitor: compares the log's last day with the week before and lists findings.

Every check compares sessions, not turns: turns of one session are alike, and counting them as independent raises false
alarms. A finding needs both a size that matters and certainty (z beyond FALSE_ALARM_Z, which many checks a day together
exceed by chance less than once in some months). A catalogue or price change is a fact and needs neither.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import orjson

from gateway.decisions.trainable import KNOWN_VERSIONS
from gateway.money import NANOUSD_PER_USD
from policy.arrays import F32, F64
from policy.facts import CANDIDATE_FACTS
from policy.features import SESSION_FEATURES, expected_cost_usd
from policy.text import STAT_NAMES, TEXT_DIM
from train.log.read import encoded_turn, facts_of, observed_turn
from train.log.source import Log, Row

MS_PER_DAY = 86_400_000
RECENT_DAYS, BASELINE_DAYS = 1, 7
MIN_RECENT, MIN_BASELINE = 20, 50
"""Sessions below which means are not compared."""
FALSE_ALARM_Z = 5.0
MIN_SHIFT = 0.5
"""Least shift of a feature's mean, in standard deviations between sessions."""
MIN_LATENCY_RATIO = 1.5
MIN_COST_ERROR, MIN_QUALITY_ERROR = 0.25, 0.1
PRICE_TOLERANCE = 0.005
MAX_SESSIONS = 100_000
STATE_NAMES: tuple[str, ...] = (*(f"text {i}" for i in range(TEXT_DIM)), *STAT_NAMES, *SESSION_FEATURES)
DIRECTIONS = ("input", "output")
_PRICES = [CANDIDATE_FACTS.index(f"{direction}_usd_per_mtok") for direction in DIRECTIONS]


@dataclass(frozen=True)
class TurnSeen:
    """A completed turn; `latency_s`, `predicted_quality` and `score` are None when unknown."""

    model: str
    predicted_usd: float
    billed_usd: float
    latency_s: float | None = None
    predicted_quality: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class SessionSeen:
    """A session in the monitor's terms: features, turns and prices.

    `features` (D,) are the mean of its turns', whose texts are of `text_spaces`; `prices` in USD per million tokens by
    model and direction, the lowest of its turns (longer prompts may be in a more expensive tier).
    """

    at_ms: int
    features: F64
    turns: tuple[TurnSeen, ...]
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    text_spaces: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Finding:
    """A change of one `kind`: feature, catalogue, price, latency, cost or quality.

    `size` is in the unit that `text` names.
    """

    kind: str
    what: str
    size: float
    text: str


def health(log: Log, now_ms: int) -> dict[str, Any]:
    """Report section of the monitor: windows and findings. Streams the log's last eight days."""
    sessions = list(sessions_seen(log, now_ms - (RECENT_DAYS + BASELINE_DAYS) * MS_PER_DAY, now_ms))
    since_ms = now_ms - RECENT_DAYS * MS_PER_DAY
    recent = [session for session in sessions if session.at_ms >= since_ms]
    baseline = [session for session in sessions if session.at_ms < since_ms]
    found = findings(recent, baseline)
    return {
        "recent_sessions": len(recent),
        "baseline_sessions": len(baseline),
        "compared": len(recent) >= MIN_RECENT and len(baseline) >= MIN_BASELINE,
        "calibration": calibration(recent),
        "findings": [asdict(item) for item in found],
        "notes": _notes(found, len(recent), len(baseline)),
    }


def _notes(found: Sequence[Finding], recent: int, baseline: int) -> list[str]:
    notes = [item.text for item in found]
    if recent < MIN_RECENT or baseline < MIN_BASELINE:
        notes.append(
            f"too few sessions to tell what drifted: {recent:,} in the last day (at least {MIN_RECENT} needed), "
            f"{baseline:,} in the week before (at least {MIN_BASELINE} needed)"
        )
    return notes or ["nothing drifted"]


def findings(recent: Sequence[SessionSeen], baseline: Sequence[SessionSeen]) -> list[Finding]:
    """All changes between the two windows, most tangible first."""
    found = [*catalogue_changes(recent, baseline), *price_changes(recent, baseline)]
    if len(recent) >= MIN_RECENT and len(baseline) >= MIN_BASELINE:
        found += [*latency_changes(recent, baseline), *feature_shifts(recent, baseline)]
    if len(recent) >= MIN_RECENT:
        found += calibration_errors(recent)
    return found


def catalogue_changes(recent: Sequence[SessionSeen], baseline: Sequence[SessionSeen]) -> Iterator[Finding]:
    """Models that appeared among the candidates or disappeared."""
    if not recent or not baseline:
        return
    now = {name for session in recent for name in session.prices}
    before = {name for session in baseline for name in session.prices}
    for name in sorted(now - before):
        yield Finding("catalogue", name, 1.0, f"{name} is new: the policy knows only its catalogue entry")
    for name in sorted(before - now):
        yield Finding("catalogue", name, -1.0, f"{name} is gone from the catalogue")


def price_changes(recent: Sequence[SessionSeen], baseline: Sequence[SessionSeen]) -> Iterator[Finding]:
    """Models whose lowest price in a direction changed."""
    now, before = _lowest_prices(recent), _lowest_prices(baseline)
    for key in sorted(now.keys() & before.keys()):
        ratio = now[key] / max(before[key], 1e-12)
        if abs(now[key] - before[key]) > PRICE_TOLERANCE * max(before[key], 0.01):
            model, direction = key
            yield Finding(
                "price", model, ratio,
                f"{model}: the {direction} price was {before[key]:.4g} USD per million tokens and is {now[key]:.4g}",
            )  # fmt: skip


def latency_changes(recent: Sequence[SessionSeen], baseline: Sequence[SessionSeen]) -> Iterator[Finding]:
    """Models whose latency changed by MIN_LATENCY_RATIO, by the geometric mean over sessions."""
    now, before = _log_latencies(recent), _log_latencies(baseline)
    for model in sorted(now.keys() & before.keys()):
        mine, theirs = np.asarray(now[model]), np.asarray(before[model])
        if len(mine) < MIN_RECENT or len(theirs) < MIN_BASELINE:
            continue
        change = float(mine.mean() - theirs.mean())
        if abs(change) >= math.log(MIN_LATENCY_RATIO) and abs(change) > FALSE_ALARM_Z * standard_error(mine, theirs):
            ratio = math.exp(change)
            yield Finding(
                "latency", model, ratio, f"{model} answers in {ratio:.2f} times the time it took the week before"
            )


def feature_shifts(recent: Sequence[SessionSeen], baseline: Sequence[SessionSeen]) -> Iterator[Finding]:
    """Features of the state whose mean moved by MIN_SHIFT or more.

    The text is one of them, if all of it is of one space.
    """
    now, before = np.stack([s.features for s in recent]), np.stack([s.features for s in baseline])
    pooled = np.sqrt((now.var(axis=0) * len(now) + before.var(axis=0) * len(before)) / (len(now) + len(before)))
    deviation = np.maximum(pooled, 1e-6)
    shift = (now.mean(axis=0) - before.mean(axis=0)) / deviation
    certain = FALSE_ALARM_Z * math.sqrt(1 / len(now) + 1 / len(before))
    moved = np.flatnonzero(np.abs(shift) >= max(MIN_SHIFT, certain))
    text = [i for i in moved if i < TEXT_DIM and now.shape[1] == len(STATE_NAMES)]
    spaces = frozenset().union(*(s.text_spaces for s in (*recent, *baseline)))
    if text and len(spaces) < 2:
        largest = float(np.abs(shift[text]).max())
        yield Finding("feature", "text", largest, f"users' topics changed: {len(text)} text features moved")
    for i in sorted(set(moved.tolist()) - set(text), key=lambda i: -abs(shift[i])):
        name = STATE_NAMES[i] if now.shape[1] == len(STATE_NAMES) else f"feature {i}"
        size = float(shift[i])
        yield Finding("feature", name, size, f"{name} moved by {size:+.2f} standard deviations between sessions")


def calibration_errors(recent: Sequence[SessionSeen]) -> Iterator[Finding]:
    """Predictions with a large and certain bias."""
    found = calibration(recent)
    for kind, wrong, least in (
        ("cost", _minus_one(found["cost_ratio"]), MIN_COST_ERROR),
        ("quality", found["quality_bias"], MIN_QUALITY_ERROR),
    ):
        error = found["cost_ratio_error" if kind == "cost" else "quality_bias_error"]
        if wrong is None or error is None or abs(wrong) < least or abs(wrong) <= FALSE_ALARM_Z * error:
            continue
        text = (
            f"bills are {wrong + 1:.2f} times what was predicted"
            if kind == "cost"
            else f"scores are {wrong:+.2f} off what was predicted"
        )
        yield Finding(kind, "calibration", wrong, text)


def calibration(sessions: Sequence[SessionSeen]) -> dict[str, float | None]:
    """Ratio of billed to predicted cost and mean score error, each with its standard error."""
    predicted = np.array([sum(t.predicted_usd for t in s.turns) for s in sessions])
    billed = np.array([sum(t.billed_usd for t in s.turns) for s in sessions])
    ratio, ratio_error = _ratio(billed, predicted)
    bias, scored = [], []
    for session in sessions:
        both = [
            turn.score - turn.predicted_quality
            for turn in session.turns
            if turn.score is not None and turn.predicted_quality is not None
        ]
        bias.append(sum(both))
        scored.append(float(len(both)))
    mean, mean_error = _ratio(np.array(bias), np.array(scored))
    return {
        "cost_ratio": ratio,
        "cost_ratio_error": ratio_error,
        "quality_bias": mean,
        "quality_bias_error": mean_error,
        "scored_turns": float(sum(scored)),
    }


def standard_error(a: F64, b: F64) -> float:
    """Standard error of the difference of two means (Welch 1947)."""
    return math.sqrt(float(a.var(ddof=1)) / len(a) + float(b.var(ddof=1)) / len(b))


def _ratio(numerator: F64, denominator: F64) -> tuple[float | None, float | None]:
    """Ratio of sums and its standard error (Cochran 1977, 6.4); None below two sessions."""
    total, seen = float(denominator.sum()), int(np.count_nonzero(denominator))
    if total <= 0 or seen < 2:
        return None, None
    ratio = float(numerator.sum()) / total
    residual = numerator - ratio * denominator
    return ratio, math.sqrt(float(np.sum(residual**2)) * seen / (seen - 1)) / total


def _minus_one(ratio: float | None) -> float | None:
    return None if ratio is None else ratio - 1.0


def _lowest_prices(sessions: Iterable[SessionSeen]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for session in sessions:
        for model, directions in session.prices.items():
            for direction, price in directions.items():
                key = (model, direction)
                found[key] = min(found.get(key, math.inf), price)
    return found


def _log_latencies(sessions: Iterable[SessionSeen]) -> dict[str, list[float]]:
    """Mean logarithm of its turns' latencies for each session, by model."""
    found: dict[str, list[float]] = defaultdict(list)
    for session in sessions:
        mine: dict[str, list[float]] = defaultdict(list)
        for turn in session.turns:
            if turn.latency_s is not None and turn.latency_s > 0:
                mine[turn.model].append(math.log(turn.latency_s))
        for model, values in mine.items():
            found[model].append(sum(values) / len(values))
    return found


def sessions_seen(log: Log, since_ms: int, now_ms: int) -> Iterator[SessionSeen]:
    """The log's completed client turns as sessions, dated by their last turn."""
    scores: dict[str, list[float]] = defaultdict(list)
    for score in log.feedback(since_ms, now_ms):
        if score.decision_id:
            scores[score.decision_id].append(score.signal.score)
    rows = log.decisions(since_ms, now_ms, MAX_SESSIONS)
    for _, group in groupby(rows, key=lambda row: (row["tenant_id"], row["session_id"])):
        turns = [(row, state) for row in group if (state := _state(row)) is not None]
        if turns:
            yield _session(turns, scores)


def _state(row: Row) -> F32 | None:
    """The turn's features, (STATE_NAMES,), or None when it does not count."""
    counts = (
        row["origin"] is None
        and row["status"] == "completed"
        and row["feature_version"] in KNOWN_VERSIONS
        and row["cost_nanousd"] is not None
    )
    observation = observed_turn(row, orjson.loads(row["candidates"])) if counts else None
    encoded = None if observation is None else encoded_turn(observation)
    return None if encoded is None else encoded.state


def _session(rows: Sequence[tuple[Row, F32]], scores: Mapping[str, Sequence[float]]) -> SessionSeen:
    prices: dict[str, dict[str, float]] = {}
    turns, spaces = [], set()
    for row, _ in rows:
        candidates, facts = orjson.loads(row["candidates"]), facts_of(row)
        spaces.add(facts.text_space)
        listed = facts.candidates[:, _PRICES].tolist()
        for candidate, usd in zip(candidates, listed, strict=False):
            lowest = prices.setdefault(candidate["model"], dict(zip(DIRECTIONS, usd, strict=True)))
            for direction, price in zip(DIRECTIONS, usd, strict=True):
                lowest[direction] = min(lowest[direction], price)
        chosen = next((c for c in candidates if c["model"] == row["model"]), None)
        if chosen is not None:
            turns.append(_turn(row, chosen, scores.get(row["decision_id"], ())))
    mean = np.stack([state for _, state in rows]).mean(axis=0, dtype=np.float64)
    at_ms = max(row["created_at_ms"] for row, _ in rows)
    return SessionSeen(at_ms, mean, tuple(turns), prices, frozenset(spaces))


def _turn(row: Row, chosen: Mapping[str, Any], scores: Sequence[float]) -> TurnSeen:
    quantiles = np.asarray(chosen["cost_quantiles_nano_usd"], np.float64) / NANOUSD_PER_USD
    quality = chosen["quality"]
    return TurnSeen(
        model=row["model"],
        predicted_usd=float(expected_cost_usd(quantiles)),
        billed_usd=row["cost_nanousd"] / NANOUSD_PER_USD,
        latency_s=None if row["latency_ms"] is None else row["latency_ms"] / 1000,
        predicted_quality=float(quality) if isinstance(quality, int | float) else None,
        score=sum(scores) / len(scores) if scores else None,
    )
