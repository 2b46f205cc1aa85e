"""The interface of a dialect: the format of complete responses, streams and errors.

A request in any dialect becomes a `ChatRequest`, providers answer in chat format, and the dialect renders that
response. The turn, the ledger and settlement know only chat. One object serves one request.

A new dialect has a file in this package, a method in `gateway/turn/endpoints.py` that reads its body, and a route.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.catalog.usage import Usage
from gateway.errors import GatewayError, http_status


@dataclass(frozen=True, slots=True)
class AnswerIdentity:
    """Facts about a response before its first token. `prompt_tokens` is our estimate."""

    decision_id: str
    model: str
    created_s: float
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Billed:
    """The bill of a response; `estimated` without reported usage, `told` makes the report.

    `in_usage`: the client wants the bill in its usage too.
    """

    usage: Usage
    estimated: bool
    told: Callable[[], Mapping[str, Any]]
    in_usage: bool = False

    @property
    def report(self) -> Mapping[str, Any]:
        """The turn's facts and balances, for dialects that write them into the body."""
        return self.told()

    def told_in(self, usage: object) -> dict[str, Any]:
        """A usage object, with the bill and what is left where the client wants them.

        Only integers: some clients add up all that usages contain.
        """
        made = dict(usage) if isinstance(usage, Mapping) else {}
        if not self.in_usage:
            return made
        return {**made, "seqroute": {name: told for name, told in self.report.items() if name.endswith("_nano_usd")}}


class StreamRenderer(Protocol):
    """Chat chunks in, the dialect's events out."""

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """The events of one chunk; empty when the client sees nothing of it."""

    def end(self, billed: Billed, error: GatewayError | None) -> bytes:
        """The last events; may be called again with a newer report."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error response: its status and its JSON body."""

    status: int
    body: Mapping[str, Any]


class Dialect(Protocol):
    """The response format of one request; defaults are OpenAI's, without a stream."""

    @property
    def endpoint(self) -> str:
        """Name of the dialect in the decision log."""
        ...

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        """A complete chat response in this dialect."""

    def stream(self, answer: AnswerIdentity) -> StreamRenderer:
        """A renderer of one stream."""
        raise AssertionError(f"{self.endpoint} is not streamed")

    def error(self, error: GatewayError) -> ErrorAnswer:
        """An error in this dialect."""
        return ErrorAnswer(http_status(error), error.as_body())

    async def keep(self, session_id: str) -> None:
        """Store what later requests may refer to, if anything; called once, after billing."""
        return
