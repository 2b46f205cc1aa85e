"""Client of the gateway: pinned models, idempotency keys, long waits.

A key is `<call>.<attempt>`. The same key again gets the same response and costs nothing, so a call that was sent and
not yet recorded is simply sent again. A new attempt begins only after a failure that the gateway keeps as the response.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.money import nanousd_from_usd
from train.rollout.budget import message_of
from train.rollout.journal import Journal
from train.rollout.tree import ModelAnswer

WAITS_S = (2.0, 10.0, 30.0)
"""Waits between the attempts at a failing call; the next run of the rollout starts again."""
PATIENCE = 300
"""Resends of one attempt while the gateway is down, overloaded or still busy with it: about five minutes."""
AGAIN_S = 1.0
Sleep = Callable[[float], Awaitable[None]]


class OutOfMoney(Exception):
    """The cap is reached: no further calls are made."""


class CallFailed(Exception):
    """The call has no usable answer; the message has the reason."""


@dataclass(frozen=True, slots=True)
class RolloutCall:
    """A call to one model; `name` is unique in the rollout."""

    name: str
    model: str
    messages: Sequence[Mapping[str, str]]
    parameters: Mapping[str, Any]

    def body(self, max_tokens: int) -> bytes:
        """Request body, byte-identical for one call, as idempotency keys require."""
        fields = {"max_tokens": max_tokens, **self.parameters}
        return json.dumps({**fields, "model": self.model, "messages": list(self.messages)}, sort_keys=True).encode()


class RolloutClient:
    """Calls the gateway with one tenant's key, at most `parallel` at a time."""

    def __init__(
        self, http: httpx.AsyncClient, journal: Journal, *, max_usd: str, max_tokens: int, parallel: int, sleep: Sleep
    ) -> None:
        self._http = http
        self._journal = journal
        self._max_usd = max_usd
        self._max_tokens = max_tokens
        self._sleep = sleep
        self._places = asyncio.Semaphore(parallel)
        self._ended = asyncio.Condition()
        self._running = 0
        self._ends = 0
        self.out_of_money: str | None = None
        """Reason why no further calls are made, if so."""

    async def ask(self, call: RolloutCall) -> ModelAnswer:
        """Return the answer to a call. Raises OutOfMoney or CallFailed."""
        async with self._places:
            for wait_s in (*WAITS_S, None):
                attempt = self._attempt(call)
                response = await self._sent(call, f"{call.name}.{attempt}")
                if response.status_code == 200:
                    answer = self._read(call, response)
                    if not self._cut(call, response, answer):
                        return answer
                    self._journal.write("attempts", call.name, {"ended": attempt + 1})
                    self._stop(f"an answer of {call.model} was limited to what the cap leaves")
                if response.status_code < 500:
                    break
                self._journal.write("attempts", call.name, {"ended": attempt + 1})
                if wait_s is not None:
                    await self._sleep(wait_s)
            raise CallFailed(f"{call.model}: {message_of(response)}")

    def _attempt(self, call: RolloutCall) -> int:
        """Number of the next attempt; earlier ones ended without a usable answer."""
        found = self._journal.find("attempts", call.name)
        return 0 if found is None else int(found["ended"])

    async def _sent(self, call: RolloutCall, key: str) -> httpx.Response:
        """Response to one attempt; waits while waiting helps."""
        headers = {
            "Idempotency-Key": key,
            "X-Session-Id": f"rollout:{key}",
            "X-Session-Budget-USD": self._max_usd,
            "X-Session-Expected-Turns": "1",
            "Content-Type": "application/json",
        }
        body = call.body(self._max_tokens)
        patience = PATIENCE
        while patience:
            if self.out_of_money is not None:
                raise OutOfMoney(self.out_of_money)
            others, ends = self._running, self._ends
            response = await self._posted(body, headers)
            if response is None or response.status_code in (409, 429, 503):
                patience -= 1
                await self._sleep(AGAIN_S)
            elif response.status_code != 402:
                return response
            elif others == 0:
                self._stop(message_of(response))
            else:  # others may release what they hold
                await self._money_may_be_back(ends)
        raise CallFailed(f"{call.model}: the gateway was unreachable or busy in {PATIENCE} tries")

    async def _posted(self, body: bytes, headers: Mapping[str, str]) -> httpx.Response | None:
        """Post once; None if the connection broke and only another request can find the outcome."""
        self._running += 1
        response = None
        try:
            response = await self._http.post("/v1/chat/completions", content=body, headers=dict(headers))
        except httpx.TransportError:
            pass
        finally:
            self._running -= 1
            # A refused call held nothing: refused calls that woke one another would retry forever.
            self._ends += response is None or response.status_code != 402
            async with self._ended:
                self._ended.notify_all()
        return response

    async def _money_may_be_back(self, ends: int) -> None:
        """Wait until a call that may hold money has ended since `ends`, or none is running."""
        async with self._ended:
            await self._ended.wait_for(lambda: self._ends > ends or self._running == 0)

    def _stop(self, why: str) -> None:
        self.out_of_money = self.out_of_money or why
        raise OutOfMoney(self.out_of_money)

    def _cut(self, call: RolloutCall, response: httpx.Response, answer: ModelAnswer) -> bool:
        """Tell whether the cap and not the model ended the answer, which then cannot be graded."""
        clamped = response.headers.get("x-seqroute-max-tokens")
        asked = int(call.parameters.get("max_tokens", self._max_tokens))
        return clamped is not None and int(clamped) < asked and answer.finish_reason == "length"

    def _read(self, call: RolloutCall, response: httpx.Response) -> ModelAnswer:
        """Parse the answer. Raises CallFailed when another model answered or there is no text."""
        served = response.headers.get("x-seqroute-model")
        if served != call.model:
            raise CallFailed(f"{call.model}: {served} answered in its place")
        try:
            body = response.json()
            choice, usage = body["choices"][0], body["usage"]
            return ModelAnswer(
                text=choice["message"]["content"] or "",
                input_tokens=int(usage["prompt_tokens"]),
                cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
                output_tokens=int(usage["completion_tokens"]),
                billed_nanousd=nanousd_from_usd(response.headers["x-seqroute-cost-usd"]),
                finish_reason=str(choice.get("finish_reason")),
            )
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise CallFailed(f"{call.model}: expected text and usage in the answer, got one without {error}") from error
