"""A client that remembers: every turn it asked for, what it saw, and what it cannot know (Jepsen's ok, fail and info).

It speaks plain HTTP, so that it may leave at any moment and see exactly what came. Each turn's question carries a tag;
the provider and (for a tenant that stores text) the decision log carry it too, and the auditor joins the three.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

Fate = Literal["ok", "refused", "failed", "left", "unknown"]


@dataclass(slots=True)
class Turn:
    """One turn as its client knows it.

    ok: the last byte came.  refused: an error before anything was dispatched (4xx, 503).  failed: an error after.
    left: the client closed the connection.  unknown: the connection broke under it.
    """

    tag: str
    session: str
    stream: bool
    fate: Fate = "unknown"
    status: int | None = None
    code: str | None = None
    decision_id: str | None = None
    cost_nanousd: int | None = None
    text: str = ""
    tries: int = 0
    retry_after: str | None = None
    asked_s: float = 0.0
    ended_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.ended_s - self.asked_s


class Client:
    """Asks for turns with one key, of one gateway or of whichever replica answers."""

    def __init__(self, urls: Sequence[str], key: str, *, name: str = "c", timeout_s: float = 60.0) -> None:
        self.urls = list(urls)
        self.history: list[Turn] = []
        self._name = name
        self.key = key
        self._numbers = iter(range(10**9))
        self._http = httpx.AsyncClient(
            timeout=timeout_s,
            headers={"Authorization": f"Bearer {key}"},
            limits=httpx.Limits(max_connections=1000, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def turn(
        self,
        model: str = "small",
        *,
        session: str = "s",
        parent: str | None = None,
        stream: bool = False,
        max_tokens: int | None = None,
        budget_usd: str | None = None,
        leave_after_s: float | None = None,
        idempotency_key: str | None = None,
        tries: int = 1,
        pause_s: float = 0.1,
        tag: str | None = None,
    ) -> Turn:
        """One turn. With `tries`, another replica is asked after a refused connection, a lost answer or a 503.

        A repeated request carries an idempotency key, as a careful client's does: it cannot know how far the first got.
        """
        turn = Turn(tag or f"{self._name}-{next(self._numbers)}", session, stream)
        self.history.append(turn)
        headers = {"X-Session-Id": session}
        if parent is not None:
            headers["X-Parent-Session-Id"] = parent
        if budget_usd is not None:
            headers["X-Session-Budget-USD"] = budget_usd
        if idempotency_key is not None or tries > 1:
            headers["Idempotency-Key"] = idempotency_key or f"key-{turn.tag}"
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": turn.tag}], "stream": stream}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        turn.asked_s = time.monotonic()
        first = sum(map(ord, turn.tag))
        for number in range(tries):
            turn.tries += 1
            url = self.urls[(first + number) % len(self.urls)]
            await self._ask(turn, url, headers, body, leave_after_s)
            again = turn.fate == "unknown" or turn.status in (409, 503)
            if not again or number + 1 == tries:
                break
            await asyncio.sleep(pause_s)
        turn.ended_s = time.monotonic()
        return turn

    async def _ask(
        self, turn: Turn, url: str, headers: dict[str, str], body: dict[str, Any], leave_after_s: float | None
    ) -> None:
        turn.fate, turn.status, turn.code, turn.text = "unknown", None, None, ""
        try:
            async with asyncio.timeout(leave_after_s):
                await self._exchange(turn, url, headers, body)
        except TimeoutError:
            turn.fate = "left"
        except httpx.ConnectError as error:
            turn.fate, turn.status = "refused", 503
            turn.notes.append(f"connect: {type(error).__name__}")
        except httpx.TransportError as error:
            turn.fate = "unknown"
            turn.notes.append(type(error).__name__)

    async def _exchange(self, turn: Turn, url: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        async with self._http.stream("POST", url + "/v1/chat/completions", json=body, headers=headers) as answer:
            turn.status = answer.status_code
            turn.decision_id = answer.headers.get("x-seqroute-decision-id", turn.decision_id)
            turn.retry_after = answer.headers.get("retry-after")
            if answer.status_code != 200:
                error = json.loads(await answer.aread())["error"]
                turn.code = error["code"]
                turn.fate = "failed" if answer.status_code in (502, 504) else "refused"
                return
            if not turn.stream:
                read = json.loads(await answer.aread())
                turn.text = read["choices"][0]["message"]["content"] or ""
                turn.cost_nanousd = _nano(answer.headers["x-seqroute-cost-usd"])
                turn.fate = "ok"
                return
            async for line in answer.aiter_lines():
                self._line(turn, line)

    @staticmethod
    def _line(turn: Turn, line: str) -> None:
        if line.startswith(": seqroute "):
            report = json.loads(line.removeprefix(": seqroute "))
            turn.cost_nanousd = report["cost_nano_usd"]
        elif line == "data: [DONE]":
            turn.fate = "ok"
        elif line.startswith("data: "):
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                turn.fate, turn.code = "failed", chunk["error"]["code"]
            for choice in chunk.get("choices") or ():
                turn.text += choice["delta"].get("content") or ""


def _nano(usd: str) -> int:
    whole, _, part = usd.partition(".")
    return int(whole) * 10**9 + int(part.ljust(9, "0"))


async def make_tenant(
    url: str, master_key: str, name: str, *, budget_usd: str = "1000", **more: Any
) -> tuple[str, str]:
    """A tenant that stores its text (so that the auditor can join) and a key of it: (tenant id, key)."""
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {master_key}"}, timeout=30.0) as http:
        asked = {"name": name, "budget_usd": budget_usd, "store_text": True} | more
        made = await http.post("/admin/tenants", json=asked)
        assert made.status_code == 200, made.text
        tenant_id: str = made.json()["id"]
        key = await http.post("/admin/keys", json={"tenant_id": tenant_id})
        assert key.status_code == 200, key.text
        return tenant_id, key.json()["key"]
