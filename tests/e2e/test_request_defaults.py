"""What an operator's `litellm_params` add to every call, and when an answer's length is limited, over real HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.gateway import config, serving
from tests.harness.scenario import seqroute, session, turn
from tests.harness.scripted import Line, ScriptedProvider

LIMITS = ("max_tokens", "max_completion_tokens")


def written(folder: Path, provider: ScriptedProvider, url: str, params: Any = None, info: Any = None) -> Path:
    """A configuration whose model `small` has further `litellm_params` and `model_info`."""
    path = config(folder, provider.url, database_url=url)
    tree = yaml.safe_load(path.read_text())
    small = next(entry for entry in tree["model_list"] if entry["model_name"] == "small")
    small["litellm_params"] |= params or {}
    small["model_info"] |= info or {}
    path.write_text(yaml.safe_dump(tree))
    return path


def limits(body: dict[str, Any]) -> dict[str, int]:
    return {name: body[name] for name in LIMITS if name in body}


@pytest.mark.parametrize("lane", ["thin", "litellm"])
@pytest.mark.parametrize("stream", [False, True])
async def test_no_limit_is_sent_where_the_client_gave_none_and_the_money_needs_none(
    tmp_path: Path, sqlite_url: str, lane: str, stream: bool
) -> None:
    async with ScriptedProvider([Line(chunks=2) if stream else Line()]) as provider:
        path = written(tmp_path, provider, sqlite_url, info={"lane": lane})
        async with serving(path) as gateway, gateway.http() as http:
            free = await turn(http, headers=session("rich"), stream=stream)
            assert free.status_code == 200
            assert "x-seqroute-max-tokens" not in free.headers
            assert limits(provider.bodies[-1]) == {}
            # 100,000 tokens at 2,000 nano-USD are held, and the prompt: only its context window ends its answers.
            assert 0.2 < float(seqroute(free, "reserved-usd")) < 0.2005
            # A quarter of 0.02 USD is less than 4,000 tokens cost: the money needs a limit, and the client is told it.
            poor = await turn(http, headers=session("poor", budget_usd="0.02"), stream=stream)
            told = int(poor.headers["x-seqroute-max-tokens"])
            assert limits(provider.bodies[-1]) == {"max_tokens": told}
            assert told < 4_000
            assert float(seqroute(poor, "reserved-usd")) < float(seqroute(free, "reserved-usd"))
            asked = await turn(http, headers=session("rich"), stream=stream, max_tokens=7)
            assert asked.status_code == 200
            assert limits(provider.bodies[-1]) == {"max_tokens": 7}
            assert "x-seqroute-max-tokens" not in asked.headers
            beyond = await turn(http, headers=session("rich"), stream=stream, max_tokens=5_000)
            assert limits(provider.bodies[-1]) == {"max_tokens": 4_000}
            assert seqroute(beyond, "max-tokens") == "4000"


@pytest.mark.parametrize("name", LIMITS)
async def test_an_operator_s_default_limit_is_sent_and_held_for(tmp_path: Path, sqlite_url: str, name: str) -> None:
    async with ScriptedProvider([Line()]) as provider:
        path = written(tmp_path, provider, sqlite_url, {name: 100})
        async with serving(path) as gateway, gateway.http() as http:
            default = await turn(http)
            assert limits(provider.bodies[-1]) == {name: 100}
            asked = await turn(http, max_tokens=200)
            assert limits(provider.bodies[-1]) == {"max_tokens": 200}
            held = [round(float(seqroute(each, "reserved-usd")) * 1e9) for each in (default, asked)]
            assert held[1] - held[0] == 100 * 2_000


async def test_an_operator_s_defaults_reach_the_provider_behind_the_client_s(tmp_path: Path, sqlite_url: str) -> None:
    params = {
        "model": "openai/gpt-5-mini",
        "reasoning_effort": "low",
        "extra_body": {"guided_choice": ["a", "b"], "top_k": 3},
    }
    warm = {"temperature": 0.3, "allowed_openai_params": ["unheard_of", "reasoning_effort"], "extra_body": {"top_k": 3}}
    async with ScriptedProvider([Line()]) as provider:
        async with serving(written(tmp_path, provider, sqlite_url, params)) as gateway, gateway.http() as http:
            assert (await turn(http)).status_code == 200
            assert provider.bodies[-1]["reasoning_effort"] == "low"
            assert (provider.bodies[-1]["guided_choice"], provider.bodies[-1]["top_k"]) == (["a", "b"], 3)
            assert (await turn(http, reasoning_effort="high", top_k=9)).status_code == 200
            # The client chooses its own, but nothing that the operator fixed in extra_body.
            assert (provider.bodies[-1]["reasoning_effort"], provider.bodies[-1]["top_k"]) == ("high", 3)
        async with serving(written(tmp_path, provider, sqlite_url, warm)) as gateway, gateway.http() as http:
            assert (await turn(http)).status_code == 200
            assert provider.bodies[-1]["temperature"] == 0.3
            listed = await turn(http, temperature=0.7, unheard_of=1, reasoning_effort="low", unlisted=2)
            body = provider.bodies[-1]
            assert (body["temperature"], body["unheard_of"], body["reasoning_effort"]) == (0.7, 1, "low")
            assert "unlisted" not in body
            assert listed.headers["x-seqroute-dropped"] == "unlisted"
