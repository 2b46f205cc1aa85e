"""Client of the demo: plays conversations with the official SDK and grades answers.

The client has only a base URL, a key, a session id and a budget. It requests `auto` (or pins a model), grades the
answer with the task's checker and posts the score.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from openai import AsyncOpenAI

from demo.conversations import Conversation
from demo.tasks import INSTRUCTIONS, grade

MAX_TOKENS = 400
"""Limit of an answer. Few answers are longer, and those lose their last line."""

FEEDBACK_NAME = "graded"


@dataclass(frozen=True, slots=True)
class Playbill:
    """One pass over a list of conversations.

    `label` begins every session id of the pass; `model` is `auto` or a model's name; `budget_usd` is scaled by each
    conversation's budget.
    """

    label: str
    model: str
    conversations: Sequence[Conversation]
    budget_usd: float
    parallel: int


@dataclass(slots=True)
class Tally:
    """The client's counts, for progress and exit status; the table comes from the database."""

    turns: int = 0
    refused: int = 0
    policies: set[str] | None = None
    unexpected: list[str] | None = None

    def note(self, policy: str | None) -> None:
        """Count an answered turn and its policy."""
        self.turns += 1
        self.policies = (self.policies or set()) | ({policy} if policy else set())

    def complain(self, what: str) -> None:
        """Record an unexpected failure."""
        self.unexpected = [*(self.unexpected or []), what]


async def play(playbill: Playbill, *, base_url: str, api_key: str, advance: Callable[[int], None]) -> Tally:
    """Play the whole pass; `advance` is called with newly finished turns, refused ones included."""
    tally = Tally()
    waiting: asyncio.Queue[tuple[int, Conversation]] = asyncio.Queue()
    for numbered in enumerate(playbill.conversations):
        waiting.put_nowait(numbered)
    client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key=api_key, max_retries=2, timeout=120.0)
    signals = httpx.AsyncClient(base_url=f"{base_url}/v1", headers={"Authorization": f"Bearer {api_key}"}, timeout=60.0)

    async def player() -> None:
        while not waiting.empty():
            index, conversation = waiting.get_nowait()
            await _play_one(playbill, index, conversation, client, signals, tally, advance)

    async with client, signals, asyncio.TaskGroup() as group:
        for _ in range(min(playbill.parallel, len(playbill.conversations))):
            group.create_task(player())
    return tally


async def _play_one(
    playbill: Playbill, index: int, conversation: Conversation, client: AsyncOpenAI, signals: httpx.AsyncClient,
    tally: Tally, advance: Callable[[int], None],
) -> None:  # fmt: skip
    """Play one session until its end or until its budget is spent."""
    messages: list[Any] = [{"role": "system", "content": INSTRUCTIONS}]
    turns = len(conversation.tasks)
    headers = {
        "X-Session-Id": f"{playbill.label}-{index:04d}",
        "X-Session-Budget-USD": f"{playbill.budget_usd * conversation.budget_scale:.6f}",
        "X-Session-Expected-Turns": str(turns),
    }
    for turn, task in enumerate(conversation.tasks):
        messages.append({"role": "user", "content": conversation.user_message(turn)})
        closing = {"X-Session-End": "true"} if turn == turns - 1 else {}
        try:
            answer, decision_id, policy = await _ask(
                client, playbill.model, messages, headers | closing, stream=(index + turn) % 3 == 0
            )
        except openai.APIError as error:
            if isinstance(error, openai.APIStatusError) and error.status_code == 402:
                tally.refused += 1
            else:
                tally.complain(_described(error))
            advance(turns - turn)
            return
        messages.append({"role": "assistant", "content": answer})
        tally.note(policy)
        score = grade(task, answer)
        await _post_score(signals, decision_id, score, tally)
        advance(1)


async def _ask(
    client: AsyncOpenAI, model: str, messages: list[Any], headers: dict[str, str], *, stream: bool
) -> tuple[str, str, str | None]:
    """One turn: the answer's text, the decision's id and the policy that made it."""
    completions = client.chat.completions.with_raw_response
    if not stream:
        raw = await completions.create(model=model, messages=messages, max_tokens=MAX_TOKENS, extra_headers=headers)
        text = raw.parse().choices[0].message.content or ""
        return text, raw.headers["x-seqroute-decision-id"], raw.headers.get("x-seqroute-policy")
    opened = await completions.create(
        model=model, messages=messages, max_tokens=MAX_TOKENS, extra_headers=headers, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" async for chunk in opened.parse() if chunk.choices]
    return "".join(parts), opened.headers["x-seqroute-decision-id"], opened.headers.get("x-seqroute-policy")


async def _post_score(signals: httpx.AsyncClient, decision_id: str, score: float, tally: Tally) -> None:
    body = {"decision_id": decision_id, "score": score, "name": FEEDBACK_NAME}
    try:
        reply = await signals.post("/feedback", json=body)
    except httpx.TransportError as error:
        tally.complain(f"feedback: {type(error).__name__}")
        return
    if reply.status_code >= 300:
        tally.complain(f"feedback: status {reply.status_code}")


def _described(error: openai.APIError) -> str:
    """An error in a few words; a broken stream has no status."""
    code = error.body.get("code") if isinstance(error.body, dict) else None
    status = error.status_code if isinstance(error, openai.APIStatusError) else "none"
    return f"{type(error).__name__}, status {status}, code {code}"
