"""The pump: reads the provider on its own account, ends exactly once, never holds more than its buffer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import pytest

from gateway.catalog.usage import ReportedUsage, Usage
from gateway.dialects.chat import generated_texts
from gateway.dialects.sse import DONE_FRAME, data_frame
from gateway.errors import LedgerUnavailable
from gateway.providers.errors import BrokenFault
from gateway.tasks import Background
from gateway.turn.stream import (
    ClientLeft,
    EventStreamResponse,
    StreamEnd,
    StreamPump,
    by_receiving,
    run_until_disconnect,
)


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


class Provider:
    """A stream of `chunks`; None waits for ever, an exception is raised."""

    def __init__(self, *chunks: dict[str, Any] | Exception | None, endless: bool = False) -> None:
        self.usage: ReportedUsage = None
        self.finish_reason: str | None = None
        self.given = 0
        self.closed = 0
        self._chunks = chunks
        self._endless = endless

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            for chunk in self._chunks:
                await asyncio.sleep(0)
                if chunk is None:
                    await asyncio.Event().wait()
                elif isinstance(chunk, Exception):
                    raise chunk
                else:
                    self.given += 1
                    yield chunk
            if not self._endless:
                self.usage, self.finish_reason = Usage(3, self.given), "stop"
                return

    async def aclose(self) -> None:
        self.closed += 1


class Ends:
    """Records how a stream ended, slowly, as a settlement would."""

    def __init__(self, frames: Iterable[bytes] = (DONE_FRAME,)) -> None:
        self.seen: list[StreamEnd] = []
        self._frames = frames

    async def __call__(self, end: StreamEnd) -> Iterable[bytes]:
        await asyncio.sleep(0.01)
        self.seen.append(end)
        return self._frames


class Client:
    """The server's side of one ASGI connection. `takes` is how many pieces the client reads before it stops."""

    def __init__(self, takes: int = 10**9, leaves: bool = False) -> None:
        self.sent: list[dict[str, Any]] = []
        self._takes = takes
        self._leaves = leaves
        self._gone = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    def leave(self) -> None:
        self._gone.set()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if len(self.sent) >= self._takes:
            if self._leaves:
                self._gone.set()
                raise OSError("connection closed")
            await asyncio.Event().wait()
        self.sent.append(message)


def pump(provider: Provider, ends: Callable[[StreamEnd], Awaitable[Iterable[bytes]]], **more: Any) -> StreamPump:
    return StreamPump(provider, on_end=ends, spawn=Background().spawn, **more)


async def test_chunks_come_in_order_and_the_last_frames_are_those_of_the_end() -> None:
    provider, ends, client = Provider(delta("a"), delta("b")), Ends(), Client()
    await EventStreamResponse(pump(provider, ends), {"X-Seqroute-Model": "m"})({}, client.receive, client.send)
    frames = client.body.split(b"\n\n")
    assert [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:2]] == [delta("a"), delta("b")]
    assert frames[2:] == [b"data: [DONE]", b""]
    assert client.sent[0]["status"] == 200
    assert (b"x-seqroute-model", b"m") in client.sent[0]["headers"]
    assert client.sent[-1]["more_body"] is False
    (end,) = ends.seen
    assert (end.ending, end.usage, end.finish_reason, end.text) == ("finished", Usage(3, 2), "stop", "ab")
    assert provider.closed == 1


async def test_on_chunk_rewrites_and_hides() -> None:
    client = Client()

    def on_chunk(chunk: dict[str, Any]) -> bytes:
        return b"" if "usage" in chunk else data_frame(chunk | {"model": "ours"})

    stream = pump(Provider(delta("a"), {"choices": [], "usage": {}}), Ends(()), on_chunk=on_chunk)
    await EventStreamResponse(stream)({}, client.receive, client.send)
    assert client.body.count(b"data:") == 1
    assert b'"model":"ours"' in client.body


async def test_a_fault_in_mid_stream_ends_with_it_and_keeps_what_came() -> None:
    fault = BrokenFault("cut")
    ends, client = Ends((b'data: {"error":{}}\n\n',)), Client()
    await EventStreamResponse(pump(Provider(delta("one two"), fault), ends))({}, client.receive, client.send)
    assert client.body.endswith(b'data: {"error":{}}\n\n')
    (end,) = ends.seen
    assert (end.ending, end.fault, end.usage, end.text) == ("failed", fault, None, "one two")


async def test_a_bug_of_ours_fails_the_stream_and_not_the_books() -> None:
    ends = Ends()
    stream = pump(Provider(delta("a"), ZeroDivisionError("ours")), ends)
    await stream.wait()
    assert ends.seen[0].ending == "failed"
    assert isinstance(ends.seen[0].fault, BrokenFault)


async def test_a_client_that_leaves_stops_the_provider_and_the_end_still_comes_once() -> None:
    provider, ends, client = Provider(delta("a"), None), Ends(), Client()
    stream = pump(provider, ends)
    response = asyncio.create_task(EventStreamResponse(stream)({}, client.receive, client.send))
    await asyncio.sleep(0.02)
    client.leave()
    await stream.wait()
    await asyncio.wait_for(response, 5)
    assert [end.ending for end in ends.seen] == ["client_left"]
    assert ends.seen[0].text == "a"
    assert provider.closed == 1


async def test_a_client_that_left_before_the_first_frame_ends_once_too() -> None:
    provider, ends, client = Provider(None), Ends(), Client()
    stream = pump(provider, ends)
    client.leave()
    await EventStreamResponse(stream)({}, client.receive, client.send)
    await stream.wait()
    assert [end.ending for end in ends.seen] == ["client_left"]
    assert provider.closed == 1


async def test_a_stream_whose_response_is_never_sent_ends_once_too() -> None:
    ends = Ends()
    stream = pump(Provider(delta("a"), delta("b")), ends)
    await stream.wait()
    assert [end.ending for end in ends.seen] == ["finished"]


async def test_leaving_right_after_the_start_and_repeatedly_is_one_leaving() -> None:
    provider, ends = Provider(delta("a"), endless=True), Ends()
    stream = pump(provider, ends)
    for _ in range(3):
        stream.leave()
    await stream.wait()
    stream.leave()
    assert [end.ending for end in ends.seen] == ["client_left"]


async def test_a_send_that_fails_counts_as_leaving() -> None:
    provider, ends, client = Provider(delta("a"), endless=True), Ends(), Client(takes=3, leaves=True)
    stream = pump(provider, ends)
    await EventStreamResponse(stream)({}, client.receive, client.send)
    await stream.wait()
    assert [end.ending for end in ends.seen] == ["client_left"]


async def test_cancelling_the_response_ends_the_stream_once() -> None:
    provider, ends, client = Provider(delta("a"), None), Ends(), Client()
    stream = pump(provider, ends)
    response = asyncio.create_task(EventStreamResponse(stream)({}, client.receive, client.send))
    await asyncio.sleep(0.02)
    response.cancel()
    await asyncio.wait({response})
    await stream.wait()
    assert [end.ending for end in ends.seen] == ["client_left"]
    assert provider.closed == 1


@pytest.mark.parametrize("cancelled_after", range(12))
async def test_cancelling_every_task_at_any_moment_still_ends_once(cancelled_after: int) -> None:
    """A process that shuts down cancels the pump itself, perhaps twice."""
    tasks: list[asyncio.Task[Any]] = []

    def spawn(work: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    provider, ends = Provider(delta("a"), delta("b"), delta("c")), Ends()
    StreamPump(provider, on_end=ends, spawn=spawn)
    for _ in range(cancelled_after):
        await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait(tasks)
    await asyncio.wait(tasks)
    assert len(ends.seen) == (1 if cancelled_after else 0)
    assert provider.closed == len(ends.seen)


async def test_a_slow_client_slows_the_provider_down_to_the_buffer() -> None:
    provider, ends, client = Provider(delta("x" * 1_000), endless=True), Ends(), Client(takes=2)
    stream = pump(provider, ends, buffer_bytes=64 * 1024)
    response = asyncio.create_task(EventStreamResponse(stream)({}, client.receive, client.send))
    await asyncio.sleep(0.1)
    given = provider.given
    await asyncio.sleep(0.1)
    assert provider.given == given
    assert given * 1_000 < 3 * 64 * 1024
    client.leave()
    await stream.wait()
    response.cancel()
    await asyncio.wait({response})


async def test_a_client_that_takes_nothing_for_too_long_counts_as_gone() -> None:
    provider, ends = Provider(delta("x" * 1_000), endless=True), Ends()
    stream = pump(provider, ends, buffer_bytes=10_000, client_stall_s=0.05)
    await asyncio.wait_for(stream.wait(), 5)
    assert [end.ending for end in ends.seen] == ["client_left"]


async def test_progress_is_told_while_the_stream_lives_also_when_nothing_comes() -> None:
    told: list[int] = []
    stream = pump(Provider(delta("one"), delta("two"), None), Ends(), on_progress=told.append, progress_s=0.01)
    await asyncio.sleep(0.1)
    assert len(told) >= 3
    assert told[-1] == 2
    stream.leave()
    await stream.wait()
    count = len(told)
    await asyncio.sleep(0.05)
    assert len(told) == count


async def test_progress_that_cannot_be_written_does_not_stop_the_stream() -> None:
    async def on_progress(_: int) -> None:
        raise LedgerUnavailable("down")

    ends = Ends()
    stream = pump(Provider(delta("a"), None), ends, on_progress=on_progress, progress_s=0.01)
    await asyncio.sleep(0.05)
    assert ends.seen == []
    stream.leave()
    await stream.wait()


async def test_an_end_that_cannot_be_recorded_still_ends_the_connection() -> None:
    async def on_end(_: StreamEnd) -> Iterable[bytes]:
        raise LedgerUnavailable("down")

    client = Client()
    await EventStreamResponse(pump(Provider(delta("a")), on_end))({}, client.receive, client.send)
    assert client.sent[-1]["more_body"] is False


def test_everything_generated_counts_as_output() -> None:
    message = {
        "content": "a", "reasoning_content": "b", "refusal": "c",
        "tool_calls": [{"function": {"name": "d", "arguments": "e"}}, {"custom": {"name": "f", "input": "g"}}],
        "function_call": {"name": "h", "arguments": "i"}, "role": "assistant",
    }  # fmt: skip
    assert sorted(generated_texts(message)) == list("abcdefghi")
    assert list(generated_texts({"content": None, "tool_calls": None})) == []


async def test_work_runs_to_its_end_while_the_client_stays() -> None:
    client = Client()

    async def work() -> str:
        await asyncio.sleep(0.01)
        return "done"

    assert await run_until_disconnect(by_receiving(client.receive), work()) == "done"


async def test_work_is_cancelled_and_has_cleaned_up_when_the_client_leaves() -> None:
    client, steps = Client(), []

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            steps.append("cleaned up")
        return "never"

    asyncio.get_running_loop().call_later(0.02, client.leave)
    with pytest.raises(ClientLeft):
        await run_until_disconnect(by_receiving(client.receive), work())
    assert steps == ["cleaned up"]


async def test_errors_of_the_work_are_its_own() -> None:
    async def work() -> None:
        raise BrokenFault("cut")

    with pytest.raises(BrokenFault):
        await run_until_disconnect(by_receiving(Client().receive), work())
