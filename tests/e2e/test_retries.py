"""Retries, limits and a provider's errors as clients and operators meet them, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.__main__ import run
from tests.harness.gateway import config, serving
from tests.harness.scenario import playing, seqroute, session, turn
from tests.harness.scripted import Line, ScriptedProvider

BUSY = Line(429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, {"retry-after": "1"})
DOWN = Line(503, {"error": {"message": "down"}})


def written(folder: Path, provider: ScriptedProvider, url: str, *, params: Any = None, **router: Any) -> Path:
    """A configuration whose model `small` is at the scripted provider, with changed `litellm_params`."""
    path = config(folder, provider.url, database_url=url, router=router)
    tree = yaml.safe_load(path.read_text())
    small = next(entry for entry in tree["model_list"] if entry["model_name"] == "small")
    small["litellm_params"] |= params or {}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("stream", [False, True])
async def test_as_many_retries_are_made_as_the_configuration_says(
    tmp_path: Path, sqlite_url: str, stream: bool
) -> None:
    script = [DOWN, DOWN, Line(chunks=2) if stream else Line()]
    async with (
        ScriptedProvider(script) as provider,
        serving(written(tmp_path, provider, sqlite_url, num_retries=2)) as gateway,
        gateway.http() as http,
    ):
        answer = await turn(http, stream=stream)
        assert answer.status_code == 200
        assert len(provider.bodies) == 3
        gaps = [later - earlier for earlier, later in zip(provider.asked_s, provider.asked_s[1:], strict=False)]
        assert gaps[0] >= 0.25
        assert gaps[1] >= 0.5
        await gateway.settled()
        await gateway.audit()


async def test_an_overloaded_provider_is_retried_and_then_said_to_be_so(tmp_path: Path, sqlite_url: str) -> None:
    """By Anthropic's status or by the error's type, in the client's own dialect."""
    busy = Line(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    named = Line(503, {"error": {"message": "try later", "type": "engine_overloaded_error"}})
    async with (
        ScriptedProvider([busy, Line(), named, busy, busy, named]) as provider,
        serving(written(tmp_path, provider, sqlite_url, num_retries=1, allowed_fails=99)) as gateway,
        gateway.http() as http,
    ):
        assert (await turn(http)).status_code == 200
        assert len(provider.bodies) == 2
        chat = await turn(http)
        assert (chat.status_code, chat.json()["error"]["code"]) == (503, "overloaded")
        assert int(chat.headers["retry-after"]) >= 1
        body = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        message = await http.post("/v1/messages", json=body)
        assert (message.status_code, message.json()["error"]["type"]) == (529, "overloaded_error")
        await gateway.settled()
        await gateway.audit()


async def test_four_failures_are_four_retries(tmp_path: Path, sqlite_url: str) -> None:
    async with (
        ScriptedProvider([DOWN] * 4 + [Line()]) as provider,
        serving(written(tmp_path, provider, sqlite_url, num_retries=4)) as gateway,
        gateway.http() as http,
    ):
        assert (await turn(http)).status_code == 200
        assert len(provider.bodies) == 5


async def test_the_kind_of_error_says_how_often_it_is_repeated(tmp_path: Path, sqlite_url: str) -> None:
    policy = {"RateLimitErrorRetries": 0, "InternalServerErrorRetries": 3, "ServiceUnavailableErrorRetries": 3}
    async with (
        ScriptedProvider([BUSY, *[DOWN] * 3, Line()]) as provider,
        serving(written(tmp_path, provider, sqlite_url, num_retries=1, retry_policy=policy)) as gateway,
        gateway.http() as http,
    ):
        assert (await turn(http)).status_code == 429
        assert len(provider.bodies) == 1
        assert (await turn(http)).status_code == 200
        assert len(provider.bodies) == 5


async def test_a_provider_is_left_alone_for_as_long_as_it_asks(tmp_path: Path, sqlite_url: str) -> None:
    async with (
        ScriptedProvider([BUSY, Line()]) as provider,
        serving(written(tmp_path, provider, sqlite_url, num_retries=2)) as gateway,
        gateway.http() as http,
    ):
        assert (await turn(http)).status_code == 200
        assert provider.asked_s[1] - provider.asked_s[0] >= 1.0


async def test_an_answer_that_was_retried_here_is_not_retried_by_clients_too(tmp_path: Path, sqlite_url: str) -> None:
    async with (
        ScriptedProvider([DOWN]) as provider,
        serving(written(tmp_path, provider, sqlite_url, num_retries=1)) as gateway,
        gateway.http() as http,
    ):
        failed = await turn(http)
        assert (failed.status_code, failed.headers["x-should-retry"]) == (502, "false")
        decision = (await http.get("/v1/decisions/" + failed.headers["x-seqroute-decision-id"])).json()
        assert (decision["status"], decision["error_code"]) == ("failed", "upstream_error")
        assert len(provider.bodies) == 2
    async with (
        ScriptedProvider([DOWN]) as provider,
        serving(written(tmp_path, provider, sqlite_url, num_retries=0)) as gateway,
        gateway.http() as http,
    ):
        assert "x-should-retry" not in (await turn(http)).headers


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_refused_key_is_not_used_again_in_its_turn(tmp_path: Path, sqlite_url: str, status: int) -> None:
    refused = Line(status, {"error": {"message": "your key k1 is not welcome"}})
    async with ScriptedProvider([refused, Line()]) as provider:
        path = written(tmp_path, provider, sqlite_url, num_retries=2, params={"api_key": "k1", "weight": 1_000_000})
        async with serving(path) as gateway, gateway.http() as http:
            alone = await turn(http)
            assert (alone.status_code, alone.json()["error"]["code"]) == (502, "upstream_error")
            assert provider.keys == ["k1"]
        tree = yaml.safe_load(path.read_text())
        small = next(entry for entry in tree["model_list"] if entry["model_name"] == "small")
        twin = small | {"litellm_params": small["litellm_params"] | {"api_key": "k1", "weight": 1e-6}}
        other = small | {"litellm_params": small["litellm_params"] | {"api_key": "k2", "weight": 1e-6}}
        path.write_text(yaml.safe_dump(tree | {"model_list": [*tree["model_list"], twin, other]}))
        provider.bodies.clear()
        provider.keys.clear()
        async with serving(path) as gateway, gateway.http() as http:
            assert (await turn(http)).status_code == 200
            assert provider.keys == ["k1", "k2"]


@pytest.mark.parametrize("names_limit", [True, False])
async def test_a_stream_is_limited_by_stream_timeout_and_an_answer_by_timeout(
    tmp_path: Path, sqlite_url: str, names_limit: bool
) -> None:
    stream, answer = Line(chunks=12, pause_s=0.1), Line(chunks=12, pause_s=0.1)
    async with ScriptedProvider([stream, answer]) as provider:
        limits = {"timeout": 0.5, "stream_timeout": 20} if names_limit else {"timeout": 20, "stream_timeout": 0.5}
        async with serving(written(tmp_path, provider, sqlite_url, params=limits)) as gateway, gateway.http() as http:
            told = (await turn(http, stream=True)).text
            assert ("[DONE]" in told) == names_limit
            assert ("upstream_timeout" in told) != names_limit


ERRORS = [
    ({"error": {"message": "This model's maximum context length is 8192 tokens. However, your messages resulted in "
      "9001 tokens.", "code": "context_length_exceeded", "param": "messages", "type": "invalid_request_error"}},
     400, "context_length_exceeded", "8192 tokens"),
    ({"error": {"message": "filtered sk-secret-7", "code": "content_filter"}}, 400, "content_filter", "content filter"),
    ({"error": {"message": "no such deployment-7", "code": "model_not_found"}}, 404, "model_not_found", "404"),
]  # fmt: skip


@pytest.mark.parametrize("lane", ["thin", "litellm"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "code", "words"), ERRORS)
async def test_a_providers_known_code_reaches_the_client_and_its_words_nobody(
    tmp_path: Path,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
    body: Any,
    status: int,
    code: str,
    words: str,
    stream: bool,
    lane: str,
) -> None:
    caplog.set_level(logging.INFO)
    async with ScriptedProvider([Line(status, body)]) as provider:
        path = written(tmp_path, provider, sqlite_url, lane=lane)
        async with serving(path) as gateway, gateway.http() as http:
            failed = await turn(http, stream=stream)
            assert (failed.status_code, failed.json()["error"]["code"]) == (status, code)
            assert words in failed.json()["error"]["message"]
            await gateway.settled()
            await gateway.audit()
    [line] = [record.getMessage() for record in caplog.records if "attempt failed" in record.getMessage()]
    assert f"status={status}" in line
    assert f"code={code}" in line
    assert "model=small deployment=small#0" in line
    assert body["error"]["message"] not in caplog.text + failed.text


CANARIES = ("sk-provider-canary", "canary-token-77aa", "hunter2", "Zq8vT3xW")
SAID = (
    "temperature must be at most 1; you sent Authorization: Bearer canary-token-77aa with key sk-provider-canary "
    "to https://admin:hunter2@10.1.2.3/v1?key=Zq8vT3xW about: my knee hurts since Tuesday and I cannot sleep"
)


@pytest.mark.parametrize("lane", ["thin", "litellm"])
@pytest.mark.parametrize("way", ["status", "status, streamed", "inside a 200", "mid-stream", "retried"])
async def test_the_tenant_reads_in_explain_what_the_provider_said_without_secrets(
    tmp_path: Path, database_url: str, caplog: pytest.LogCaptureFixture, way: str, lane: str
) -> None:
    caplog.set_level(logging.DEBUG)
    error = {"message": SAID, "type": "invalid_request_error", "code": "invalid_value", "param": "temperature"}
    stream = way in ("status, streamed", "mid-stream")
    line = Line(200 if way in ("inside a 200", "mid-stream") else 429 if way == "retried" else 400, {"error": error})
    if way == "mid-stream":
        line = Line(chunks=2, last={"error": error})
    prompt = [{"role": "user", "content": "my knee hurts since Tuesday and I cannot sleep"}]
    async with ScriptedProvider([line, Line()] if way == "retried" else [line]) as provider:
        path = written(tmp_path, provider, database_url, lane=lane, num_retries=1 if way == "retried" else 0)
        async with serving(path) as gateway, gateway.http() as http:
            _, key = await gateway.tenant("acme")
            _, other = await gateway.tenant("other")
            async with gateway.http(key) as mine, gateway.http(other) as foreign:
                answer = await turn(mine, messages=prompt, stream=stream)
                assert answer.is_success == (way in ("mid-stream", "retried"))
                await gateway.settled()
                asked = "/v1/decisions/" + answer.headers["x-seqroute-decision-id"]
                [failed] = (await mine.get(asked)).json()["failed_attempts"]
                assert (await foreign.get(asked)).status_code == 404
                metrics = (await http.get("/metrics")).text
            named = {name: failed[name] for name in ("model", "deployment", "type", "code", "param")}
            assert named == {
                "model": "small", "deployment": "small#0", "type": "invalid_request_error", "code": "invalid_value",
                "param": "temperature",
            }  # fmt: skip
            assert failed["provider_message"].startswith("temperature must be at most 1; you sent Authorization: ")
            assert "10.1.2.3/v1" in failed["provider_message"]
            everywhere = caplog.text + answer.text + metrics
            assert "must be at most 1" not in everywhere
            for canary in (*CANARIES, "my knee hurts"):
                assert canary not in failed["provider_message"]
                assert canary not in everywhere


async def test_an_address_that_cannot_be_reached_is_named_to_the_operator_alone(
    tmp_path: Path, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ScriptedProvider([Line()]) as provider:
        path = written(tmp_path, provider, sqlite_url, params={"api_base": "http://127.0.0.1:9/v1"})
        async with serving(path) as gateway, gateway.http() as http:
            failed = await turn(http)
            assert failed.status_code == 502
            assert "127.0.0.1" not in failed.text
    [line] = [record for record in caplog.records if "attempt failed" in record.getMessage()]
    assert line.levelno == logging.WARNING
    assert "address=127.0.0.1:9" in line.getMessage()


async def test_the_gateways_own_errors_have_the_codes_that_clients_look_for(tmp_path: Path, sqlite_url: str) -> None:
    async with (
        ScriptedProvider([Line()]) as provider,
        serving(written(tmp_path, provider, sqlite_url)) as gateway,
        gateway.http() as http,
    ):
        long = await turn(http, messages=[{"role": "user", "content": "word " * 120_000}])
        error = long.json()["error"]
        assert (long.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
        assert "maximum context length is 100000 tokens" in error["message"]
        unknown = await turn(http, "gpt-17")
        error = unknown.json()["error"]
        assert (unknown.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert '"gpt-17"' in error["message"]
        assert '"auto"' in error["message"]


@pytest.mark.parametrize(
    ("model", "base_model", "more"),
    [("azure/my-reasoner", "azure/o3-mini", {"api_version": "2025-01-01"}), ("openai/my-reasoner", "gpt-5", {})],
)
async def test_a_model_behind_another_name_is_called_as_what_it_is(
    tmp_path: Path, sqlite_url: str, model: str, base_model: str, more: dict[str, str]
) -> None:
    async with ScriptedProvider([Line()]) as provider:
        params = {"model": model, "api_base": provider.url.removesuffix("/v1"), **more}
        path = written(tmp_path, provider, sqlite_url, params=params)
        tree = yaml.safe_load(path.read_text())
        for entry in tree["model_list"]:
            entry["model_info"]["base_model"] = base_model
        path.write_text(yaml.safe_dump(tree))
        async with serving(path) as gateway, gateway.http() as http:
            answer = await turn(http, max_tokens=100, temperature=0.3, headers=session("s"))
            assert (answer.status_code, seqroute(answer, "model")) == (200, "small")
            assert provider.bodies[0]["max_completion_tokens"] == 100
            assert provider.bodies[0].keys().isdisjoint({"max_tokens", "temperature"})
            assert seqroute(answer, "dropped") == "temperature"


async def test_a_turn_that_failed_counts_and_commands_count_from_one(
    tmp_path: Path, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with playing(tmp_path, sqlite_url, modes={"down": "e500"}, router={"num_retries": 0}) as play:
        async with play.gateway.http() as http:
            for model, status in (("down", 502), ("small", 200)):
                answer = await turn(http, model, headers=session("s"))
                assert answer.status_code == status
            told = (await http.get("/v1/decisions/" + seqroute(answer, "decision-id"))).json()
            counted = (await http.get("/v1/sessions/s")).json()
        assert (told["turn"], counted["turns"]) == (1, 2)
        await play.gateway.settled()
        listing = ["decisions", "list", "--config", str(play.path), "--session", "s"]
        assert await asyncio.to_thread(run, [*listing, "--json"]) == 0
        assert [row["turn"] for row in json.loads(capsys.readouterr().out)] == [2, 1]
        assert await asyncio.to_thread(run, listing) == 0
        assert "turns are counted from 1" in capsys.readouterr().err
