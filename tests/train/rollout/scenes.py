"""A gateway out of a function, and tasks in a line: what the tests of rollouts do again and again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from train.rollout.client import RolloutClient
from train.rollout.graders import Limits
from train.rollout.journal import Journal
from train.rollout.play import Walk
from train.rollout.tasks import Task, TaskTurn
from train.rollout.tree import RolloutPlan

MODELS = ("a", "b", "c")
Say = Callable[[str, list[dict[str, str]]], str]


def task(name: str, *says: str, check: dict[str, Any] | None = None, **more: Any) -> Task:
    """A task whose turns say so; every answer that begins with `good` is right."""
    check = check or {"regex": "^good"}
    turns = tuple(TaskTurn(text, check) for text in says)
    return Task(name, more.pop("group", "g"), None, turns, check=check, **more)


def plan(branches: int = 1, depth: int = 4, **more: Any) -> RolloutPlan:
    return RolloutPlan(MODELS, depth, branches, more.pop("seed", 1), 100, **more)


def completion(model: str, text: str, **headers: str) -> httpx.Response:
    """The gateway's answer of `model`: ten tokens in, two out, a thousandth of a cent."""
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
    return httpx.Response(
        200, json=body, headers={"x-seqroute-model": model, "x-seqroute-cost-usd": "0.00001"} | headers
    )


def gateway(answer: Callable[[httpx.Request, dict[str, Any]], httpx.Response]) -> httpx.AsyncClient:
    """A client of a gateway that answers like this."""
    transport = httpx.MockTransport(lambda request: answer(request, json.loads(request.content)))
    return httpx.AsyncClient(base_url="http://gateway", transport=transport)


async def at_once(seconds: float) -> None:
    """A sleep that takes no time."""


def caller(http: httpx.AsyncClient, journal: Journal, parallel: int = 4) -> RolloutClient:
    return RolloutClient(http, journal, max_usd="1", max_tokens=100, parallel=parallel, sleep=at_once)


def walk(folder: Path, http: httpx.AsyncClient, played: RolloutPlan, journal: Journal) -> Walk:
    return Walk(played, caller(http, journal), journal, Limits(), tasks_at_once=2)
