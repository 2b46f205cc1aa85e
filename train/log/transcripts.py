"""Reader of other programs' logs: OpenAI transcripts (JSONL), LiteLLM spend logs (or CSV).

    {"messages": [...], "model", "usage": {"prompt_tokens", "completion_tokens"}, "score"?, "session_id"?, "cost_usd"?}
    LiteLLM_SpendLogs: session_id, model, model_group, prompt_tokens, completion_tokens, spend, startTime, status, ...

Records that are not turns are left out and counted by reason.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from train.errors import InputError, reason_of

MAX_LINE_CHARS = 16 * 2**20
_MODEL_NAMES = ("model_group", "model", "model_id")
_CHAT_CALLS = frozenset({"", "completion", "acompletion", "chat_completion", "litellm_completion"})


@dataclass(frozen=True, slots=True)
class LoggedTurn:
    """One call. `score` and `cost_usd` are None when not logged.

    `user_texts` are oldest first, empty when texts are not logged.
    """

    session: str
    moment: float
    names: tuple[str, ...]
    """Names of the model in the log, the best first."""
    prompt_tokens: int
    output_tokens: int
    cost_usd: float | None
    score: float | None
    user_texts: tuple[str, ...]
    history_chars: int
    tools: int
    images: int = 0
    json_output: bool = False
    """Whether the request asked for JSON (`response_format`)."""


def read_transcripts(path: Path) -> tuple[list[LoggedTurn], Counter[str]]:
    """Turns in the order of the file, and counts of what was left out. Raises InputError."""
    turns: list[LoggedTurn] = []
    left_out: Counter[str] = Counter()
    try:
        for number, record in enumerate(_records(path)):
            found = "no JSON object" if record is None else read_turn(record, float(number))
            if isinstance(found, str):
                left_out[found] += 1
            else:
                turns.append(found)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected JSONL or CSV in UTF-8: {reason_of(error)}") from error
    return turns, left_out


def read_turn(record: Mapping[str, Any], order: float) -> LoggedTurn | str:
    """Parse a record as a turn; otherwise the reason why it is not one."""
    spend_log = "spend" in record or "startTime" in record
    if spend_log and str(record.get("status") or "success") != "success":
        return "failed"
    if spend_log and str(record.get("cache_hit") or "").lower() == "true":
        return "answered from a cache"
    if str(record.get("call_type") or "") not in _CHAT_CALLS:
        return "not a chat call"
    names = tuple(str(record[key]) for key in _MODEL_NAMES if record.get(key))
    if not names:
        return "no model"
    usage = record.get("usage")
    counts = usage if isinstance(usage, Mapping) else record
    prompt, output = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    if prompt is None or output is None or output == 0:
        return "no usage"
    messages = _messages(record.get("messages"))
    users = [_text(m) for m in messages if m.get("role") == "user"]
    return LoggedTurn(
        session=_session(record, messages, order),
        moment=_moment(record, order),
        names=names,
        prompt_tokens=prompt,
        output_tokens=output,
        cost_usd=_number(record.get("spend" if spend_log else "cost_usd")),
        score=_score(record.get("score")),
        user_texts=tuple(users[-3:]),
        history_chars=sum(len(_text(m)) for m in messages[:-1]),
        tools=len(record["tools"]) if isinstance(record.get("tools"), list) else 0,
        images=sum(_images(m) for m in messages),
        json_output=_format(record) in ("json_object", "json_schema"),
    )


def _records(path: Path) -> Iterator[Mapping[str, Any] | None]:
    """Rows, lines or items of a list as mappings; None for an invalid one."""
    with path.open(encoding="utf-8-sig", newline="") as file:  # skips a byte order mark
        if path.suffix.lower() == ".csv":
            csv.field_size_limit(MAX_LINE_CHARS)
            yield from csv.DictReader(file)
            return
        if _is_document(file):
            file.seek(0)
            listed = _listed(file.read())
            if listed is not None:
                yield from (value if isinstance(value, dict) else None for value in listed)
                return
        file.seek(0)
        for line in file:
            if line.strip():
                record = _object(line)
                yield from (record,) if record is None else _records_in(record)


def _is_document(file: TextIO) -> bool:
    """Whether the file begins as a list or as an object over several lines; lines need no memory for the whole."""
    first = next((line for line in iter(lambda: file.readline(MAX_LINE_CHARS), "") if line.strip()), "").strip()
    whole = not first.startswith("{") or _object(first) is not None
    return first.startswith("[") or not whole


def _listed(text: str) -> list[Any] | None:
    """The records of a JSON document: a list, alone or as `data`, or one record; None for lines."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # the second for a line of many brackets
        return None
    if isinstance(value, dict):
        return list(_records_in(value))
    if isinstance(value, list) and (not value or any(isinstance(item, dict) for item in value)):
        return value
    return None


def _records_in(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | None]:
    """The records of a page, as LiteLLM's API answers; else the value is one record, which may have any field."""
    listed = value.get("data")
    if isinstance(listed, list) and not any(value.get(name) for name in _MODEL_NAMES):
        yield from (item if isinstance(item, dict) else None for item in listed)
    else:
        yield value


def _object(line: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line) if len(line) <= MAX_LINE_CHARS else None
    except (ValueError, RecursionError):  # the second for a line of many brackets
        return None
    return value if isinstance(value, dict) else None


def _session(record: Mapping[str, Any], messages: list[Mapping[str, Any]], order: float) -> str:
    """The logged session, else the conversation's opening, else one per line."""
    for key in ("session_id", "litellm_session_id", "conversation_id", "trace_id"):
        if record.get(key):
            return str(record[key])
    first = next((i for i, m in enumerate(messages) if m.get("role") == "user"), None)
    if first is None:
        return f"line {order:.0f}"
    opening = messages[: first + 1]
    return "opening " + hashlib.sha256(json.dumps(opening, sort_keys=True).encode()).hexdigest()[:24]


def _moment(record: Mapping[str, Any], order: float) -> float:
    """Start of the call in seconds; the line number in a log without times."""
    for key in ("startTime", "created_at", "created"):
        value = record.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if isinstance(value, str) and value:
            try:
                at = datetime.fromisoformat(value.replace("Z", "+00:00"))
            except ValueError:
                continue
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    return order


def _messages(value: object) -> list[Mapping[str, Any]]:
    """Parse messages, which LiteLLM stores as JSON, as JSON in text, or not at all."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    return [m for m in value if isinstance(m, Mapping)] if isinstance(value, list) else []


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def _images(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return sum(isinstance(part, Mapping) and part.get("type") == "image_url" for part in parts)


def _format(record: Mapping[str, Any]) -> object:
    wanted = record.get("response_format")
    return wanted.get("type") if isinstance(wanted, Mapping) else None


def _number(value: object) -> float | None:
    """A finite number from 0, also written as text (CSV); else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _count(value: object) -> int | None:
    number = _number(value)
    return None if number is None or number > 1e9 else int(number)


def _score(value: object) -> float | None:
    if isinstance(value, bool):
        return float(value)
    number = _number(value)
    return None if number is None else min(1.0, number)
