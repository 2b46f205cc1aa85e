"""Events of a Responses stream that its server left out.

Readers of a stream take text from its deltas alone. Compatible servers and proxies send a whole response instead of a
stream, its last event only, or items without deltas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.unchecked import listed, objects_in

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
_SAID_BY: Mapping[str, str] = {
    "output_text": "message", "refusal": "message",
    "reasoning_text": "reasoning", "reasoning_summary_text": "reasoning",
    **{text: call for call, text in _CALLS.items()},
}  # fmt: skip
"""The type of item that has each kind of text."""
_WITH_PARTS: Mapping[str, tuple[str, ...]] = {"summary": ("reasoning",), "content": ("message", "reasoning")}
_RECENT = 64
"""How many items are compared with one whose id is new."""
_Part = tuple[str, int | None]
"""A kind of text and its place among those of its item; None where the server gives none."""


class _Item:
    """What a stream has said of one item."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.has_id = False
        self.indexes: set[int] = set()
        self.opened = False
        self.ended = False
        self.texts: defaultdict[_Part, list[str]] = defaultdict(list)

    def is_told(self, name: str, place: int | None) -> bool:
        """Whether a text was sent; one without a place may be any of its kind."""
        return any(told == name and (None in (at, place) or at == place) for told, at in self.texts)

    def may_be(self, item: Mapping[str, Any]) -> bool:
        """Whether everything that was sent is in an item of another name."""
        whole = "".join(text for _, _, text in _texts(item))
        return all("".join(pieces) in whole for pieces in self.texts.values())

    def tell(self, item: Mapping[str, Any]) -> None:
        """Note that all texts of the whole item are sent."""
        for name, place, text in _texts(item):
            if not self.is_told(name, place):
                self.texts[name, place].append(text)


class ResponsesEvents:
    """Completes one stream, event by event, and numbers what it adds."""

    def __init__(self) -> None:
        self._begun = False
        self._items: list[_Item] = []
        self._by_id: dict[tuple[str, str], _Item] = {}
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
        if kind in ENDS and isinstance(response, Mapping):
            if not (self._begun or self._items):
                yield from _beginning(response)
            for index, item in enumerate(listed(response.get("output"))):
                yield from self._last(index, item) if isinstance(item, Mapping) else ()
        elif isinstance(response, Mapping):
            self._begun = True
        elif name in _TEXTS and step in ("delta", "done"):
            yield from self._text(name, step, event)
        elif name == "output_item" and isinstance(event.get("item"), Mapping):
            yield from self._item(step, event.get("output_index"), event["item"])

    def _text(self, name: str, step: str, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        item = self._named(_SAID_BY[name], event.get("item_id"), event.get("output_index"))
        index = event.get("summary_index" if "summary" in name else "content_index")
        place = index if isinstance(index, int) else None
        text = event.get("delta" if step == "delta" else _TEXTS[name])
        if not isinstance(text, str) or not text:
            return
        if step == "done":
            if item.is_told(name, place):
                return
            yield _delta(name, _position(event), text)
        item.texts[name, place].append(text)

    def _item(self, step: str, index: object, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        found = self._named(str(item.get("type")), item.get("id"), index, item)
        if step == "added":
            found.opened = True
            if found.kind in _CALLS:  # may be complete from the start
                found.tell(item)
        elif step == "done":
            named = isinstance(item.get("id"), str) or isinstance(index, int)
            if named or any(_texts(item)):  # else an added event would say nothing of which item it is
                yield from _whole_item(index, item, found)
            found.ended = True

    def _last(self, index: int, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What is missing of an item of the last event."""
        known = len(self._items)
        found = self._named(str(item.get("type")), item.get("id"), index, item)
        if not found.ended:
            yield from _whole_item(index, item, found)
        if len(self._items) > known:
            yield _event("output_item.done", output_index=index, item=item)
        found.ended = True

    def _named(self, kind: str, item_id: object, index: object, item: Mapping[str, Any] | None = None) -> _Item:
        """The item of an event: by its id, else by its place, else by what was said of it; a new one without any.

        Some servers number every item 0, and some proxies give an item another id with every event.
        """
        found = self._by_id.get((kind, item_id)) if isinstance(item_id, str) else None
        if found is None:
            recent = [each for each in self._items[-_RECENT:] if each.kind == kind]
            found = next((each for each in reversed(recent) if _fits(each, item_id, index, item)), None)
        if found is None:
            found = _Item(kind)
            self._items.append(found)
        if isinstance(item_id, str):
            self._by_id[kind, item_id] = found
            found.has_id = True
        found.indexes |= {index} if isinstance(index, int) else set()
        return found


def _fits(each: _Item, item_id: object, index: object, item: Mapping[str, Any] | None) -> bool:
    """Whether an item without this id is the one that an event is about."""
    renamed = isinstance(item_id, str) and each.has_id
    placed = isinstance(index, int) and bool(each.indexes)
    if placed and index not in each.indexes:
        return False
    if not each.ended and (placed if item is None else placed and not renamed):
        return True
    if item is not None:
        return each.may_be(item) and (placed or not (each.ended and (each.has_id or each.indexes)))
    return not (renamed or each.ended)


def _texts(item: Mapping[str, Any]) -> Iterator[tuple[str, int | None, str]]:
    """The kinds, places and words of the texts of a whole item."""
    kind = str(item.get("type"))
    if kind in _CALLS:
        parts: list[tuple[str, int | None, Mapping[str, Any]]] = [(_CALLS[kind], None, item)]
    else:
        parts = [("reasoning_summary_text", at, part) for at, part in enumerate(_parts(item, "summary"))]
        parts += [(str(part.get("type")), at, part) for at, part in enumerate(_parts(item, "content"))]
    for name, place, part in parts:
        text = part.get(_TEXTS[name]) if name in _TEXTS else None
        if isinstance(text, str) and text:
            yield name, place, text


def _beginning(response: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield _event("created", response=begun)
    yield _event("in_progress", response=begun)


def _whole_item(index: object, item: Mapping[str, Any], known: _Item) -> Iterator[dict[str, Any]]:
    """The events of an item up to its end that were left out."""
    if not known.opened and not known.texts:
        yield _event("output_item.added", output_index=index, item=_empty(item))
    known.opened = True
    yield from _content_events(index, item, known)
    known.tell(item)


def _empty(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item as it begins."""
    kind = str(item.get("type"))
    lists = [name for name in ("content", "summary") if item.get(name)] if kind in ("message", "reasoning") else []
    begun = {**item, **{name: [] for name in lists}} | ({_TEXTS[_CALLS[kind]]: ""} if kind in _CALLS else {})
    return begun | ({"status": "in_progress"} if "status" in item else {})


def _content_events(index: object, item: Mapping[str, Any], known: _Item) -> Iterator[dict[str, Any]]:
    """The events between the beginning and the end of an item for the texts that were not sent."""
    kind, at = str(item.get("type")), {"output_index": index, "item_id": item.get("id")}
    if kind in _CALLS:
        for name, place, text in _texts(item):
            if not known.is_told(name, place):
                yield _delta(name, at, text)
                yield _event(f"{name}.done", **at, **{_TEXTS[name]: text})
        return
    for place, part in enumerate(_parts(item, "summary")):
        if not known.is_told("reasoning_summary_text", place):
            where = at | {"summary_index": place}
            yield from _part_events("reasoning_summary_part", "reasoning_summary_text", where, part)
    for place, part in enumerate(_parts(item, "content")):
        name = str(part.get("type"))
        if not known.is_told(name, place):
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
    for number, note in enumerate(listed(notes)):
        yield _event("output_text.annotation.added", **at, annotation_index=number, annotation=note)
    yield _event(f"{name}.done", **at, **{field: text}, **logprobs)
    yield _event(f"{part_kind}.done", **at, part=part)


def _parts(item: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return objects_in(item.get(name)) if item.get("type") in _WITH_PARTS[name] else []


def _position(event: Mapping[str, Any]) -> dict[str, Any]:
    names = ("output_index", "item_id", "content_index", "summary_index")
    return {name: event[name] for name in names if name in event}


def _delta(name: str, at: Mapping[str, Any], text: str) -> dict[str, Any]:
    made = _event(f"{name}.delta", **at, delta=text)
    return made | ({"logprobs": []} if name == "output_text" else {})


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": _PREFIX + kind, **fields}
