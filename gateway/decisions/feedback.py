"""Feedback in four dialects, stored in one form, once per (decision, source, name).

Ours `{decision_id|completion_id|session_id, score}`; TensorZero's `{inference_id|episode_id, metric_name, value}`
(https://www.tensorzero.com/docs/gateway/api-reference/feedback); Portkey's `{trace_id, value: -10..10, weight}`
(https://portkey.ai/docs/product/observability/feedback); vLLM semantic router's `{replay_id, target, verdict, score}`
(its `POST /v1/router/outcomes`). Scores are mapped and clipped to 0..1; implausible values are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, insert, select, update

from gateway.accounts.sessions import normalize_id
from gateway.database import tables
from gateway.errors import InvalidRequest, NotFound

MAX_COMMENT = 2000
MAX_SCORE = 1e6
"""A number beyond this is a timestamp or a bug, not a score off its scale."""
JUDGE = "judge"
"""The source of the gateway's own judge (gateway/turn/judge.py); no client may use it."""
VERDICTS: Mapping[str, float] = {"good_fit": 1.0, "overprovisioned": 1.0, "underpowered": 0.25, "failed": 0.0}
"""A semantic router's verdicts as scores of the *answer*: too strong a model still gives a good one."""
_LABEL_LENGTH = 64
_ID_LENGTH = 1024
"""Longer than our ids: other systems' session ids may have any form and are hashed when stored."""


@dataclass(frozen=True, slots=True)
class FeedbackSignal:
    """One score of a decision (by its id or its completion's id) or of a whole session.

    `score` is None for text without a score (TensorZero's comments and demonstrations): validated, not stored.
    """

    target: Literal["decision", "completion", "session"]
    target_id: str
    source: str
    name: str
    score: float | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of storing a signal; `feedback_id` is None when it had no score."""

    feedback_id: str | None
    decision_id: str | None
    session_id: str
    new: bool
    """False when this (decision, source, name) already had a score, or the signal has none."""
    predicted_quality: float | None = None
    """The policy's prediction for the scored answer, where it makes one."""


def read_signal(fields: Mapping[str, Any], key_id: str) -> FeedbackSignal:
    """Recognise the dialect and map the score to 0..1. Raises InvalidRequest naming the field."""
    if "metric_name" in fields or "inference_id" in fields or "episode_id" in fields:
        return _tensorzero(fields, key_id)
    if "trace_id" in fields:
        return _portkey(fields, key_id)
    if "replay_id" in fields:
        return _semantic_router(fields, key_id)
    named = [name for name in ("decision_id", "completion_id", "session_id") if fields.get(name) is not None]
    if len(named) != 1:
        raise InvalidRequest(
            "decision_id: expected exactly one of decision_id, completion_id, session_id", param="decision_id"
        )
    target: dict[str, Literal["decision", "completion", "session"]] = {
        "decision_id": "decision",
        "completion_id": "completion",
        "session_id": "session",
    }
    return FeedbackSignal(
        target=target[named[0]],
        target_id=_text(fields, named[0], _ID_LENGTH),
        source=_source(fields, key_id),
        name=_text(fields, "name", _LABEL_LENGTH) if fields.get("name") is not None else "score",
        score=_clip(_finite(fields.get("score"), "score")),
        comment=_comment(fields.get("comment")),
    )


def store(connection: Connection, signal: FeedbackSignal, tenant_id: str, feedback_id: str, now_ms: int) -> Stored:
    """Store a signal once. Raises NotFound unless the tenant owns the decision or session."""
    decision_id, session_id, predicted = _resolve(connection, signal, tenant_id)
    if signal.score is None:
        return Stored(feedback_id=None, decision_id=decision_id, session_id=session_id, new=False)
    f = tables.feedback
    identity = {
        "tenant_id": tenant_id,
        "session_id": session_id,
        "decision_id": decision_id or "",
        "source": signal.source,
        "name": signal.name,
    }
    # The session row is locked first, so that two copies of one signal cannot both be new.
    touch_session = update(tables.sessions).where(
        tables.sessions.c.tenant_id == tenant_id, tables.sessions.c.session_id == session_id
    )
    connection.execute(touch_session.values(updated_at_ms=now_ms))
    before = connection.execute(select(f.c.feedback_id).where(*(f.c[k] == v for k, v in identity.items()))).scalar()
    if before is not None:
        return Stored(feedback_id=before, decision_id=decision_id, session_id=session_id, new=False)
    connection.execute(
        insert(f).values(
            feedback_id=feedback_id, score=signal.score, comment=signal.comment, created_at_ms=now_ms, **identity
        )
    )
    connection.execute(
        touch_session.values(
            quality_count=tables.sessions.c.quality_count + 1,
            quality_sum=tables.sessions.c.quality_sum + signal.score,
            last_quality=signal.score,
        )
    )
    return Stored(feedback_id, decision_id, session_id, True, predicted)


def _resolve(connection: Connection, signal: FeedbackSignal, tenant_id: str) -> tuple[str | None, str, float | None]:
    """(decision id or None, session id, predicted quality) of the signal's target.

    Another system's inference or trace id may be a completion's, a decision's or a session's id.
    """
    d, s = tables.decisions, tables.sessions
    if signal.target != "session":
        named = d.c.decision_id == signal.target_id
        if signal.target == "completion":
            named |= d.c.completion_id == signal.target_id
        found = connection.execute(
            select(d.c.decision_id, d.c.session_id, d.c.candidates, d.c.action).where(named, d.c.tenant_id == tenant_id)
        ).first()
        if found is not None:
            return found.decision_id, found.session_id, _predicted(found.candidates, found.action)
        if signal.target == "decision":
            raise NotFound("decision_id: no such decision", param="decision_id")
    session = connection.execute(
        select(s.c.session_id).where(s.c.session_id == normalize_id(signal.target_id), s.c.tenant_id == tenant_id)
    ).scalar()
    if session is None:
        raise NotFound(f"{signal.target}_id: no such {signal.target}", param=f"{signal.target}_id")
    return None, session, None


def _predicted(candidates: str, action: int) -> float | None:
    """The predicted quality of the chosen candidate; None when the policy predicts none."""
    listed = orjson.loads(candidates)
    quality = listed[action].get("quality") if 0 <= action < len(listed) else None
    return float(quality) if isinstance(quality, int | float) else None


def _tensorzero(fields: Mapping[str, Any], key_id: str) -> FeedbackSignal:
    target: Literal["completion", "session"] = "completion" if fields.get("inference_id") is not None else "session"
    field = "inference_id" if target == "completion" else "episode_id"
    name = _text(fields, "metric_name", _LABEL_LENGTH)
    return FeedbackSignal(
        target=target,
        target_id=_text(fields, field, _ID_LENGTH),
        source=key_id,
        name=name,
        score=None if name in _UNSCORED else _clip(_flag_or_number(fields.get("value"))),
        comment=None,
    )


_UNSCORED = frozenset({"comment", "demonstration"})
"""TensorZero's two text metrics. A demonstration is an answer, and answer texts are not stored."""
_FLAGS: Mapping[str, float] = {"true": 1.0, "false": 0.0}


def _flag_or_number(value: object) -> float:
    """A boolean or float metric, also where a client sends it as text."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _FLAGS:
            return _FLAGS[word]
        try:
            value = float(word) if len(word) <= 32 else value
        except ValueError:
            raise InvalidRequest("value: expected a number, true or false, got other text", param="value") from None
    return _finite(value, "value")


def _portkey(fields: Mapping[str, Any], key_id: str) -> FeedbackSignal:
    """Map -10..10 to 0..1; a weight below 1 moves the score towards the neutral 0.5."""
    value = _finite(fields.get("value"), "value")
    weight = _clip(_finite(fields.get("weight", 1.0), "weight"))
    return FeedbackSignal(
        target="completion",
        target_id=_text(fields, "trace_id", _ID_LENGTH),
        source=key_id,
        name="portkey",
        score=0.5 + weight * (_clip((value + 10.0) / 20.0) - 0.5),
        comment=None,
    )


def _semantic_router(fields: Mapping[str, Any], key_id: str) -> FeedbackSignal:
    """A verdict of a fixed set, which an explicit score overrides. Only verdicts on the model rate answers; those on
    other targets (route, policy, provider, ...) are accepted and not stored."""
    verdict = fields.get("verdict")
    if not isinstance(verdict, str) or verdict not in VERDICTS:
        raise InvalidRequest(f"verdict: expected one of {', '.join(VERDICTS)}", param="verdict")
    given = fields.get("score")
    score = VERDICTS[verdict] if given is None else _clip(_finite(given, "score"))
    target = "model" if fields.get("target") is None else _text(fields, "target", _LABEL_LENGTH)
    return FeedbackSignal(
        target="completion",
        target_id=_text(fields, "replay_id", _ID_LENGTH),
        source=_source(fields, key_id),
        name="verdict",
        score=score if target == "model" else None,
        comment=_comment(fields.get("reason")),
    )


def _source(fields: Mapping[str, Any], key_id: str) -> str:
    """The source named by the client; otherwise its key."""
    if fields.get("source") is None:
        return key_id
    source = _text(fields, "source", _LABEL_LENGTH)
    if source == JUDGE:
        raise InvalidRequest(f'source: "{JUDGE}" is reserved for the gateway, expected another', param="source")
    return source


def _text(fields: Mapping[str, Any], name: str, length: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= length or "\0" in value:
        raise InvalidRequest(f"{name}: expected a string of 1 to {length} characters", param=name)
    return value


def _comment(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_COMMENT or "\0" in value:
        raise InvalidRequest(f"comment: expected a string of at most {MAX_COMMENT} characters", param="comment")
    return value


def _finite(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name}: expected a number", param=name)
    if not -MAX_SCORE <= value <= MAX_SCORE:  # NaN fails too; so does a whole number that no float holds
        raise InvalidRequest(f"{name}: expected a finite number, at most {MAX_SCORE:.0f} either way", param=name)
    return float(value)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
