"""Events of a Responses stream that its server left out.

Readers of a stream take text from its deltas alone. Compatible servers and proxies send a whole response instead of a
stream, its last event only, or items without deltas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ENDS = ("response.completed", "response.incomplete", "response.failed")
_PREFIX = "response."
_TEXTS: Mapping[str, str] = {
    "output_text": "text", "refusal": "refusal", "reasoning_text": "text", "reasoning_summary_text": "text",
    "function_call_arguments": "arguments", "custom_tool_call_input": "input",
}  # fmt: skip
"""Where the final event of each kind of text has all of it."""
_CALLS: Mapping[str, str] = {
    "function_call": "function_call_arguments", "custom_tool_call": "custom_tool_call_input",
}  # fmt: skip


class ResponsesEvents:
    """Completes one stream, event by event, and numbers what it adds."""

    def __init__(self) -> None:
        self._begun = False
        self._known: set[object] = set()
        self._told: set[object] = set()
        self._next = 0
        self._added = False

    def of(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The events left out before it, and the event."""
        missing = list(self._missing(event))
        self._added = self._added or bool(missing)
        return [self._numbered(each) for each in (*missing, event)]

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        number = event.get("sequence_number")
        if self._added or not isinstance(number, int):
            number = self._next
            event = {**event, "sequence_number": number}
        self._next = number + 1
        return event

    def _missing(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        kind, response = str(event.get("type")), event.get("response")
        name, _, step = kind.removeprefix(_PREFIX).rpartition(".")
        places = _places(event.get("output_index"), event.get("item_id"))
        if kind in ENDS and isinstance(response, Mapping):
            if not (self._begun or self._known):
                yield from _beginning(response)
            output = response.get("output")
            if not self._known and isinstance(output, list):
                for index, item in enumerate(output):
                    yield from _whole_item(index, item) if isinstance(item, Mapping) else ()
        elif isinstance(response, Mapping):
            self._begun = True
        elif step == "delta":
            self._tell(places)
        elif step == "done" and name in _TEXTS:
            text = event.get(_TEXTS[name])
            if isinstance(text, str) and text and not self._is_told(places):
                yield _delta(name, _position(event), text)
            self._tell(places)
        elif name == "output_item":
            yield from self._item(step, event, places)

    def _item(self, step: str, event: Mapping[str, Any], places: set[object]) -> Iterator[dict[str, Any]]:
        index, item = event.get("output_index"), event.get("item")
        if not isinstance(item, Mapping):
            return
        places |= _places(item.get("id"))
        written = _CALLS.get(str(item.get("type")))
        if step == "added" and written is not None and item.get(_TEXTS[written]):
            self._tell(places)  # complete from the start
        elif step == "done" and places and not self._is_told(places):
            if not places & self._known:
                yield _event("output_item.added", output_index=index, item=_empty(item))
            yield from _content_events(index, item)
        self._known |= places or {None}

    def _tell(self, places: set[object]) -> None:
        self._known |= places or {None}
        self._told |= places or {None}

    def _is_told(self, places: set[object]) -> bool:
        return None in self._told or bool(places & self._told)


def _beginning(response: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield _event("created", response=begun)
    yield _event("in_progress", response=begun)


def _whole_item(index: int, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield _event("output_item.added", output_index=index, item=_empty(item))
    yield from _content_events(index, item)
    yield _event("output_item.done", output_index=index, item=item)


def _empty(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item as it begins."""
    kind = str(item.get("type"))
    lists = [name for name in ("content", "summary") if item.get(name)] if kind in ("message", "reasoning") else []
    begun = {**item, **{name: [] for name in lists}} | ({_TEXTS[_CALLS[kind]]: ""} if kind in _CALLS else {})
    return begun | ({"status": "in_progress"} if "status" in item else {})


def _content_events(index: object, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of an item between its beginning and its end."""
    kind, at = str(item.get("type")), {"output_index": index, "item_id": item.get("id")}
    if kind in _CALLS:
        name = _CALLS[kind]
        text = item.get(_TEXTS[name])
        if isinstance(text, str) and text:
            yield _delta(name, at, text)
            yield _event(f"{name}.done", **at, **{_TEXTS[name]: text})
        return
    for place, part in enumerate(_parts(item, "summary", kind == "reasoning")):
        yield from _part_events("reasoning_summary_part", "reasoning_summary_text", at | {"summary_index": place}, part)
    for place, part in enumerate(_parts(item, "content", kind in ("message", "reasoning"))):
        name = str(part.get("type"))
        yield from _part_events("content_part", name, at | {"content_index": place}, part)


def _part_events(part_kind: str, name: str, at: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if name not in _TEXTS:
        return
    field = _TEXTS[name]
    text, notes = str(part.get(field) or ""), part.get("annotations")
    begun = {**part, field: ""} | ({"annotations": []} if notes else {})
    logprobs = {"logprobs": part.get("logprobs") or []} if name == "output_text" else {}
    yield _event(f"{part_kind}.added", **at, part=begun)
    if text:
        yield _delta(name, at, text) | logprobs
    for number, note in enumerate(notes if isinstance(notes, list) else ()):
        yield _event("output_text.annotation.added", **at, annotation_index=number, annotation=note)
    yield _event(f"{name}.done", **at, **{field: text}, **logprobs)
    yield _event(f"{part_kind}.done", **at, part=part)


def _parts(item: Mapping[str, Any], name: str, has_texts: bool) -> list[Mapping[str, Any]]:
    listed = item.get(name) if has_texts else None
    return [part for part in listed if isinstance(part, Mapping)] if isinstance(listed, list) else []


def _places(*names: object) -> set[object]:
    return {name for name in names if isinstance(name, int | str)}


def _position(event: Mapping[str, Any]) -> dict[str, Any]:
    names = ("output_index", "item_id", "content_index", "summary_index")
    return {name: event[name] for name in names if name in event}


def _delta(name: str, at: Mapping[str, Any], text: str) -> dict[str, Any]:
    made = _event(f"{name}.delta", **at, delta=text)
    return made | ({"logprobs": []} if name == "output_text" else {})


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": _PREFIX + kind, **fields}
