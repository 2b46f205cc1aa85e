"""Service tiers, searches and several models behind one answer, through a served gateway: hold, bill and answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.harness.fixed_answers import CannedProvider, event_answer, json_answer
from tests.harness.gateway import Served, config, serving

U = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
SEARCH = {"annotations": [{"type": "url_citation", "url_citation": {"url": "https://a.example", "title": "a"}}]}
PRICED = {
    "input_cost_per_token_priority": 3e-6,
    "output_cost_per_token_priority": 6e-6,
    "search_context_cost_per_query": {"search_context_size_low": 0.001, "search_context_size_medium": 0.002},
}
OPUS = {"type": "advisor_message", "model": "claude-opus-4-5", "input_tokens": 100, "output_tokens": 10}


def answer(**more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "hi"} | more.pop("message", {})
    return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": U} | more


def chunks(**more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return event_answer({"choices": [choice]} | more, {"choices": [last]}, {"choices": [], "usage": U} | more)


def with_claude(path: Path, address: str) -> Path:
    tree = yaml.safe_load(path.read_text())
    for name, model in (("claude", "claude-sonnet-4-5"), ("opus", "claude-opus-4-6")):
        params = {"model": f"anthropic/{model}", "api_base": address, "api_key": "sk-provider-canary"}
        tree["model_list"].append({"model_name": name, "litellm_params": params})
    path.write_text(yaml.safe_dump(tree))
    return path


async def test_what_a_provider_reports_is_held_for_and_billed(tmp_path: Path) -> None:
    async with CannedProvider(b"") as provider:
        path = config(tmp_path, provider.address + "/v1", infos={"small": PRICED})
        async with serving(with_claude(path, provider.address)) as gateway:
            _, key = await gateway.tenant("acme")

            async def billed(reply: bytes, number: int, path: str = "/v1/chat/completions", **body: Any) -> int:
                provider.answer = reply
                words = (
                    {"input": "x"} if path.endswith("responses") else {"messages": [{"role": "user", "content": "x"}]}
                )
                async with gateway.http(key) as http:
                    fields = {"model": "small", **words, **body}
                    told = await http.post(path, json=fields, headers={"X-Session-Id": f"s-{number}"})
                assert told.status_code == 200, told.text
                return await bill_of(gateway, f"s-{number}")

            # Asked for and served: 10 * 3,000 + 5 * 6,000; served as a standard one: 10 * 1,000 + 5 * 2,000
            priority = {"service_tier": "priority"}
            assert await billed(json_answer(answer(**priority)), 1, **priority) == 60_000
            assert provider.received[-1][1]["service_tier"] == "priority"
            assert await billed(json_answer(answer(service_tier="default")), 2, **priority) == 20_000
            # Nobody asked for it.
            assert await billed(json_answer(answer(**priority)), 3) == 60_000
            assert await billed(chunks(**priority), 4, stream=True) == 60_000
            assert await billed(json_answer(answer(**priority)), 5, "/v1/responses", **priority) == 60_000
            # A search of medium context that only its citations show, and two that are counted.
            search: dict[str, Any] = {"web_search_options": {}}
            assert await billed(json_answer(answer(message=SEARCH)), 6, **search) == 20_000 + 2_000_000
            counted = answer(usage=U | {"server_tool_use": {"web_search_requests": 2}})
            assert await billed(json_answer(counted), 7, **search) == 20_000 + 2 * 2_000_000
            # Sonnet: 10 * 3,000 + 5 * 15,000; its advisor Opus: 100 * 5,000 + 10 * 25,000
            own = {"type": "message", "input_tokens": 10, "output_tokens": 5}
            usage = {"input_tokens": 10, "output_tokens": 5, "iterations": [own, OPUS]}
            message: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5"}
            message |= {"content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn", "usage": usage}
            assert await billed(json_answer(message), 8, model="claude") == 105_000 + 750_000
            await gateway.audit()


async def test_where_anthropic_served_a_call_and_what_it_cached_is_billed_within_the_hold(tmp_path: Path) -> None:
    async with CannedProvider(b"") as provider:
        path = config(tmp_path, provider.address + "/v1")
        async with serving(with_claude(path, provider.address)) as gateway:
            _, key = await gateway.tenant("acme")
            number = 0

            async def billed(model: str, usage: dict[str, Any], route: str, *, stream: bool) -> int:
                nonlocal number
                number += 1
                message = {"id": "m", "type": "message", "role": "assistant", "model": model, "stop_reason": "end_turn"}
                text = {"type": "text", "text": "hi"}
                whole = message | {"content": [text], "usage": usage}
                start = {"type": "message_start", "message": message | {"content": [], "usage": usage}}
                provider.answer = json_answer(whole) if not stream else event_answer(
                    start,
                    {"type": "content_block_start", "index": 0, "content_block": text | {"text": ""}},
                    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
                    {"type": "content_block_stop", "index": 0},
                    {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
                     "usage": {"output_tokens": usage["output_tokens"]}},
                    {"type": "message_stop"},
                )  # fmt: skip
                body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 500}
                async with gateway.http(key) as http:
                    told = await http.post(
                        route, json=body | {"stream": stream}, headers={"X-Session-Id": f"s-{number}"}
                    )
                assert told.status_code == 200, told.text
                return await bill_of(gateway, f"s-{number}")

            for route in ("/v1/chat/completions", "/v1/messages"):
                for stream in (False, True):
                    # 1.1 * (10 * 5,000 + 500 * 25,000), the longest answer that was held for
                    us = {"input_tokens": 10, "output_tokens": 500, "inference_geo": "us"}
                    assert await billed("opus", us, route, stream=stream) == 13_805_000
                    # 10 * 3,000 + 4 * 3,750 + 5 * 15,000
                    written = {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 0}
                    cached = {"input_tokens": 10, "output_tokens": 5, "cache_creation": written}
                    assert await billed("claude", cached, route, stream=stream) == 120_000
            await gateway.audit()


async def bill_of(gateway: Served, session: str) -> int:
    """The one bill of a session, which is within its hold."""
    await gateway.settled()
    entries = await gateway.entries(session=session)
    [amount] = [entry["amount_nano_usd"] for entry in entries if entry["kind"] == "settle"]
    assert {entry["kind"] for entry in entries} <= {"reserve", "settle", "release", "grant"}, entries
    return int(amount)
