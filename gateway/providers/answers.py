"""Streamed responses: chunk iterators that end normally only if the provider's stream did.

For providers of OpenAI's dialect, chunks are read from the HTTP response (`wire_source.WireSource`): LiteLLM's wrapper
takes at least a millisecond per chunk, supports only one choice, and invents a `stop` for a stream that was cut off.
Other providers go through that wrapper (`LitellmSource`), with the finish read from the stream below it, and the usage
from the bytes (`gateway.dialects.wire_usage`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import httpx
import orjson

from gateway.catalog.usage import PartialUsage, ReportedUsage, Usage, beside_words, with_facts
from gateway.catalog.usage_names import counts_output
from gateway.catalog.usage_reading import read_usage
from gateway.dialects.older_functions import call_functions
from gateway.dialects.repair import StreamRepair, has_failed
from gateway.dialects.surrogates import SurrogateJoiner
from gateway.dialects.usage_report import (
    cited_searches,
    joined,
    reported_tier,
    shown,
    shown_in_full,
    speaks,
    take_usage,
)
from gateway.dialects.wire_usage import WireUsage
from gateway.providers.errors import BrokenFault, BrokenMidAnswer, TimeoutFault, UpstreamFault
from gateway.providers.exchange import Exchange, uninterrupted
from gateway.providers.litellm_transport import RecordedStream
from gateway.providers.waiting import Patience

LATE_S = 2.0
"""Longest wait for a usage behind the finish, or the error, of a stream that stays open."""
FaultOf = Callable[[Exchange, Exception], UpstreamFault]


class UpstreamStream:
    """The chunks of one response as dicts in OpenAI's format.

    The reported usage comes once, in a last chunk with empty `choices`. Ends normally only after a finish reason;
    everything else raises an UpstreamFault. `aclose` releases the connection at once and may be called repeatedly.
    `schema_alone`: a schema was asked for, and no tools.
    """

    def __init__(
        self, source: ChunkSource, exchange: Exchange, *, older_functions: bool = False, schema_alone: bool = False
    ) -> None:
        self.finish_reason: str | None = None
        self.ended_properly = False
        self._source = source
        self._exchange = exchange
        self._older_functions = older_functions
        self._schema_alone = schema_alone
        self._repair = StreamRepair(lambda: exchange.new_id("call"), one_choice=exchange.one_choice)
        self._ahead: list[dict[str, Any]] = []
        self._unfinished: set[int] = set()
        self._report: dict[str, Any] | None = None
        self._tier: str | None = None
        self._searches = 0
        self._report_chunk: dict[str, Any] = {}
        self._outdated = False
        self._spoken_since = False
        self._spoken = False
        self._fault_usage: ReportedUsage = None
        self._at_end = False
        self._closed = False

    @property
    def usage(self) -> ReportedUsage:
        """The reported usage; counts sent before the last content are partial."""
        if self._fault_usage is not None:
            return self._fault_usage
        report, tier, outdated = self._report, self._tier, self._outdated
        if (wire := self._exchange.reports) is not None:
            report, tier, outdated = wire.report, wire.service_tier, wire.outdated
        usage = with_facts(read_usage(report), tier, self._searches)
        complete = self.finish_reason is not None and not self._unfinished
        if not isinstance(usage, Usage):
            return usage
        if self._spoken_since and usage.output_tokens == 0 if complete else outdated:
            return PartialUsage(usage, has_prompt=usage.prompt_tokens > 0, has_output=False)
        return beside_words(usage) if self._spoken and self.finish_reason != "content_filter" else usage

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        return self._ahead.pop(0) if self._ahead else await self._fetched()

    async def read_ahead(self) -> None:
        """Wait for the first content chunk, so that an earlier failure can become an HTTP status."""
        while True:
            chunk = await self._fetched()
            self._ahead.append(chunk)
            if chunk["choices"]:
                return

    async def aclose(self) -> None:
        """Release the connection."""
        if self._closed:
            return
        self._closed = True
        await uninterrupted(self._source.aclose(), self._exchange.close())

    async def _fetched(self) -> dict[str, Any]:
        while not (self._closed or self.ended_properly):
            chunk = None if self._at_end else await self._next()
            if chunk is None:
                return await self._ended()
            if self._noted(chunk):
                return chunk
        raise StopAsyncIteration

    async def _next(self) -> dict[str, Any] | None:
        try:
            return await self._source.next_chunk()
        except UpstreamFault as fault:
            self._fault_usage = fault.usage
            fault.billed(self.usage)
            raise

    async def _ended(self) -> dict[str, Any]:
        """End of the source: the reported usage as one last chunk, then the end of the stream."""
        if not self._at_end:
            self._at_end = True
            if self.finish_reason is None or self._unfinished:
                fault = BrokenFault("the provider's stream ended before the answer was complete")
                raise fault.billed(self.usage)
            made = {**self._report_chunk, "choices": []}
            if self._exchange.reports is not None and isinstance(usage := self.usage, Usage):
                return made | {"usage": shown_in_full(usage)}
            if self._report is not None:
                return made | {"usage": shown(self._report, self.usage)}
        self.ended_properly = True
        await self.aclose()
        raise StopAsyncIteration

    def _noted(self, chunk: dict[str, Any]) -> bool:
        """Repair a chunk and record its finish and usage; False when nothing is left to pass on."""
        choices = self._repair.repair(chunk)
        if self._older_functions:
            call_functions(choices)
        self._spoken = self._spoken or speaks(choices)
        if self._schema_alone:
            finish_schema_answers(choices)
        report = take_usage(chunk)
        self._tier = reported_tier(chunk) or self._tier
        self._searches = self._searches or cited_searches(choices)
        for choice in choices:
            finish = choice.get("finish_reason")
            if finish:
                self.finish_reason = finish
                self._unfinished.discard(choice["index"])
            elif self.finish_reason is None or has_failed(choice):
                self._unfinished.add(choice["index"])
        if any(map(has_failed, choices)):
            # An empty one is not passed on: nothing has reached the client, so another model may still answer.
            choices[:] = [choice for choice in choices if speaks([choice]) or not has_failed(choice)]
            if not choices and report is None:
                return False
        if report is not None:
            self._report = joined(self._report, report)
            counted = counts_output(report)
            self._outdated = bool(choices) and not counted
            ended = any(choice.get("finish_reason") for choice in choices)
            self._spoken_since = not (counted or ended) and speaks(choices)
            if not choices:
                self._report_chunk = chunk
                return False
        elif choices:
            self._outdated = True
            if self._report is not None and not self._spoken_since:
                self._spoken_since = speaks(choices)
        return True


def finish_schema_answers(choices: Iterable[dict[str, Any]]) -> None:
    """End with `stop` what LiteLLM made of the call of its own tool for schemas."""
    for choice in choices:
        part = choice.get("delta") or choice.get("message") or {}
        if choice.get("finish_reason") == "tool_calls" and not part.get("tool_calls"):
            choice["finish_reason"] = "stop"


class ChunkSource(Protocol):
    """A source of chunks."""

    async def next_chunk(self) -> dict[str, Any] | None:
        """The next chunk, or None at the end. Raises UpstreamFault."""

    async def aclose(self) -> None:
        """Release the connection."""


class LitellmSource(ChunkSource):
    """LiteLLM's chunks for other dialects, with the provider's own finish.

    LiteLLM's wrapper invents a final `stop` and a usage when the provider sent none; `_Tap` records the real end, and
    `Exchange.reports` the usage.
    """

    def __init__(
        self,
        wrapper: Any,
        idle_timeout_s: float,
        deadline: float,
        fault: FaultOf,
        exchange: Exchange,
        recorded: Callable[[Exchange], AbstractContextManager[None]],
    ) -> None:
        """`recorded`: the context of a call; LiteLLM's code may make further requests."""
        self._wrapper = wrapper
        self._idle_timeout_s = idle_timeout_s
        self._deadline = deadline
        self._fault = fault
        self._exchange = exchange
        self._recorded = recorded
        self._tap: _Tap | None = None
        self._chunks = aiter(wrapper)
        self._joiner = SurrogateJoiner()
        self._spoken = False

    async def next_chunk(self) -> dict[str, Any] | None:
        loop = asyncio.get_running_loop()
        try:
            with Patience(min(loop.time() + self._idle_timeout_s, self._deadline)), self._recorded(self._exchange):
                chunk = await anext(self._chunks)
        except StopAsyncIteration as ended:
            if not self._really_finished():
                fault = self._fault(self._exchange, ended)
                if not isinstance(fault, BrokenFault):  # LiteLLM skipped the error that ended it
                    raise self._placed(fault) from None
            await self._read_rest()
            return None
        except TimeoutError:
            raise TimeoutFault("the provider stopped sending for too long") from None
        except Exception as error:  # noqa: BLE001 - as in Upstream.complete
            raise self._placed(self._fault(self._exchange, error)) from None
        payload: dict[str, Any] = chunk.model_dump(exclude_none=True)
        payload.pop("usage", None)
        for choice in payload.get("choices") or ():
            if choice.get("finish_reason") and not self._really_finished():
                del choice["finish_reason"]
        if self._joiner.holding or not _is_strict(payload):
            payload = self._joiner.joined(payload)
        if not any(_says_something(choice) for choice in payload["choices"]):
            return await self.next_chunk()
        self._spoken = True
        return payload

    async def aclose(self) -> None:
        await self._wrapper.aclose()

    def _placed(self, fault: UpstreamFault) -> UpstreamFault:
        """The fault, as one in the middle of an answer if it had begun: it cannot be tried again."""
        return BrokenMidAnswer(fault) if self._spoken and not isinstance(fault, BrokenFault | TimeoutFault) else fault

    async def open(self) -> None:
        """Insert the tap below LiteLLM's wrapper, before the first chunk."""
        if self._wrapper.completion_stream is None:
            await self._wrapper.fetch_stream()
        exchange = self._exchange
        self._tap = self._wrapper.completion_stream = _Tap(
            self._wrapper.completion_stream,
            exchange.reports,
            lambda: exchange.failure is not None and exchange.finish_was_sent,
        )

    def _really_finished(self) -> bool:
        said = bool(getattr(self._wrapper, "received_finish_reason", None))
        tapped = self._tap is not None and self._tap.finished
        return (said or tapped) and self._exchange.finish_was_sent

    async def _read_rest(self) -> None:
        """Read what follows LiteLLM's end: it stops at a finish, behind which a usage may come."""
        reports, answer = self._exchange.reports, self._exchange.answer
        if reports is None or self._exchange.whole or answer is None or not isinstance(answer, RecordedStream):
            return
        until = min(asyncio.get_running_loop().time() + LATE_S, self._deadline)
        with suppress(TimeoutError, httpx.HTTPError, httpx.StreamError), Patience(until):
            async for _ in answer:
                pass
        reports.finish()


def _is_strict(payload: dict[str, Any]) -> bool:
    """Whether a chunk can be serialised unchanged."""
    try:
        orjson.dumps(payload)
    except TypeError:
        return False
    return True


class _Tap:
    """Passes chunks through and records the provider's own finish, and the searches that LiteLLM found."""

    def __init__(self, inner: Any, reports: WireUsage | None, whole: Callable[[], bool]) -> None:
        self.finished = False
        self._inner = inner
        self._reports = reports
        self._whole = whole
        self._iterator = aiter(inner) if hasattr(inner, "__aiter__") else None
        self._plain = None if self._iterator is not None else iter(inner)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is not None:
            try:
                chunk = await anext(self._iterator)
            except Exception:
                if self.finished and self._whole():  # a connection that broke behind the answer's end
                    raise StopAsyncIteration from None
                raise
        else:
            assert self._plain is not None
            chunk = await asyncio.to_thread(next, self._plain, None)
            if chunk is None:
                raise StopAsyncIteration
        self._note(chunk)
        return chunk

    async def aclose(self) -> None:
        close = getattr(self._inner, "aclose", None) or getattr(self._inner, "close", None)
        if close is not None:
            pending = close()
            if pending is not None:
                await pending

    def _note(self, chunk: Any) -> None:
        usage = _member(chunk, "usage")
        if usage is not None and self._reports is not None:
            self._reports.note_searches(usage if isinstance(usage, dict) else usage.model_dump(exclude_none=True))
        if _member(chunk, "finish_reason") or _member(chunk, "is_finished"):
            self.finished = True
        for choice in _member(chunk, "choices") or ():
            if _member(choice, "finish_reason"):
                self.finished = True


def _member(value: Any, name: str) -> Any:
    """A member of a dict or object: LiteLLM's providers return both."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _says_something(choice: Mapping[str, Any]) -> bool:
    """Whether a choice has content; LiteLLM's wrapper adds empty ones at the end."""
    return bool(choice.get("finish_reason") or choice.get("delta"))
