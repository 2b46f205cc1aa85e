"""Read the decision log into padded arrays of episodes: the only place that knows the log's rows.

Shapes: S sessions, T turns (padded, `valid`), K candidates (padded, `mask` False), L cost levels. Money is float USD
here: learning needs no ledger.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.money import NANOUSD_PER_USD
from policy.mdp import COST_LEVELS
from train.config import TrainConfig
from train.log import Log, Score
from train.reward import Label, Signal, label

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

MS_PER_DAY = 86_400_000

NOT_AFFORDABLE = "not affordable"
"""The guard's word for a candidate that only the purse of that moment ruled out: another purse may allow it."""

PINNED_REASONS = frozenset({"pinned", "fallback"})
"""The executed model was not the policy's draw: nothing can be said about a draw that did not decide."""


@dataclass(frozen=True)
class Episodes:
    """Sessions as arrays. `reward` is NaN where nobody graded the turn; `actions` are indices into the candidates.

    A log knows the grade and the bill of the logged action alone. Where others are known too (every model was asked),
    `scores` and `bills_usd` hold them. `task` names what was asked: turns of one task are never on both sides of a
    cross-fit, whatever session they stand in; -1 where a session's turns are its own.
    """

    session_ids: tuple[str, ...]
    tenant_ids: tuple[str, ...]
    models: tuple[str, ...]
    valid: Bools  # (S, T)
    state: F32  # (S, T, D)
    candidates: F32  # (S, T, K, C)
    cost_quantiles_usd: F32  # (S, T, K, L)
    mask: Bools  # (S, T, K) candidates able to answer, were there money enough
    offered: Bools  # (S, T, K) those that the purse of that moment allowed too
    model: I32  # (S, T, K) index into `models`, -1 for padding
    prior_quality: F32  # (S, T, K) what the serving policy believed
    probabilities: F32  # (S, T, K) of the serving policy's draw
    action: I32  # (S, T)
    propensity: F32  # (S, T)
    reward: F32  # (S, T)
    cost_usd: F32  # (S, T)
    remaining_usd: F32  # (S, T) before the turn
    budget_usd: F32  # (S, T)
    lambda_per_usd: F32  # (S, T)
    expected_turns: I32  # (S, T), 0 when the client declared none
    policy: I32  # (S, T) index into `policy_ids`
    scores: F32  # (S, T, K) grades of any action, NaN where not known
    bills_usd: F32  # (S, T, K) bills of any action, NaN where not known
    task: I64  # (S, T)
    policy_ids: tuple[str, ...] = ()

    @property
    def sessions(self) -> int:
        return len(self.session_ids)

    @property
    def turns(self) -> int:
        return int(self.valid.sum())

    @property
    def lengths(self) -> I32:
        """Turns of each session, (S,)."""
        return np.asarray(self.valid.sum(axis=1), np.int32)

    def known_scores(self) -> F32:
        """Every grade there is, (S, T, K): `scores`, and `reward` at the logged action; NaN elsewhere."""
        at = np.arange(self.mask.shape[-1]) == self.action[..., None]
        return np.where(at & np.isfinite(self.reward)[..., None], self.reward[..., None], self.scores)

    def known_bills_usd(self) -> F32:
        """Every bill there is, (S, T, K): `bills_usd`, and `cost_usd` at the logged action; NaN elsewhere."""
        at = np.arange(self.mask.shape[-1]) == self.action[..., None]
        return np.where(at, self.cost_usd[..., None], self.bills_usd)

    def take(self, rows: NDArray[np.int64] | Bools) -> Episodes:
        """Some sessions of these."""
        chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else np.asarray(rows)
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                values[item.name] = value[chosen]
            elif item.name in ("session_ids", "tenant_ids"):
                values[item.name] = tuple(value[i] for i in chosen)
            else:
                values[item.name] = value
        return Episodes(**values)

    def digest(self) -> str:
        """Names exactly this data: the first half of a run's identity, the config's digest is the other."""
        names = json.dumps([self.session_ids, self.models, self.policy_ids])
        total = hashlib.sha256(names.encode())
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                total.update(np.ascontiguousarray(value).tobytes())
        return total.hexdigest()[:16]


@dataclass(frozen=True)
class LogReport:
    """What was read and what was left out, with the reasons. Counts are turns unless named otherwise."""

    sessions: int
    turns: int
    excluded: Mapping[str, int]
    labels: Mapping[str, int]
    policies: Mapping[str, int]
    models: Mapping[str, int]


@dataclass
class _Session:
    tenant_id: str
    session_id: str
    turns: list[dict[str, Any]] = field(default_factory=list)


def read_episodes(log: Log, config: TrainConfig, *, feature_version: int, now_ms: int) -> tuple[Episodes, LogReport]:
    """The training log, newest sessions first cut, then in order of their ids; streamed a session at a time.

    Excluded and counted: turns of the judge and of operators; turns that are pending, failed, truncated, cancelled or
    orphaned; pinned turns and fallbacks; turns logged with other features; rows whose vectors do not have the shape
    they claim.
    """
    since_ms = now_ms - int(config.log.since_days * MS_PER_DAY)
    of_turn, of_session = _signals(log.feedback(since_ms, now_ms))
    excluded: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    kept: list[_Session] = []
    rows = log.decisions(since_ms, now_ms, config.log.max_sessions)
    for key, group in groupby(rows, key=lambda row: (str(row["tenant_id"]), str(row["session_id"]))):
        session, together = _Session(*key), list(group)
        said_after = _said_after(together)
        for row in together:
            reason = why_excluded(row, feature_version)
            turn = None if reason else _decoded(row)
            if turn is None:
                excluded[reason or "malformed"] += 1
                continue
            implicit = {**_object(row["signals"]), **said_after.get(row["decision_id"], {})}
            turn["label"] = label(of_turn.get(row["decision_id"], ()), of_session.get(key, ()), implicit, config.reward)
            labels[turn["label"].kind] += 1
            session.turns.append(turn)
        if session.turns:
            kept.append(session)
    kept.sort(key=lambda session: (session.tenant_id, session.session_id))
    policies = Counter(turn["policy_id"] for session in kept for turn in session.turns)
    models = Counter(turn["names"][turn["action"]] for session in kept for turn in session.turns)
    episodes = _padded(kept)
    return episodes, LogReport(
        sessions=episodes.sessions,
        turns=episodes.turns,
        excluded=dict(excluded),
        labels=dict(labels),
        policies=dict(policies),
        models=dict(models),
    )


def why_excluded(row: Mapping[str, Any], feature_version: int) -> str:
    """The reason this turn teaches nothing, or "" when it is learnt from."""
    if row["origin"] is not None:
        return str(row["origin"])
    if row["status"] != "completed":
        return str(row["status"])
    if row["reason"] in PINNED_REASONS:
        return str(row["reason"])
    if row["feature_version"] != feature_version:
        return f"features of version {row['feature_version']}"
    if row["cost_nanousd"] is None:
        return "no bill"
    return ""


def _signals(scores: Iterable[Score]) -> tuple[dict[str, list[Signal]], dict[tuple[str, str], list[Signal]]]:
    """Feedback by decision, and by session where it is about the whole session."""
    of_turn: dict[str, list[Signal]] = defaultdict(list)
    of_session: dict[tuple[str, str], list[Signal]] = defaultdict(list)
    for score in scores:
        if score.decision_id:
            of_turn[score.decision_id].append(score.signal)
        else:
            of_session[(score.tenant_id, score.session_id)].append(score.signal)
    return of_turn, of_session


_OF_THE_TURN_BEFORE = {"regenerates": "regenerated", "edits": "edited"}
"""What the next turn says of this one, and the name it then has among this one's signals."""


def _said_after(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """By decision: the signals that its next turn brought."""
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in rows:
        signals = _object(row["signals"])
        for seen, name in _OF_THE_TURN_BEFORE.items():
            if signals.get(seen) and row["previous_decision_id"]:
                found[row["previous_decision_id"]][name] = True
    return found


def _object(text: str) -> Mapping[str, object]:
    value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _decoded(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """One turn's vectors, or None when they do not have the shape the row claims."""
    candidates = json.loads(row["candidates"])
    count, action = len(candidates), row["action"]
    state = np.frombuffer(row["features"], "<f4")
    flat = np.frombuffer(row["candidate_features"], "<f4")
    if not 0 <= action < count or flat.size % count or candidates[action]["model"] != row["model"]:
        return None
    quantiles = [candidate["cost_quantiles_nano_usd"] for candidate in candidates]
    if any(len(levels) != len(COST_LEVELS) for levels in quantiles):
        return None
    return {
        "state": state,
        "candidates": flat.reshape(count, -1),
        "names": [candidate["model"] for candidate in candidates],
        "cost_quantiles_usd": np.asarray(quantiles, np.float64) / NANOUSD_PER_USD,
        "offered": np.asarray([bool(candidate["feasible"]) for candidate in candidates]),
        "mask": np.asarray([c["feasible"] or c["why_not"] == NOT_AFFORDABLE for c in candidates]),
        "probabilities": np.asarray([candidate["probability"] or 0.0 for candidate in candidates]),
        "prior_quality": np.asarray([_number(candidate["quality"]) for candidate in candidates]),
        "action": action,
        "propensity": row["propensity"],
        "cost_usd": row["cost_nanousd"] / NANOUSD_PER_USD,
        "remaining_usd": row["remaining_before_nanousd"] / NANOUSD_PER_USD,
        "budget_usd": row["session_budget_nanousd"] / NANOUSD_PER_USD,
        "lambda_per_usd": row["lambda_per_usd"],
        "expected_turns": row["expected_turns"] or 0,
        "policy_id": row["policy_id"],
    }


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _padded(sessions: Sequence[_Session]) -> Episodes:
    """The sessions as arrays. Their turns are let go as they are placed: the log is never held twice."""
    models = tuple(sorted({name for session in sessions for turn in session.turns for name in turn["names"]}))
    policy_ids = tuple(sorted({turn["policy_id"] for session in sessions for turn in session.turns}))
    s = len(sessions)
    t = max((len(session.turns) for session in sessions), default=1)
    k = max((len(turn["names"]) for session in sessions for turn in session.turns), default=1)
    d = sessions[0].turns[0]["state"].size if sessions else 1
    c = sessions[0].turns[0]["candidates"].shape[1] if sessions else 1
    e = blank_episodes(
        tuple(x.session_id for x in sessions), tuple(x.tenant_id for x in sessions), models, policy_ids, (s, t, k, d, c)
    )
    model_index = {name: i for i, name in enumerate(models)}
    policy_index = {name: i for i, name in enumerate(policy_ids)}
    for i, session in enumerate(sessions):
        for j, turn in enumerate(session.turns):
            n = len(turn["names"])
            e.valid[i, j] = True
            e.state[i, j] = turn["state"]
            e.candidates[i, j, :n] = turn["candidates"]
            e.cost_quantiles_usd[i, j, :n] = turn["cost_quantiles_usd"]
            e.mask[i, j, :n] = turn["mask"]
            e.offered[i, j, :n] = turn["offered"]
            e.mask[i, j, turn["action"]] = e.offered[i, j, turn["action"]] = True
            e.model[i, j, :n] = [model_index[name] for name in turn["names"]]
            e.prior_quality[i, j, :n] = turn["prior_quality"]
            e.probabilities[i, j, :n] = turn["probabilities"]
            e.action[i, j] = turn["action"]
            e.propensity[i, j] = turn["propensity"]
            e.probabilities[i, j, turn["action"]] = turn["propensity"]
            scored: Label = turn["label"]
            e.reward[i, j] = scored.score
            for name in ("cost_usd", "remaining_usd", "budget_usd", "lambda_per_usd", "expected_turns"):
                getattr(e, name)[i, j] = turn[name]
            e.policy[i, j] = policy_index[turn["policy_id"]]
        session.turns.clear()
    return e


def blank_episodes(
    session_ids: Iterable[str],
    tenant_ids: Iterable[str],
    models: tuple[str, ...],
    policy_ids: tuple[str, ...],
    sizes: tuple[int, int, int, int, int],
) -> Episodes:
    """Arrays of the sizes (S, T, K, D, C), all invalid: for whoever composes episodes to fill."""
    s, t, k, d, c = sizes
    return Episodes(
        session_ids=tuple(session_ids),
        tenant_ids=tuple(tenant_ids),
        models=models,
        policy_ids=policy_ids,
        valid=np.zeros((s, t), np.bool_),
        state=np.zeros((s, t, d), np.float32),
        candidates=np.zeros((s, t, k, c), np.float32),
        cost_quantiles_usd=np.zeros((s, t, k, len(COST_LEVELS)), np.float32),
        mask=np.zeros((s, t, k), np.bool_),
        offered=np.zeros((s, t, k), np.bool_),
        model=np.full((s, t, k), -1, np.int32),
        prior_quality=np.full((s, t, k), np.nan, np.float32),
        probabilities=np.zeros((s, t, k), np.float32),
        action=np.zeros((s, t), np.int32),
        propensity=np.ones((s, t), np.float32),
        reward=np.full((s, t), np.nan, np.float32),
        cost_usd=np.zeros((s, t), np.float32),
        remaining_usd=np.zeros((s, t), np.float32),
        budget_usd=np.zeros((s, t), np.float32),
        lambda_per_usd=np.zeros((s, t), np.float32),
        expected_turns=np.zeros((s, t), np.int32),
        policy=np.zeros((s, t), np.int32),
        scores=np.full((s, t, k), np.nan, np.float32),
        bills_usd=np.full((s, t, k), np.nan, np.float32),
        task=np.full((s, t), -1, np.int64),
    )


def split_by_session(episodes: Episodes, holdout_fraction: float, seed: int) -> tuple[Episodes, Episodes]:
    """(training part, untouched part). A session is wholly on one side, the same side in every run with this seed."""
    held = np.array(
        [
            session_fraction(tenant, session, seed) < holdout_fraction
            for tenant, session in zip(episodes.tenant_ids, episodes.session_ids, strict=True)
        ],
        np.bool_,
    ).reshape(episodes.sessions)
    return episodes.take(~held), episodes.take(held)


def session_fraction(tenant_id: str, session_id: str, seed: int) -> float:
    """A number in [0, 1) that depends on the names and the seed alone."""
    digest = hashlib.sha256(f"{seed}\0{tenant_id}\0{session_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
