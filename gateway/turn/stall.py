"""Signs that an agent goes in circles, read from the conversation that it sends.

    repeated_calls    its last tool calls are the same again and again, alone or in a round of two or three
    repeated_errors   its last tool results are all errors
    no_progress       its last tool results all say what earlier ones said
    growing_context   the conversation grows, and none of its last tool calls was made for the first time

They are logged with the turn (`signals`); `session_settings.on_stall` may report them or pause the session.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.dialects.chat_messages import message_text
from gateway.dialects.older_functions import calls_in, is_result

REPEATS = 3
"""So many equal rounds, or errors, in a row."""
LONGEST_ROUND = 3
STALE_RESULTS = 4
STALE_CALLS = 8
TELLING_CHARS = 40
"""A shorter result ("ok") says the same after different work."""
READ_MESSAGES = 200
"""The newest messages that are read."""
STALLS = ("repeated_calls", "repeated_errors", "no_progress", "growing_context")
_ERROR = re.compile(
    r"\W*(?:(?:\w*error|\w*exception|traceback|failed|failure|fatal|command not found|permission denied)\b|"
    r"(?:exit|status) (?:code|status)?\W*[1-9])",
    re.IGNORECASE,
)


def stall_signals(messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The signs in a conversation, in the order of STALLS; empty for one without a stall."""
    newest = messages[-READ_MESSAGES:]
    calls = [signed for message in newest for signed in _calls(message)]
    results = [message_text(message) for message in newest if is_result(message)]
    if not calls and not results:
        return ()
    found = {
        "repeated_calls": _goes_round(calls),
        "repeated_errors": len(results) >= REPEATS and all(map(is_error, results[-REPEATS:])),
        "no_progress": _says_nothing_new(results, STALE_RESULTS)
        and all(len(result) >= TELLING_CHARS for result in results[-STALE_RESULTS:]),
        "growing_context": _says_nothing_new(calls, STALE_CALLS),
    }
    return tuple(name for name in STALLS if found[name])


def is_error(result: str) -> bool:
    """True for a result that reports an error: by its first words, or `error` in its JSON."""
    text = result[:2_000].lstrip()
    if text.startswith("{"):
        try:
            read = orjson.loads(result)
        except orjson.JSONDecodeError:
            return False
        return isinstance(read, dict) and bool(read.get("error") or read.get("is_error"))
    return _ERROR.match(text) is not None


def _calls(message: Mapping[str, Any]) -> list[str]:
    """The message's calls, each as its name and arguments, whose spelling does not matter."""
    found = []
    for call in calls_in(message):
        called = (call.get("function") or call.get("custom")) if isinstance(call, Mapping) else None
        if not isinstance(called, Mapping):
            continue
        arguments = called.get("arguments", called.get("input"))
        try:
            written = orjson.dumps(orjson.loads(str(arguments)), option=orjson.OPT_SORT_KEYS).decode()
        except (orjson.JSONDecodeError, TypeError):
            written = str(arguments)
        found.append(f"{called.get('name')}\0{written}")
    return found


def _goes_round(calls: Sequence[str]) -> bool:
    """True if the last calls are one round of at most LONGEST_ROUND calls, made REPEATS times."""
    for length in range(1, LONGEST_ROUND + 1):
        last = calls[-length * REPEATS :]
        if len(last) == length * REPEATS and all(last[i] == last[i % length] for i in range(len(last))):
            return True
    return False


def _says_nothing_new(items: Sequence[str], last: int) -> bool:
    """True if none of the `last` items is there for the first time."""
    before = set(items[:-last])
    return len(items) > last and all(item in before for item in items[-last:])
