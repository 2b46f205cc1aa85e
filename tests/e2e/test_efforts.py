"""Effort as an action: the policy chooses it, the provider gets it, clients see their model and the log every level."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.database.database import transaction
from gateway.database.tables import decisions
from gateway.routing.guard import NO_EFFORT
from tests.harness.gateway import Served, config, serving
from tests.harness.routes import ROUTES, ask
from tests.harness.scenario import seqroute, session, turn
from tests.harness.scripted import Line, ScriptedProvider

QUALITY = {"X-Route-Lambda": "0", "X-Route-Explore": "off"}
THRIFT = {"X-Route-Lambda": "1000000", "X-Route-Explore": "off"}
LEVELS = {"low": 0.3, "medium": 0.6, "high": 0.95}


@pytest.fixture
async def stage(tmp_path: Path, database_url: str) -> AsyncIterator[tuple[Served, ScriptedProvider, str]]:
    async with ScriptedProvider([Line()]) as provider:
        path = config(tmp_path, provider.url, database_url=database_url)
        tree = yaml.safe_load(path.read_text())
        small = next(entry for entry in tree["model_list"] if entry["model_name"] == "small")
        small["litellm_params"]["model"] = "openai/gpt-5-mini"
        small["model_info"] |= {"efforts": LEVELS, "cache_read_input_token_cost": 1e-7}
        still = copy.deepcopy(small) | {"model_name": "still"}
        still["litellm_params"]["additional_drop_params"] = ["reasoning_effort"]
        still["model_info"] |= {"efforts": ["low", "high"], "quality_prior": 0.1, "input_cost_per_token": 1e-4}
        tree["model_list"].append(still)
        path.write_text(yaml.safe_dump(tree))
        async with serving(path) as gateway:
            yield gateway, provider, database_url
            await gateway.settled()
            await gateway.audit()


def effort_sent(provider: ScriptedProvider) -> Any:
    return provider.bodies[-1].get("reasoning_effort")


async def explained(http: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get(f"/v1/decisions/{seqroute(answer, 'decision-id')}")).json()
    return found


async def efforts_share_the_prompt_cache(gateway: Served) -> None:
    """What one effort has sent is cheap for the others."""
    first = [{"role": "user", "content": "word " * 3_000}]
    async with gateway.http() as http:
        answer = await turn(http, "small", first, headers=session("warm") | THRIFT)
        assert seqroute(answer, "effort") == "low"
        await gateway.settled()
        longer = [*first, answer.json()["choices"][0]["message"], {"role": "user", "content": "and now?"}]
        body = {"model": "auto", "messages": longer}
        told = (await http.post("/v1/route", json=body, headers=session("warm") | QUALITY)).json()
        cold = (await http.post("/v1/route", json=body, headers=session("cold") | QUALITY)).json()
        costs = {(c["model"], c["effort"]): c["cost_nano_usd"] for c in told["candidates"]}
        for candidate in cold["candidates"]:
            before, now = candidate["cost_nano_usd"], costs[candidate["model"], candidate["effort"]]
            assert (now < before) == (candidate["model"] == "small"), candidate


async def test_effort_is_an_action(stage: tuple[Served, ScriptedProvider, str]) -> None:
    gateway, provider, url = stage
    async with gateway.http() as http:
        # The policy chooses a level in every dialect, plain and streamed; the client sees the model's own name.
        for number, route in enumerate(ROUTES):
            for stream in (False, True):
                for wanted, headers in (("high", QUALITY), ("low", THRIFT)):
                    name = f"{wanted}-{stream}-{number}"
                    answer = await ask(http, route, session(name) | headers, stream=stream, model="auto")
                    assert (answer.status_code, effort_sent(provider)) == (200, wanted), (route, answer.text)
                    assert (seqroute(answer, "model"), seqroute(answer, "effort")) == ("small", wanted)
                    assert "small#" not in answer.text
        await gateway.settled()
        shown = await explained(http, answer)
        assert (shown["model"], shown["effort"]) == ("small", "low")
        assert [(c["model"], c["effort"]) for c in shown["candidates"]] == [
            ("small", "low"), ("small", "medium"), ("small", "high"), ("big", None), ("still", "low"),
            ("still", "high"), ("still", None),
        ]  # fmt: skip
        assert sum(c["probability"] for c in shown["candidates"]) == pytest.approx(1.0)

        # A client's own effort is kept: it is the only candidate of that model.
        for asked, nearest in (("low", "low"), ("high", "high"), ("minimal", "low")):
            answer = await turn(http, "small", headers=session(f"own-{asked}") | QUALITY, reasoning_effort=asked)
            assert (effort_sent(provider), seqroute(answer, "effort")) == (asked, asked)
            assert seqroute(answer, "reason") == "pinned"
            feasible = [c["effort"] for c in (await explained(http, answer))["candidates"] if c["feasible"]]
            assert feasible == [nearest]
        off = {"thinking": {"type": "disabled"}}
        answer = await ask(http, "/v1/messages", session("off") | QUALITY, model="small", **off)
        assert (answer.status_code, effort_sent(provider)) == (200, None)

        # A pinned model keeps its name; its effort is chosen, with the probability of the draw.
        answer = await turn(http, "small", headers=session("pinned") | THRIFT)
        assert (seqroute(answer, "model"), effort_sent(provider)) == ("small", "low")
        assert seqroute(answer, "reason") == "policy"
        answer = await turn(http, "big", headers=session("big") | QUALITY)
        assert effort_sent(provider) is None
        assert "x-seqroute-effort" not in answer.headers

        # Where no effort can be sent, the model is one candidate without it, for the client and in the log.
        answer = await turn(http, "still", headers=session("still") | QUALITY)
        assert (answer.status_code, effort_sent(provider)) == (200, None)
        assert "x-seqroute-effort" not in answer.headers
        shown = await explained(http, answer)
        assert (shown["model"], shown["effort"], shown["reason"]) == ("still", None, "pinned")
        own = [(c["effort"], c["why_not"]) for c in shown["candidates"] if c["model"] == "still"]
        assert own == [("low", NO_EFFORT), ("high", NO_EFFORT), (None, None)]

        # What would be chosen, without spending.
        told = await http.post(
            "/v1/route", json={"model": "auto", "messages": [{"role": "user", "content": "x"}]}, headers=QUALITY
        )
        assert (told.json()["model"], told.json()["effort"]) == ("small", "high")

        # Allow-lists, prices and the list of models know the model, not its levels.
        _, key = await gateway.tenant("narrow", models=["small"])
        async with gateway.http(key) as narrow:
            answer = await turn(narrow, "auto", headers=session("narrow") | QUALITY)
            assert (seqroute(answer, "model"), seqroute(answer, "effort")) == ("small", "high")
            assert {c["model"] for c in (await explained(narrow, answer))["candidates"]} == {"small"}
            listed = [model["id"] for model in (await narrow.get("/v1/models")).json()["data"]]
            assert "small" in listed
            assert not any("#" in name for name in listed)
    await efforts_share_the_prompt_cache(gateway)
    entries = await gateway.entries()
    assert {entry["model"] for entry in entries if entry["model"]} == {"small", "big", "still"}
    with transaction(url, read_only=True) as connection:
        names = {row.model for row in connection.execute(decisions.select())}
    assert names == {"small#low", "small#medium", "small#high", "big", "still"} - {"small#medium"}
