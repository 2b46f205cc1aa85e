"""What a dialect is: how its clients read whole answers, streams and errors.

A request in any dialect becomes a `ChatRequest`; providers answer in chat; a dialect renders that answer. The turn, the
ledger and settlement know chat only. One object serves one request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.catalog.usage import Usage
from gateway.errors import GatewayError


@dataclass(frozen=True, slots=True)
class AnswerIdentity:
    """What is known of an answer before its first word. `prompt_tokens` is our estimate."""

    decision_id: str
    model: str
    created_s: float
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Billed:
    """What an answer came to. `report` is the `seqroute` object; `estimated`: the provider reported no usage."""

    usage: Usage
    estimated: bool
    report: Mapping[str, Any]


class StreamRenderer(Protocol):
    """Chat chunks in, the dialect's events out."""

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """The events of one chunk; empty when the client is shown nothing of it."""

    def end(self, billed: Billed, error: GatewayError | None) -> bytes:
        """The last events. May be called again with a newer report."""


class Dialect(Protocol):
    """How one request's client reads its answer. `endpoint` names the dialect in the decision log."""

    @property
    def endpoint(self) -> str: ...

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        """A whole chat answer in this dialect."""

    def stream(self, answer: AnswerIdentity) -> StreamRenderer:
        """A renderer for one streamed answer."""

    def error(self, error: GatewayError) -> ErrorAnswer:
        """An error as this dialect's clients know it."""

    async def keep(self, session_id: str) -> None:
        """Store what a later request may refer to; called once, when the answer is complete and billed."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error response: its status and its JSON body."""

    status: int
    body: Mapping[str, Any]
