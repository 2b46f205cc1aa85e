"""Characters of two halves that a provider split across two chunks of a stream."""

from __future__ import annotations

from typing import Any

from gateway.dialects.loose_json import strict_value
from gateway.unchecked import at, listed

_EVENT_TEXTS = ("text", "thinking", "partial_json", "delta")


class SurrogateJoiner:
    """Joins surrogate pairs that a provider split across two chunks of a stream."""

    def __init__(self) -> None:
        self._held: dict[tuple[float, str, float], str] = {}

    @property
    def holding(self) -> bool:
        """A high surrogate waits for its other half."""
        return bool(self._held)

    def joined(self, chunk: Any) -> Any:
        """The chunk, an event or another value, without lone surrogates; a last half waits."""
        for choice in listed(at(chunk, "choices")):
            if isinstance(choice, dict):
                self._join(choice)
        if isinstance(chunk, dict) and "delta" in chunk:
            self._join_event(chunk)
        return strict_value(chunk)

    def _join_event(self, event: dict[str, Any]) -> None:
        """Join the texts in the delta of an event of Claude's or of a Responses stream."""
        delta, place = event["delta"], event.get("index", event.get("output_index"))
        owner = delta if isinstance(delta, dict) else event
        for name in _EVENT_TEXTS:
            self._carry((place if isinstance(place, int | float) else 0, name, 0), owner, name, finished=False)

    def _join(self, choice: dict[str, Any]) -> None:
        index, delta = choice.get("index"), choice.get("delta")
        number = index if isinstance(index, int | float) else 0
        finished = bool(choice.get("finish_reason"))
        if isinstance(delta, dict):
            for name in ("content", "refusal", "reasoning_content", "reasoning"):
                self._carry((number, name, 0), delta, name, finished)
            for position, call in enumerate(listed(delta.get("tool_calls"))):
                function = at(call, "function")
                if isinstance(function, dict):
                    place = call.get("index")
                    call_number = place if isinstance(place, int | float) else position
                    self._carry((number, "arguments", call_number), function, "arguments", finished)
        if finished:
            for key in [key for key in self._held if key[0] == number]:
                half = self._held.pop(key)
                delta = choice["delta"] = delta if isinstance(delta, dict) else {}
                if key[1] == "arguments":
                    delta.setdefault("tool_calls", []).append({"index": key[2], "function": {"arguments": half}})
                else:
                    delta[key[1]] = half

    def _carry(self, key: tuple[float, str, float], owner: dict[str, Any], name: str, finished: bool) -> None:
        text = owner.get(name)
        if not isinstance(text, str) or not text:
            return
        text = self._held.pop(key, "") + text
        if "\ud800" <= text[-1] <= "\udbff" and not finished:
            self._held[key] = text[-1]
            text = text[:-1]
        owner[name] = text
