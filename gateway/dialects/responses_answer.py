"""Responses of `POST /v1/responses`: response objects and their full set of events.

https://platform.openai.com/docs/api-reference/responses-streaming. Every event has a `sequence_number`, every
item an id, under which it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.catalog.usage import Usage
from gateway.dialects import sealed_state
from gateway.dialects.answer_parts import AnswerPart, AnswerParts, PartEvent, first_choice, whole_parts
from gateway.dialects.citations import as_annotation
from gateway.dialects.dialect import Billed, StreamRenderer
from gateway.dialects.pictures import picture_id, picture_item
from gateway.dialects.responses_tools import OfferedTool, free_form_input
from gateway.dialects.sse import billed_frame, event_frame
from gateway.errors import GatewayError

_INCOMPLETE: Mapping[str, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
_PICTURE_STEPS = ("in_progress", "generating", "completed")
_PREFIXES: Mapping[str, str] = {"reasoning": "rs", "state": "rs", "text": "msg", "refusal": "msg"}


def response_id(decision_id: str) -> str:
    """The response id of a decision."""
    return "resp_" + decision_id.removeprefix("dec_")


def usage_object(usage: Usage) -> dict[str, Any]:
    """The usage in the Responses format."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


class ResponseObject:
    """The constant fields of a response, and its items."""

    def __init__(
        self,
        decision_id: str,
        model: str,
        created_s: float,
        echoed: Mapping[str, Any],
        tools: Mapping[str, OfferedTool],
        store: bool,
    ) -> None:
        self.suffix = decision_id.removeprefix("dec_")
        self._tools = tools
        reasoning = echoed.get("reasoning") or {}
        self._base: dict[str, Any] = {
            "id": response_id(decision_id),
            "object": "response",
            "created_at": int(created_s),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": {},
            "model": model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "temperature": None,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            **echoed,
            "reasoning": {"effort": None, "summary": None, **reasoning},
            "store": store,
        }

    def begun(self) -> dict[str, Any]:
        """The response in progress, without items."""
        return self._base

    def ended(self, finish_reason: object, items: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """The finished response, complete or truncated."""
        reason = _INCOMPLETE.get(str(finish_reason))
        return self._base | {
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "output": items,
            "usage": usage_object(usage),
        }

    def failed(self, error: GatewayError, items: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """The response of a failed turn, with its items so far."""
        return self._base | {
            "status": "failed",
            "error": {"code": error.code, "message": error.message},
            "output": items,
            "usage": usage_object(usage),
        }

    def item(self, part: AnswerPart, status: str, logprobs: Sequence[Any] = ()) -> dict[str, Any]:
        """A part as an output item; without its content while "in_progress"."""
        done = status != "in_progress"
        if part.kind == "tool":
            return self._call(part, status)
        if part.kind in ("text", "refusal"):
            content = [content_part(part, part.text, logprobs)] if done else []
            return {
                "id": self.item_id(part), "type": "message", "status": status, "role": "assistant", "content": content
            }  # fmt: skip
        if part.kind == "picture":
            made = picture_item(self.item_id(part), part.text, part.name)
            return made if done else made | {"status": status, "result": None}
        item: dict[str, Any] = {"id": self.item_id(part), "type": "reasoning", "summary": []}
        if done and part.text:
            item["summary"] = [{"type": "summary_text", "text": part.text}]
        sealed = _sealed(part) if done else ""
        return item | ({"encrypted_content": sealed} if sealed else {})

    def item_id(self, part: AnswerPart) -> str:
        """The id of a part's item."""
        if part.kind == "picture":
            return picture_id(self.suffix, part.index)
        prefix = _PREFIXES.get(part.kind) or ("ctc" if self.tool(part).kind == "custom" else "fc")
        return f"{prefix}_{self.suffix}_{part.index}"

    def tool(self, part: AnswerPart) -> OfferedTool:
        """The offered tool of a called function; a plain function for an unknown name."""
        return self._tools.get(part.name) or OfferedTool("function", part.name)

    def _call(self, part: AnswerPart, status: str) -> dict[str, Any]:
        tool, text = self.tool(part), part.text if status != "in_progress" else ""
        item: dict[str, Any] = {"id": self.item_id(part), "status": status, "call_id": part.id, "name": tool.name}
        if tool.namespace is not None:
            item["namespace"] = tool.namespace
        if tool.kind == "custom":
            return item | {"type": "custom_tool_call", "input": free_form_input(text) if text else ""}
        return item | {"type": "function_call", "arguments": text or ("" if status == "in_progress" else "{}")}


def whole_response(response: ResponseObject, body: Mapping[str, Any], usage: Usage) -> dict[str, Any]:
    """A complete chat response as a response object."""
    choice = next(iter(first_choice(body)), {})
    finish = choice.get("finish_reason")
    parts = whole_parts(body, response.suffix, pictures=True)
    items = [response.item(part, "completed", _logprobs(choice)) for part in parts]
    if items and parts[-1].kind in ("text", "refusal", "tool") and str(finish) in _INCOMPLETE:
        items[-1]["status"] = "incomplete"
    return response.ended(finish, items, usage)


class ResponsesStream(StreamRenderer):
    """Chat chunks to Responses events."""

    def __init__(self, response: ResponseObject) -> None:
        self._response = response
        self._parts = AnswerParts(response.suffix, pictures=True)
        self._items: list[dict[str, Any]] = []
        self._logprobs: list[Any] = []
        self._summaries: set[int] = set()
        self._finish: object = None
        self._sequence = 0
        self._started = False
        self._last: bytes | None = None
        self.ended: dict[str, Any] | None = None
        """The response object of the last event, once sent."""

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        frames = [] if self._started else self._start()
        self._parts.listed(chunk)
        for choice in first_choice(chunk):
            self._finish = choice.get("finish_reason") or self._finish
            self._logprobs += _logprobs(choice)
            delta = choice.get("delta")
            if isinstance(delta, Mapping) and delta:
                for event in self._parts.feed(delta):
                    frames += self._of(event)
        return b"".join(frames)

    def end(self, billed: Billed, error: GatewayError | None) -> bytes:
        if self._last is None:
            frames = [] if self._started else self._start()
            if error is None:
                for event in self._parts.finish():
                    frames += self._of(event)
            self._last = b"".join(frames)
        if error is not None:
            self.ended = self._response.failed(error, self._items, billed.usage)
        else:
            self.ended = self._response.ended(self._finish, self._items, billed.usage)
        name = f"response.{self.ended['status']}"
        told = self.ended | {"usage": billed.told_in(self.ended["usage"])}
        last = {"type": name, "sequence_number": self._sequence, "response": told, "seqroute": billed.report}
        return self._last + billed_frame(billed.report, event_frame(name, last))

    def _start(self) -> list[bytes]:
        self._started = True
        begun = self._response.begun()
        return [self._frame("response.created", response=begun), self._frame("response.in_progress", response=begun)]

    def _frame(self, kind: str, /, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event_frame(kind, payload)

    def _of(self, event: PartEvent) -> list[bytes]:
        step, part, piece = event
        at = {"output_index": part.index, "item_id": self._response.item_id(part)}
        if step == "open":
            return self._opened(part, at)
        return self._grown(part, at, piece) if step == "grow" else self._closed(part, at)

    def _opened(self, part: AnswerPart, at: dict[str, Any]) -> list[bytes]:
        item = self._response.item(part, "in_progress")
        frames = [self._frame("response.output_item.added", output_index=part.index, item=item)]
        if part.kind in ("text", "refusal"):
            empty = content_part(part, "")
            frames.append(self._frame("response.content_part.added", **at, content_index=0, part=empty))
        return frames

    def _grown(self, part: AnswerPart, at: dict[str, Any], piece: str) -> list[bytes]:
        if part.kind == "text":
            return [self._frame("response.output_text.delta", **at, content_index=0, delta=piece, logprobs=[])]
        if part.kind == "refusal":
            return [self._frame("response.refusal.delta", **at, content_index=0, delta=piece)]
        if part.kind == "tool":
            if self._response.tool(part).kind == "custom":
                return []  # the text is inside JSON; it is sent completely at the end
            return [self._frame("response.function_call_arguments.delta", **at, delta=piece)]
        frames: list[bytes] = []
        if part.index not in self._summaries:
            self._summaries.add(part.index)
            empty = {"type": "summary_text", "text": ""}
            frames.append(self._frame("response.reasoning_summary_part.added", **at, summary_index=0, part=empty))
        frames.append(self._frame("response.reasoning_summary_text.delta", **at, summary_index=0, delta=piece))
        return frames

    def _closed(self, part: AnswerPart, at: dict[str, Any]) -> list[bytes]:
        status = "incomplete" if str(self._finish) in _INCOMPLETE else "completed"
        item = self._response.item(part, status, self._logprobs)
        self._items.append(item)
        frames: list[bytes] = []
        if part.kind in ("text", "refusal"):
            content = item["content"][0]
            frames += [
                self._frame(
                    "response.output_text.annotation.added", **at, content_index=0, annotation_index=n, annotation=a
                )
                for n, a in enumerate(content.get("annotations") or ())
            ]
            done = {"text": part.text, "logprobs": content.get("logprobs") or []}
            if part.kind == "refusal":
                done = {"refusal": part.text}
            name = "response.output_text.done" if part.kind == "text" else "response.refusal.done"
            frames.append(self._frame(name, **at, content_index=0, **done))
            frames.append(self._frame("response.content_part.done", **at, content_index=0, part=content))
        elif part.kind == "picture":
            frames += [self._frame(f"response.image_generation_call.{step}", **at) for step in _PICTURE_STEPS]
        elif item["type"] == "custom_tool_call":
            frames.append(self._frame("response.custom_tool_call_input.delta", **at, delta=item["input"]))
            frames.append(self._frame("response.custom_tool_call_input.done", **at, input=item["input"]))
        elif item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            frames.append(self._frame("response.function_call_arguments.done", **at, **done))
        elif part.text:
            whole = {"type": "summary_text", "text": part.text}
            name = "response.reasoning_summary_text.done"
            frames.append(self._frame(name, **at, summary_index=0, text=part.text))
            frames.append(self._frame("response.reasoning_summary_part.done", **at, summary_index=0, part=whole))
        frames.append(self._frame("response.output_item.done", output_index=part.index, item=item))
        return frames


def content_part(part: AnswerPart, text: str, logprobs: Sequence[Any] = ()) -> dict[str, Any]:
    """The content part of a text or refusal."""
    if part.kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {
        "type": "output_text",
        "text": text,
        "annotations": [*map(as_annotation, part.notes)],
        "logprobs": list(logprobs),
    }


def _sealed(part: AnswerPart) -> str:
    """Sealed state of this part for its provider."""
    state = dict(part.state)
    if part.signature:
        block = {"type": "thinking", "thinking": part.text, "signature": part.signature}
        state["thinking_blocks"] = [block]
    return sealed_state.seal(state)


def _logprobs(choice: Mapping[str, Any]) -> list[Any]:
    given = choice.get("logprobs")
    content = given.get("content") if isinstance(given, Mapping) else None
    return content if isinstance(content, list) else []
