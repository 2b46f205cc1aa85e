"""Every provider of the pinned LiteLLM answers through the gateway's own upstream, whole and streamed."""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.catalog.usage import Usage
from gateway.errors import http_status
from gateway.providers.errors import MessagesRefused
from gateway.providers.providers import Upstream
from tests.harness.dialects import OUTPUT_TOKENS, PROMPT_TOKENS, TEXT, Asked, DialectProvider, Spoken, spoken
from tests.harness.provider_cases import (
    CASES,
    DOCS,
    IMPOSSIBLE,
    NO_CHAT,
    ROUTES,
    RedirectedUpstream,
    call_of,
    environment_of,
    written,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # LiteLLM's wrapper reads attributes that pydantic wants to give up, and some of its types are built late.
    pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
]

ANSWER = "".join(TEXT)
BILL = Usage(PROMPT_TOKENS, OUTPUT_TOKENS)
LIKE_OPENAI = "/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider() -> AsyncIterator[DialectProvider]:
    async with DialectProvider() as provider:
        yield provider


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream(provider: DialectProvider) -> AsyncIterator[Upstream]:
    upstream = RedirectedUpstream(provider)
    await upstream.start()
    yield upstream
    await upstream.close()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", sorted(CASES | ROUTES))
async def test_a_provider_answers_and_says_what_it_cost(
    upstream: Upstream, provider: DialectProvider, monkeypatch: pytest.MonkeyPatch, name: str, stream: bool
) -> None:
    for variable, value in environment_of(name, provider).items():
        monkeypatch.setenv(variable, value)
    provider.asked.clear()
    call = call_of(name, provider, stream=stream)
    if stream:
        answer = await upstream.open_stream(upstream.outgoing(call))
        said = ""
        async for chunk in answer:
            said += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        assert answer.ended_properly
        assert answer.finish_reason
        usage = answer.usage
    else:
        reply = await upstream.complete(upstream.outgoing(call))
        said, usage = reply.body["choices"][0]["message"]["content"], reply.usage
        assert reply.finish_reason
    assert said == ANSWER
    assert usage == (BILL if (CASES | ROUTES)[name].usage[stream] else None)
    assert len([asked for asked in provider.asked if asked.method == "POST" and "/token" not in asked.path]) == 1


TEXT_PART = {"type": "text", "text": "look"}
DATA = "c29tZXRoaW5nIHRoYXQgbm8gcmVxdWVzdCBoYXMgYnkgaXRzZWxm"
PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
PDF = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{DATA}"}}
SOUND = {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}
HELLO: dict[str, Any] = {"role": "user", "content": "hi"}
CALLED = {
    "role": "assistant", "content": None,
    "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}  # fmt: skip


def histories() -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Conversations with a picture, a file or a sound, each with its place."""
    for part in (PICTURE, PDF, SOUND):
        yield [{"role": "user", "content": [TEXT_PART, part]}], "messages[0].content[1]"
    yield [{"role": "system", "content": [TEXT_PART, PICTURE]}, HELLO], "messages[0].content[1]"
    yield [HELLO, {"role": "assistant", "content": [TEXT_PART, PICTURE]}, HELLO], "messages[1].content[1]"
    yield (
        [HELLO, CALLED, {"role": "tool", "tool_call_id": "t1", "content": [TEXT_PART, PICTURE]}],
        "messages[2].content[1]",
    )


@pytest.mark.parametrize("name", sorted(CASES | ROUTES))
async def test_what_is_attached_reaches_a_provider_or_is_refused_by_its_place(
    upstream: Upstream, provider: DialectProvider, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable, value in environment_of(name, provider).items():
        monkeypatch.setenv(variable, value)
    for messages, place in histories():
        provider.asked.clear()
        call = call_of(name, provider, stream=False, messages=messages)
        refused = None
        try:
            await upstream.complete(upstream.outgoing(call))
        except MessagesRefused as fault:
            refused = fault.answer()
        sent = [asked for asked in provider.asked if asked.method == "POST" and "/token" not in asked.path]
        if refused is None:
            assert [DATA.encode() in asked.raw and b"{'" not in asked.raw for asked in sent] == [True]
        else:
            assert (http_status(refused), refused.param, sent) == (400, place, [])


@pytest.mark.parametrize("model", ["sambanova/Llama-4-Maverick-17B-128E-Instruct", "docker_model_runner/gemma3"])
async def test_servers_of_openai_s_form_that_can_see_get_the_pictures(
    upstream: Upstream, provider: DialectProvider, model: str
) -> None:
    provider.asked.clear()
    messages = [{"role": "system", "content": [TEXT_PART]}, {"role": "user", "content": [TEXT_PART, PICTURE, PICTURE]}]
    call = call_of("sambanova", provider, stream=False, messages=messages, litellm_model=model)
    await upstream.complete(upstream.outgoing(call))
    assert provider.asked[0].body["messages"] == [{"role": "system", "content": "look"}, messages[1]]


def printed(asked: Asked) -> Spoken:
    """The answer of a server that marks its byte order, prints its JSON and ends lines in Windows' way."""
    kind, body = spoken(asked)
    if not kind.startswith("text/event-stream"):
        return kind, body
    lines = []
    for line in body.decode().split("\n"):
        value = line.removeprefix("data: ")
        if value != line and value != "[DONE]":
            lines += [f"data: {each}" for each in json.dumps(json.loads(value), indent=1).split("\n")]
        else:
            lines.append(line)
    return kind, "\r\n".join(["\ufeff: hello", "", *lines]).encode()


@pytest.mark.parametrize("name", sorted(CASES | ROUTES))
async def test_a_stream_of_any_framing_is_read(
    upstream: Upstream, provider: DialectProvider, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable, value in environment_of(name, provider).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(provider, "answering", printed)
    answer = await upstream.open_stream(upstream.outgoing(call_of(name, provider, stream=True)))
    chunks = [chunk async for chunk in answer]
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert (said, answer.usage) == (ANSWER, BILL if (CASES | ROUTES)[name].usage[True] else None)


async def test_no_provider_of_litellm_is_left_out(upstream: Upstream) -> None:
    litellm = importlib.import_module("litellm")
    every = {str(getattr(name, "value", name)) for name in litellm.provider_list}
    assert every == CASES.keys() | IMPOSSIBLE.keys()
    assert not CASES.keys() & IMPOSSIBLE.keys()


@pytest.mark.parametrize("name", sorted(name for name, why in IMPOSSIBLE.items() if why == NO_CHAT))
async def test_what_litellm_has_no_chat_for_is_refused_without_a_call(
    upstream: Upstream, provider: DialectProvider, name: str
) -> None:
    """Should one of them learn to chat, it belongs among the others."""
    litellm = importlib.import_module("litellm")
    with pytest.raises((litellm.BadRequestError, litellm.UnsupportedParamsError, litellm.APIConnectionError)):
        await litellm.acompletion(
            model=f"{name}/m", messages=[{"role": "user", "content": "hi"}], api_key="k", api_base=provider.address
        )


async def test_the_documentation_lists_every_provider_as_it_is() -> None:
    assert written(DOCS.read_text()) == DOCS.read_text(), "run: python -m tests.harness.provider_cases"
