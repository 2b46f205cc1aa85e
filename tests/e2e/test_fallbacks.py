"""Fallbacks over HTTP: which model answers when the first cannot, under which money, and what the log says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.database.tables import decisions, holds
from gateway.decisions.trainable import why_not_trained
from tests.harness.gateway import config, serving
from tests.harness.scenario import playing, seqroute, session, turn
from tests.harness.scripted import Line, ScriptedProvider

TO_BIG: dict[str, Any] = {"fallbacks": [{"bad": ["big"]}]}
OVERFLOW = Line(400, {"error": {"message": "maximum context length", "code": "context_length_exceeded"}})
FILTERED = Line(400, {"error": {"message": "no", "code": "content_filter"}})
DOWN = Line(503, {"error": {"message": "down"}})


@pytest.mark.parametrize(
    ("mode", "stream"),
    [*((mode, stream) for mode in ("e500", "e429", "e401echo", "e404", "e504", "html") for stream in (False, True)),
     ("rst:after=0", False)],
)  # fmt: skip
async def test_the_fallback_answers_under_a_hold_of_its_own_and_the_log_says_so(
    tmp_path: Path, sqlite_url: str, mode: str, stream: bool
) -> None:
    async with playing(tmp_path, sqlite_url, modes={"bad": mode}, router=TO_BIG) as play, play.gateway.http() as http:
        answer = await turn(http, "bad", stream=stream)
        assert (answer.status_code, seqroute(answer, "model"), seqroute(answer, "reason")) == (200, "big", "fallback")
        await play.gateway.settled()
        assert [row["model"] for row in play.rows(holds)] == ["bad", "big"]
        (row,) = play.rows(decisions)
        assert (row["model"], row["reason"], row["requested_model"]) == ("big", "fallback", "bad")
        assert why_not_trained(row) == "fallback"
        told = (await http.get("/v1/decisions/" + seqroute(answer, "decision-id"))).json()
        assert (told["model"], told["reason"], told["status"]) == ("big", "fallback", "completed")


async def test_what_auto_chose_falls_back_too_and_is_no_draw_of_the_policy(tmp_path: Path, sqlite_url: str) -> None:
    router = {"default_fallbacks": ["big"]}
    async with playing(tmp_path, sqlite_url, modes={"small": "e500"}, router=router) as play:
        _, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            answers = [await turn(http, "auto@cheap", headers=session(f"s{n}")) for n in range(4)]
        assert {answer.status_code for answer in answers} == {200}
        await play.gateway.settled()
        for row in play.rows(decisions):
            assert (row["model"], bool(why_not_trained(row))) == ("big", row["reason"] == "fallback")
        assert any(row["reason"] == "fallback" for row in play.rows(decisions))


PDF = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0xLjcKJb/3ov4="}
READ = [{"role": "user", "content": [{"type": "text", "text": "read"}, {"type": "file", "file": PDF}]}]
FORMLESS = {"model": "deepseek/ok"}
"""LiteLLM leaves files out of DeepSeek's requests, whatever the operator says of the model."""


@pytest.mark.parametrize("stream", [False, True])
async def test_auto_goes_on_to_a_model_whose_provider_has_a_form_for_the_file(
    tmp_path: Path, sqlite_url: str, stream: bool
) -> None:
    files, names = {"supports_pdf_input": True}, ("small", "a", "b", "c")
    modes, params = dict.fromkeys(names, "ok"), dict.fromkeys(names, FORMLESS)
    async with playing(tmp_path, sqlite_url, modes=modes, params=params, model_info=files) as play:
        async with play.gateway.http() as http:
            answer = await turn(http, "auto@cheap", READ, stream=stream)
            assert answer.status_code == 200
            assert (seqroute(answer, "model"), seqroute(answer, "reason")) == ("big", "fallback")
            again = await turn(http, "auto@cheap", READ, stream=stream)  # what was learned needs no other attempt
            assert (seqroute(again, "model"), seqroute(again, "reason") != "fallback") == ("big", True)
            named = await turn(http, "small", READ)
            assert (named.status_code, named.json()["error"]["param"]) == (400, "messages[0].content[1]")
        await play.gateway.settled()
        assert [attempt.model for attempt in play.provider.bill] == ["big", "big"]
        rows = play.rows(decisions)
        assert [(row["model"], row["status"], why_not_trained(row)) for row in rows] == [
            ("big", "completed", "fallback"), ("big", "completed", ""), ("small", "failed", "failed")
        ]  # fmt: skip


async def test_auto_refuses_a_file_that_no_model_s_provider_has_a_form_for(tmp_path: Path, sqlite_url: str) -> None:
    files, params = {"supports_pdf_input": True}, dict.fromkeys(("small", "big"), FORMLESS)
    async with playing(tmp_path, sqlite_url, params=params, model_info=files) as play:
        async with play.gateway.http() as http:
            refused = await turn(http, "auto", READ)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[0].content[1]")
        await play.gateway.settled()
        assert play.provider.bill == []
        assert sorted(row["model"] for row in play.rows(holds)) == ["big", "small"]
        assert [row["status"] for row in play.rows(decisions)] == ["failed"]


async def scripted(folder: Path, url: str, script: list[Line], model: str = "small", **router: Any) -> tuple[Any, ...]:
    """(status, error code, models that were called) of one turn."""
    async with ScriptedProvider(script) as provider:
        path = config(folder, provider.url, database_url=url, modes={"third": "third"}, router=router)
        async with serving(path) as gateway, gateway.http() as http:
            answer = await turn(http, model)
            await gateway.settled()
            await gateway.audit()
            code = answer.json()["error"]["code"] if answer.status_code != 200 else seqroute(answer, "model")
            return answer.status_code, code, [body["model"] for body in provider.bodies]


@pytest.mark.parametrize(
    ("refusal", "router", "expected"),
    [
        (OVERFLOW, {"context_window_fallbacks": [{"small": ["third"]}], "fallbacks": [{"small": ["big"]}]}, "third"),
        (FILTERED, {"content_policy_fallbacks": [{"small": ["third"]}], "fallbacks": [{"small": ["big"]}]}, "third"),
        (OVERFLOW, {"fallbacks": [{"small": ["big"]}]}, "big"),
        (FILTERED, {"default_fallbacks": ["big"]}, "big"),
        (DOWN, {"fallbacks": [{"small": ["big"]}], "content_policy_fallbacks": [{"small": ["third"]}]}, "big"),
        (DOWN, {"fallbacks": [{"*": ["third"]}]}, "third"),
        (DOWN, {"fallbacks": [{"other-name": ["third"]}], "model_group_alias": {"other-name": "small"}}, "third"),
    ],
)
async def test_each_refusal_has_fallbacks_of_its_own_else_the_general_ones(
    tmp_path: Path, sqlite_url: str, refusal: Line, router: dict[str, Any], expected: str
) -> None:
    found = await scripted(tmp_path, sqlite_url, [refusal, Line()], **router)
    assert found == (200, expected, ["small", expected])


@pytest.mark.parametrize(
    ("refusal", "router", "code"),
    [
        (Line(400, {"error": {"message": "bad tool"}}), {"fallbacks": [{"small": ["big"]}]}, None),
        (OVERFLOW, {"context_window_fallbacks": [{"big": ["third"]}], "default_fallbacks": ["third"]}, OVERFLOW),
        (DOWN, {"context_window_fallbacks": [{"small": ["big"]}]}, "upstream_error"),
        (DOWN, {"fallbacks": [{"big": ["small"]}]}, "upstream_error"),
    ],
)
async def test_a_failure_without_its_fallbacks_is_the_client_s(
    tmp_path: Path, sqlite_url: str, refusal: Line, router: dict[str, Any], code: Any
) -> None:
    status, found, models = await scripted(tmp_path, sqlite_url, [refusal, Line()], **router)
    assert models == ["small"]
    assert status in (400, 502)
    assert code is None or found == (code if isinstance(code, str) else "context_length_exceeded")


@pytest.mark.parametrize(
    ("router", "called"),
    [
        ({"num_retries": 2}, ["small", "small", "big"]),
        ({"num_retries": 0}, ["small", "big", "third"]),
        ({"num_retries": 1, "max_attempts": 5}, ["small", "small", "big", "big", "third"]),
        ({"max_attempts": 1}, ["small"]),
    ],
)
async def test_a_turn_makes_three_calls_at_most_unless_configured(
    tmp_path: Path, sqlite_url: str, router: dict[str, Any], called: list[str]
) -> None:
    fallbacks: dict[str, Any] = {"fallbacks": [{"small": ["big", "third"]}], "allowed_fails": 100}
    assert await scripted(tmp_path, sqlite_url, [DOWN], **fallbacks, **router) == (502, "upstream_error", called)


async def test_a_fallback_that_the_session_cannot_pay_for_is_not_called(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"bad": "e500"}, router=TO_BIG) as play:
        async with play.gateway.http() as http:
            failed = await turn(http, "bad", headers=session("s", budget_usd="0.0001"), max_tokens=30)
            assert (failed.status_code, failed.json()["error"]["code"]) == (502, "upstream_error")
            shown = (await http.get("/v1/sessions/s")).json()
        await play.gateway.settled()
        assert [attempt.model for attempt in play.provider.bill] == ["e500"]
        assert (shown["spent_nano_usd"], shown["reserved_nano_usd"]) == (0, 0)
        assert [row["status"] for row in play.rows(decisions)] == ["failed"]


async def test_a_first_call_that_may_be_billed_counts_before_the_fallback(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"bad": "e504"}, router=TO_BIG) as play:
        async with play.gateway.http() as http:
            answer = await turn(http, "bad", headers=session("s"), max_tokens=30)
            assert seqroute(answer, "model") == "big"
            await play.gateway.settled()
            entries = await play.gateway.entries(session="s")
        settled = [(row["model"], row["usage_source"]) for row in entries if row["kind"] == "settle"]
        assert settled == [("bad", "estimated"), ("big", "reported")]
        billed = sum(row["amount_nano_usd"] for row in entries if row["kind"] == "settle")
        told = [round(float(seqroute(answer, name)) * 1e9) for name in ("cost-usd", "session-spent-usd")]
        assert told == [billed, billed] == [play.rows(decisions)[0]["cost_nanousd"]] * 2


async def test_what_may_be_billed_is_not_repeated_under_an_idempotency_key_or_a_limit_of_the_request(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with playing(tmp_path, sqlite_url, modes={"bad": "e504"}, router=TO_BIG) as play:
        async with play.gateway.http() as http:
            assert (await turn(http, "bad", headers={"Idempotency-Key": "once"})).status_code == 504
            assert (await turn(http, "bad", headers={"X-Route-Max-USD": "1"})).status_code == 504
        assert [attempt.model for attempt in play.provider.bill] == ["e504", "e504"]


async def test_there_is_no_fallback_after_the_first_byte(tmp_path: Path, sqlite_url: str) -> None:
    modes, router = {"bad": "inband-mid"}, TO_BIG
    async with playing(tmp_path, sqlite_url, modes=modes, router=router, audited=False) as play:
        async with play.gateway.http() as http:
            answer = await turn(http, "bad", stream=True)
            assert '"error"' in answer.text
        assert [attempt.model for attempt in play.provider.bill] == ["inband-mid"]


async def test_a_model_in_cooldown_or_too_small_is_answered_for_before_any_call(
    tmp_path: Path, sqlite_url: str
) -> None:
    router = TO_BIG | {"context_window_fallbacks": [{"tiny": ["big"]}], "allowed_fails": 0}
    infos = {"tiny": {"max_input_tokens": 50}}
    modes = {"bad": "e500", "tiny": "ok"}
    async with playing(tmp_path, sqlite_url, modes=modes, router=router, infos=infos) as play:
        async with play.gateway.http() as http:
            for model, prompt in (("bad", "hello"), ("bad", "hello"), ("tiny", "many words " * 100)):
                answer = await turn(http, model, [{"role": "user", "content": prompt}])
                assert (seqroute(answer, "model"), seqroute(answer, "reason")) == ("big", "fallback")
            dry = await http.post("/v1/route", json={"model": "bad", "messages": [{"role": "user", "content": "x"}]})
            assert (dry.json()["model"], dry.json()["reason"]) == ("big", "fallback")
        assert [attempt.model for attempt in play.provider.bill] == ["e500", "big", "big", "big"]


async def test_a_key_gets_no_fallback_that_it_may_not_use(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, modes={"bad": "e500"}, router=TO_BIG) as play:
        _, key = await play.gateway.tenant("acme", models=["bad", "small"])
        async with play.gateway.http(key) as http:
            assert (await turn(http, "bad")).status_code == 502
        assert [attempt.model for attempt in play.provider.bill] == ["e500"]


@pytest.mark.parametrize("base_model", ["text-embedding-3-small", "text-embedding-3-large"])
async def test_embeddings_fall_back_to_the_same_model_only(tmp_path: Path, sqlite_url: str, base_model: str) -> None:
    price = {"mode": "embedding", "input_cost_per_token": 1e-6, "output_cost_per_token": 0}
    infos = {"here": price | {"base_model": "text-embedding-3-small"}, "there": price | {"base_model": base_model}}
    router, modes = {"fallbacks": [{"here": ["there"]}]}, {"here": "e500", "there": "ok"}
    async with playing(tmp_path, sqlite_url, modes=modes, infos=infos, router=router) as play:
        async with play.gateway.http() as http:
            answer = await http.post("/v1/embeddings", json={"model": "here", "input": "hello"})
        assert answer.status_code == (200 if base_model == "text-embedding-3-small" else 502)
