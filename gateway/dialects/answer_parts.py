"""A chat response as a sequence of parts: reasoning, text, refusal, tool calls, pictures.

Anthropic's content blocks and OpenAI's output items are such sequences, while chat deltas name fields of one message.
Exactly one part is open at a time. Interleaved fragments of parallel tool calls are put in order: a call is closed for
another one only when its arguments are complete JSON; until then the other call waits. A complete response is fed at
once.

Clients of both dialects tell tool calls apart by their ids, of a whole conversation; some servers use the function's
name or a count as an id. Such an id is extended here, and `provider_id` removes the extension when it comes back.

A text part has its citations. A picture or sound that the dialect has no place for is named in a text, and the words of
a sound are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gateway.dialects.citations import Note, notes_in, sources_of
from gateway.dialects.pictures import GeneratedPicture, picture_of, sound_note
from gateway.unchecked import at, listed, mapping, objects_in

_EXTENSION = re.compile(r"__sr_[0-9A-Za-z-]+_\d+\Z")

Kind = Literal["reasoning", "state", "text", "refusal", "tool", "picture"]
Step = Literal["open", "grow", "close"]


@dataclass(slots=True)
class AnswerPart:
    """One part of a response. `pieces` are its text so far, or the arguments of a tool call.

    `signature` is Anthropic's; `state` is other provider-bound state of the part (see `gateway.dialects.sealed_state`).
    A part of kind "state" has no text: only provider-bound state. A picture has its data, and its format as its name.
    """

    index: int
    kind: Kind
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    signature: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    """The citations of a text, once it is closed."""

    @property
    def text(self) -> str:
        """The text, or the arguments of a tool call, so far."""
        return "".join(self.pieces)


PartEvent = tuple[Step, AnswerPart, str]
"""A step of a part, with the text by which it grew."""


@dataclass(slots=True)
class _Call:
    """One tool call while its fragments arrive."""

    id: str = ""
    name: str = ""
    waiting: list[str] = field(default_factory=list)
    extra: Any = None
    part: AnswerPart | None = None


class AnswerParts:
    """Turns the deltas of choice 0 into part events; `id_suffix` makes unclear ids unique.

    `pictures`: the dialect has a place for inline pictures.
    """

    def __init__(self, id_suffix: str, *, pictures: bool = False) -> None:
        self.parts: list[AnswerPart] = []
        self._suffix = id_suffix
        self._open: AnswerPart | None = None
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._current_call: _Call | None = None
        self._held: list[tuple[Kind, str]] = []
        self._late: dict[str, Any] = {}
        self._notes: list[Note] = []
        self._cites = False
        self._sources: list[Note] = []
        self._has_pictures = pictures
        self._late_pictures: list[GeneratedPicture] = []
        self._spoken: list[str] = []
        self._sound_characters = 0

    def feed(self, delta: Mapping[str, Any]) -> list[PartEvent]:
        """The events of one delta, or of a complete message."""
        events: list[PartEvent] = []
        self._reasoning(delta, events)
        if "annotations" in delta or "provider_specific_fields" in delta:
            found = notes_in(delta)
            self._notes += found
            self._cites = self._cites or bool(found)
        content = delta.get("content")
        if isinstance(content, str):
            self._grow("text", content, events)
        elif isinstance(content, list):
            for part in (part for part in content if isinstance(part, Mapping)):
                self._grow("text", part.get("text"), events)
                if part.get("type") == "image_url":
                    self._show(picture_of(part), events)
        if delta.get("images") or delta.get("audio"):
            self._media(delta, events)
        self._grow("refusal", delta.get("refusal"), events)
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            for call in calls:
                if isinstance(call, Mapping):
                    self._fragment(call, events)
        if isinstance(delta.get("function_call"), Mapping):
            self._fragment({"index": 0, "function": delta["function_call"]}, events)
        return events

    def finish(self) -> list[PartEvent]:
        """Close the open part and emit what waits: calls, pictures, and the words of a sound."""
        events: list[PartEvent] = []
        if not self._cites:
            self._notes += self._sources
        self._close(events)
        held, self._held = self._held, []
        for kind, text in held:
            self._grow(kind, text, events)
        for call in self._calls:
            if call.part is None and (call.name or call.waiting):
                self._start(call, events)
        self._close(events)
        if self._late:
            self._state(self._late, events)
            self._late = {}
        late, self._late_pictures = self._late_pictures, []
        for picture in late:
            self._show(picture, events)
        self._say_aloud(events)
        if self._notes:
            self._new(AnswerPart(len(self.parts), "text"), events)
            self._close(events)
        return events

    def listed(self, payload: Mapping[str, Any]) -> None:
        """Keep the pages that a provider lists beside the choices of an answer or chunk."""
        if "citations" in payload or "search_results" in payload:
            self._sources = sources_of(payload) or self._sources

    # -- parts ------------------------------------------------------------------------------------------------------

    def _new(self, part: AnswerPart, events: list[PartEvent]) -> AnswerPart:
        self._close(events)
        self.parts.append(part)
        self._open = part
        events.append(("open", part, ""))
        return part

    def _close(self, events: list[PartEvent]) -> None:
        if self._open is not None:
            self._current_call = None
            if self._open.kind == "text":
                self._open.notes, self._notes = self._notes, []
            events.append(("close", self._open, ""))
            self._open = None

    def _grow(self, kind: Kind, text: object, events: list[PartEvent]) -> None:
        if not isinstance(text, str) or not text:
            return
        self._held.append((kind, text))
        if self._may_switch():
            held, self._held = self._held, []
            for kind, text in held:  # in the order in which they came
                part = self._opened(kind, events)
                part.pieces.append(text)
                events.append(("grow", part, text))

    def _opened(self, kind: Kind, events: list[PartEvent]) -> AnswerPart:
        """The open part if it is of this kind, else a new one."""
        if self._open is not None and self._open.kind == kind:
            return self._open
        return self._new(AnswerPart(len(self.parts), kind), events)

    # -- pictures and sounds -----------------------------------------------------------------------------------------

    def _media(self, delta: Mapping[str, Any], events: list[PartEvent]) -> None:
        for image in listed(delta.get("images")):
            self._show(picture_of(image), events)
        words, data = at(delta, "audio", "transcript"), at(delta, "audio", "data")
        self._spoken += [words] if isinstance(words, str) else []
        self._sound_characters += len(data) if isinstance(data, str) else 0

    def _show(self, picture: GeneratedPicture, events: list[PartEvent]) -> None:
        if not self._may_switch():
            self._late_pictures.append(picture)
        elif picture.data and self._has_pictures:
            self._new(AnswerPart(len(self.parts), "picture", name=picture.format, pieces=[picture.data]), events)
            self._close(events)
        else:
            self._write(picture.note(), events)

    def _say_aloud(self, events: list[PartEvent]) -> None:
        """The words of a sound, unless the answer has them as its text, and a note that there is a sound."""
        words, self._spoken = "".join(self._spoken), []
        if words and words not in "".join(part.text for part in self.parts if part.kind == "text"):
            self._write(words, events)
        if self._sound_characters:
            self._write(sound_note(self._sound_characters), events)
            self._sound_characters = 0

    def _write(self, text: str, events: list[PartEvent]) -> None:
        part = self._new(AnswerPart(len(self.parts), "text", pieces=[text]), events)
        events.append(("grow", part, text))
        self._close(events)

    # -- reasoning -------------------------------------------------------------------------------------------------

    def _reasoning(self, delta: Mapping[str, Any], events: list[PartEvent]) -> None:
        blocks = delta.get("thinking_blocks")
        if isinstance(blocks, list) and blocks:
            for block in blocks:
                if isinstance(block, Mapping):
                    self._thinking(block, events)
        else:
            self._grow("reasoning", delta.get("reasoning_content") or delta.get("reasoning"), events)
        for name in ("reasoning_details", "reasoning_items"):
            items = delta.get(name)
            if isinstance(items, list) and items:
                state = self._opened("reasoning", events).state if self._current_call is None else self._late
                _merge(state.setdefault(name, []), items)

    def _thinking(self, block: Mapping[str, Any], events: list[PartEvent]) -> None:
        """Anthropic's blocks as streamed by LiteLLM: text first, then the signature, which ends the block."""
        if block.get("type") == "redacted_thinking":
            self._state({"thinking_blocks": [dict(block)]}, events)
            return
        self._grow("reasoning", block.get("thinking"), events)
        signature = block.get("signature")
        if isinstance(signature, str) and signature:
            self._opened("reasoning", events).signature = signature
            self._close(events)

    def _state(self, state: dict[str, Any], events: list[PartEvent]) -> None:
        self._new(AnswerPart(len(self.parts), "state", state=state), events)
        self._close(events)

    # -- tool calls ------------------------------------------------------------------------------------------------

    def _fragment(self, fragment: Mapping[str, Any], events: list[PartEvent]) -> None:
        function = mapping(fragment.get("function") or fragment.get("custom"))
        call = self._call_of(fragment, function)
        if isinstance(function.get("name"), str) and not call.name:
            call.name = function["name"]
        if fragment.get("extra_content"):
            call.extra = fragment["extra_content"]
        text = function.get("arguments", function.get("input"))
        if isinstance(text, Mapping):  # some servers send an object instead of its JSON
            text = orjson.dumps(text).decode()
        if isinstance(text, str) and text:
            call.waiting.append(text)
        if call is self._current_call:
            self._flush(call, events)
        elif call.name and call.part is None and self._may_switch():
            self._start(call, events)

    def _call_of(self, fragment: Mapping[str, Any], function: Mapping[str, Any]) -> _Call:
        """The call of a fragment. Some servers omit the index, or give every parallel call index 0."""
        given = fragment.get("id")
        given = given if isinstance(given, str) else ""
        index = fragment.get("index")
        known = self._by_index.get(index) if isinstance(index, int) else (self._calls[-1] if self._calls else None)
        if known is not None and not (given and known.id and given != known.id and function.get("name")):
            known.id = known.id or given
            return known
        call = _Call(id=given)
        self._calls.append(call)
        self._by_index[index if isinstance(index, int) else len(self._calls) - 1] = call
        return call

    def _may_switch(self) -> bool:
        """Whether the open call, if any, is complete, so that another one may open."""
        return self._current_call is None or self._open is None or _is_json(self._open.text)

    def _start(self, call: _Call, events: list[PartEvent]) -> None:
        number = next(place for place, made in enumerate(self._calls) if made is call)
        if not call.id:
            call.id = f"call_{self._suffix}_{number}"
        elif call.id == call.name or call.id.isdecimal() or any(part.id == call.id for part in self.parts):
            call.id = extended_id(call.id, self._suffix, number)
        if call.extra:
            self._state({"extra_content": {call.id: call.extra}}, events)
        call.part = self._new(AnswerPart(len(self.parts), "tool", id=call.id, name=call.name), events)
        self._current_call = call
        self._flush(call, events)

    def _flush(self, call: _Call, events: list[PartEvent]) -> None:
        assert call.part is not None
        for text in call.waiting:
            call.part.pieces.append(text)
            events.append(("grow", call.part, text))
        call.waiting.clear()


def whole_parts(body: Mapping[str, Any], id_suffix: str, *, pictures: bool = False) -> list[AnswerPart]:
    """The parts of the first choice of a complete chat response."""
    parts = AnswerParts(id_suffix, pictures=pictures)
    parts.listed(body)
    for choice in first_choice(body):
        message = mapping(choice.get("message"))
        calls = [{**call, "index": number} for number, call in enumerate(objects_in(message.get("tool_calls")))]
        parts.feed({**message, "tool_calls": calls})
    parts.finish()
    return parts.parts


def extended_id(call_id: str, suffix: str, number: int) -> str:
    """An id of a call that no other call has; `suffix` is made of letters, digits and dashes."""
    return f"{call_id}__sr_{suffix}_{number}"


def provider_id(call_id: str) -> str:
    """The id that the provider gave to a call, from the one that a client has."""
    return _EXTENSION.sub("", call_id)


def first_choice(body: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Choice 0 of a chat body or chunk, the only one in dialects without `n`."""
    return [choice for choice in objects_in(body.get("choices")) if choice.get("index") in (0, None)]


def _merge(kept: list[Any], items: list[Any]) -> None:
    """Append streamed items; fragments of the same item (by type and index) are joined."""
    for item in items:
        if not isinstance(item, Mapping):
            continue
        last = kept[-1] if kept else None
        index = item.get("index")
        same = isinstance(last, dict) and index is not None and index == last.get("index")
        if not same or last is None or last.get("type") != item.get("type"):
            kept.append(dict(item))
            continue
        for name, value in item.items():
            joins = name in ("text", "summary", "data") and isinstance(value, str) and isinstance(last.get(name), str)
            if joins:
                last[name] += value
            elif value is not None:
                last[name] = value


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text or "null")
    except orjson.JSONDecodeError:
        return False
    return bool(text)
