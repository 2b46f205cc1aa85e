"""Requests that are forwarded: in their own dialect, to a provider that has it.

A tool that a provider's servers run cannot be translated. Such a request is sent as it came, rebuilt from an allow-list
of fields, and the answer returns as it was sent. Beside it the turn has what it has of every other request: a chat
request, by which sessions, prompts and decisions work, and an answer in chat format. The provider's own answer is in
its field `forwarded`, or its event in that of a chunk, where the client's dialect finds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from gateway.catalog.hosted_tools import PROVIDER_FILES, SEARCHES, STEPS, Api, HostedTools, is_run_by_client, searching
from gateway.errors import InvalidRequest

FORWARDED = "forwarded"
"""The field of a chat answer or chunk with the provider's own."""


@dataclass(frozen=True, slots=True)
class HostedTool:
    """A tool or item that needs the provider's own dialect. `where`: its path in the request."""

    where: str
    kind: str


@dataclass(frozen=True, slots=True)
class BesideMessages:
    """Parts of a forwarded request beside its chat messages; pictures are messages again."""

    tools: Sequence[Mapping[str, Any]]
    pictures: Sequence[Mapping[str, Any]] = ()


class ForwardedReader(Protocol):
    """Reads one stream of the dialect."""

    def chunks(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """The chat chunks of an event, the first of them with the event."""

    def failure(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The error object of an event that reports one."""


@dataclass(frozen=True, slots=True)
class ForwardedRequest(ABC):
    """A request in its own dialect.

    Without `required` it may be translated too, and loses the fields `lost`. `dropped`: fields that are not forwarded.
    """

    api: Api
    body: Mapping[str, Any]
    tools: HostedTools
    first: HostedTool
    """What needs the dialect, for the error where no model has it."""
    required: bool
    dropped: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    betas: tuple[str, ...] = ()
    reference: str | None = None
    """Where it names an object of the operator's account at the provider: a file, a store, a container."""
    features: frozenset[str] = frozenset()
    """Capabilities that it needs of a server beside the dialect."""

    @property
    def plain(self) -> bool:
        """True if nothing in it needs the dialect: it is for models that are served in that alone."""
        return not self.required and not self.tools.kinds

    @property
    def is_chat(self) -> bool:
        """True if the chat request has every word of it."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """The capabilities of a model to which it can go."""
        needed = {self.api, *([] if SEARCHES.isdisjoint(self.tools.kinds) else [searching(self.api)])}
        return self.features.union(needed, {PROVIDER_FILES} if self.reference is not None else ())

    def refusal(self) -> InvalidRequest:
        """The error where no model that may answer has the dialect, the tool or the object."""
        owner = "OpenAI" if self.api == "responses_api" else "Anthropic"
        if self.reference is not None:
            return InvalidRequest(
                f"{self.reference}: files, stores and containers at {owner} belong to the operator's account and are "
                "not served here; leave it out, or ask for a model whose operator sets supports_provider_files",
                param=self.reference,
            )
        its = "a tool of" if is_run_by_client(self.first.kind, self.api) else "run by"
        return InvalidRequest(
            f'{self.first.where}: "{self.first.kind[:64]}" is {its} {owner}\'s servers, and no model that may answer '
            "this request has it; leave it out, or ask for a model that has it",
            param=self.first.where,
        )

    def closing(self) -> Self:
        """The request of a session's last answer: no tool can be called."""
        return replace(self, body=self._without_calls(), tools=replace(self.tools, most_calls=0))

    @abstractmethod
    def _without_calls(self) -> Mapping[str, Any]:
        """The body, with a tool choice that allows no call."""

    @abstractmethod
    def beside_messages(self) -> BesideMessages:
        """The parts that the prompt's count does not find in the chat request."""

    @abstractmethod
    def outgoing(
        self, model: str, max_tokens: int | None, tool_calls: int, *, stream: bool, notes: Sequence[str]
    ) -> dict[str, Any]:
        """The body for a provider.

        It has the provider's name of the model, the limits of the hold, and notes in the system prompt.
        """

    @abstractmethod
    def chat_body(self, answer: dict[str, Any]) -> dict[str, Any]:
        """A complete answer in chat format, with the answer itself in its field `forwarded`."""

    @abstractmethod
    def reader(self) -> ForwardedReader:
        """A reader of one stream."""


def heard_usage(counts: Mapping[str, int], steps: int) -> dict[str, Any]:
    """A chunk's field with the calls that a stream brought so far, for an unreported bill."""
    return {"usage": {"heard_calls": {**counts, STEPS: steps}}} if steps else {}


def chat_answer(
    answer: Mapping[str, Any],
    finish_reason: str,
    *,
    texts: Iterable[str],
    thoughts: Iterable[str],
    calls: Sequence[Mapping[str, Any]],
    refusals: Iterable[str] = (),
) -> dict[str, Any]:
    """A complete answer in chat format, with the answer itself."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    said = {"reasoning_content": "".join(thoughts), "refusal": "".join(refusals), "tool_calls": calls}
    message |= {name: value for name, value in said.items() if value}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"object": "chat.completion", "choices": [choice], FORWARDED: answer}


def chunk_of(delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """A chat chunk of one choice."""
    choice = {"index": 0, "delta": dict(delta), "finish_reason": finish_reason}
    return {"object": "chat.completion.chunk", "choices": [choice]}


def silent_chunk() -> dict[str, Any]:
    """A chat chunk of an event that says nothing."""
    return {"object": "chat.completion.chunk", "choices": []}


def call_fragment(index: int, *, call_id: str = "", name: str = "", arguments: str = "") -> dict[str, Any]:
    """The delta of a piece of a tool call."""
    call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if name:
        call |= {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"tool_calls": [call]}


_HOSTED_ITEMS = "hosted_items"


def attach_hosted(message: dict[str, Any], item: Mapping[str, Any]) -> None:
    """Add a forwarded item to its message of the chat request, which is counted and never sent.

    A picture in it is no prompt text.
    """
    counted = {name: value for name, value in item.items() if name != "result"}
    message.setdefault("provider_specific_fields", {}).setdefault(_HOSTED_ITEMS, []).append(counted)


def has_hosted(message: Mapping[str, Any]) -> bool:
    """True if the message has forwarded items."""
    return bool((message.get("provider_specific_fields") or {}).get(_HOSTED_ITEMS))
