"""What lies around the request path in the turn simulator: a provider in virtual time, a tokenizer, authentication."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from gateway.accounts.auth import Caller
from gateway.catalog.tokens import PromptTokens
from gateway.catalog.usage import Usage
from gateway.providers.call import Call, Outgoing, ProviderNames
from gateway.providers.errors import BrokenFault, ConnectFault, FailedFault, TimeoutFault
from gateway.providers.replies import Reply

PROMPT_TOKENS = 10
PROMPT_NANOUSD, OUTPUT_NANOUSD = 1_000, 2_000


@dataclass(frozen=True, slots=True)
class TurnSwarm:
    """What one seed is like; the ledger's own faults come from `Swarm`."""

    clients: int
    turns: int
    tenant_nanousd: int
    cancel: float
    leave: float
    refuse: float
    break_: float
    silent_usage: float
    stall: float
    replicas: int = 1
    """Processes over one ledger: what one frees, the turns that wait in another have to find by looking."""
    session_nanousd: int = 10**9
    pause_s: float = 2.0
    """The provider's longest between two tokens."""
    wrap_up: bool = False

    @classmethod
    def draw(cls, dice: random.Random) -> TurnSwarm:
        def rate(most: float) -> float:
            return dice.choice((0.0, dice.uniform(0, most)))

        return cls(
            clients=dice.randint(1, 8),
            turns=dice.randint(1, 6),
            tenant_nanousd=dice.choice((10**6, 10**7, 10**10)),
            replicas=dice.choice((1, 1, 2, 3)),
            session_nanousd=dice.choice((10**6, 5 * 10**6, 10**9)),
            cancel=rate(0.6),
            leave=rate(0.5),
            refuse=rate(0.4),
            break_=rate(0.4),
            silent_usage=rate(0.5),
            stall=rate(0.2),
        )


@dataclass(slots=True)
class Attempt:
    """One call in the provider's books."""

    tag: str
    output_tokens: int = 0
    accepted: bool = False
    reported: bool = False
    finished: bool = False
    open: bool = True

    @property
    def billed_nanousd(self) -> int:
        return PROMPT_TOKENS * PROMPT_NANOUSD + self.output_tokens * OUTPUT_NANOUSD if self.accepted else 0


class SimulatedProvider:
    """Answers in virtual time, and keeps the books."""

    def __init__(self, dice: random.Random, swarm: TurnSwarm) -> None:
        self._dice = dice
        self._swarm = swarm
        self.faults = True
        self.refusals = 0
        """How many of the next calls are refused, whatever the swarm draws."""
        self.bill: list[Attempt] = []

    def _fault(self, rate: float) -> bool:
        return self.faults and self._dice.random() < rate

    def outgoing(self, call: Call) -> Outgoing:
        return Outgoing(call, ProviderNames("small", "openai"))

    async def complete(self, outgoing: Outgoing) -> Reply:
        call = outgoing.call
        attempt = await self._accept(call)
        try:
            await self._generate(attempt, call)
            broken = self._fault(self._swarm.break_)
            if broken:
                raise self._dice.choice((BrokenFault("cut short"), TimeoutFault("no answer in time")))
            usage = self._usage(attempt)
            message = {"role": "assistant", "content": "w " * attempt.output_tokens}
            body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            return Reply(body, usage, "stop")
        finally:
            attempt.open = False

    async def open_stream(self, outgoing: Outgoing) -> SimulatedStream:
        return SimulatedStream(self, await self._accept(outgoing.call), outgoing.call)

    async def _accept(self, call: Call) -> Attempt:
        attempt = Attempt(str(call.messages[-1]["content"]))
        self.bill.append(attempt)
        try:
            await asyncio.sleep(self._dice.uniform(0, self._swarm.pause_s / 4))
            if self.refusals:
                self.refusals -= 1
                raise FailedFault("500", status=500)
            if self._fault(self._swarm.refuse):
                raise self._dice.choice((ConnectFault("refused"), FailedFault("500", status=500)))
        except BaseException:
            attempt.open = False
            raise
        attempt.accepted = True
        return attempt

    async def _generate(self, attempt: Attempt, call: Call) -> None:
        for _ in range(self._dice.randint(1, 8)):
            await self.pause()
            attempt.output_tokens = min(attempt.output_tokens + self._dice.randint(1, 9), call.max_tokens or 10**6)

    async def pause(self) -> None:
        stalls = self._fault(self._swarm.stall)
        await asyncio.sleep(self._dice.uniform(20, 90) if stalls else self._dice.uniform(0, self._swarm.pause_s))

    def more(self) -> int:
        return self._dice.randint(1, 9)

    def breaks(self) -> bool:
        return self._fault(self._swarm.break_ / 8)

    def _usage(self, attempt: Attempt) -> Usage | None:
        attempt.finished = True
        attempt.reported = not self._fault(self._swarm.silent_usage)
        return Usage(PROMPT_TOKENS, attempt.output_tokens) if attempt.reported else None

    usage_of = _usage


class SimulatedStream:
    """What `gateway.turn.stream.StreamPump` reads."""

    def __init__(self, provider: SimulatedProvider, attempt: Attempt, call: Call) -> None:
        self._provider, self._attempt, self._call = provider, attempt, call
        self.usage: Usage | None = None
        self.finish_reason: str | None = None

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        attempt = self._attempt
        for _ in range(self._provider.more()):
            await self._provider.pause()
            grown = min(attempt.output_tokens + self._provider.more(), self._call.max_tokens or 10**6)
            words, attempt.output_tokens = "w " * (grown - attempt.output_tokens), grown
            yield {"choices": [{"index": 0, "delta": {"content": words}, "finish_reason": None}]}
            if self._provider.breaks():
                raise BrokenFault("reset in mid-stream")
        self.finish_reason = "stop"
        self.usage = self._provider.usage_of(attempt)
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

    async def aclose(self) -> None:
        self._attempt.open = False


class SimulatedTokens:
    async def count(self, messages: Any, params: Any) -> PromptTokens:
        await asyncio.sleep(0)
        return PromptTokens(PROMPT_TOKENS, 2 * PROMPT_TOKENS)

    async def count_generated(self, generated: str) -> int:
        await asyncio.sleep(0)
        return len(generated.split())


class SimulatedKeys:
    async def caller(self, headers: Any) -> Caller:
        await asyncio.sleep(0)
        return Caller("acme", "key_1", "tenant", False, None, store_text=True)
