"""What may leave the house: nothing that a caller sent under a name of LiteLLM's own, at any depth."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.catalog.addresses import ANY_ADDRESS
from gateway.dialects.arguments import check_addresses, outgoing_messages, outgoing_params
from gateway.errors import InvalidRequest
from gateway.providers.call import ProviderNames
from gateway.providers.errors import UpstreamFault
from gateway.providers.litellm_clients import OPENAI_ADDRESS, key_for
from gateway.providers.litellm_setup import LITELLM_ENVIRONMENT
from gateway.providers.outgoing import OutgoingCalls
from gateway.providers.providers import Call, Upstream
from gateway.schema.fields import CHAT_FIELDS, VENDOR_FIELDS
from tests.harness.lanes import LANES
from tests.harness.upstream import FaultUpstream

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
async def elsewhere() -> AsyncIterator[FaultUpstream]:
    """The address an attacker would like the provider's key to be sent to."""
    async with FaultUpstream() as elsewhere:
        yield elsewhere


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def litellm_params(_: Upstream) -> list[str]:
    """Every argument that the installed LiteLLM reads for itself."""
    names: list[str] = importlib.import_module("litellm.types.utils").all_litellm_params
    assert len(names) > 300
    return names


def call(provider: FaultUpstream, **more: Any) -> Call:
    return Call(
        **{"litellm_model": "openai/ok", "api_base": provider.url, "api_key": "sk-ours", "messages": HELLO} | more
    )


async def test_no_parameter_of_litellm_is_on_the_allow_list(upstream: Upstream) -> None:
    """Labels alone have the name of one: they travel in the body, never as an argument."""
    assert (CHAT_FIELDS | VENDOR_FIELDS) & set(await litellm_params(upstream)) == {"metadata"}


async def test_every_litellm_parameter_stays_inside_at_every_depth(
    upstream: Upstream, provider: FaultUpstream, elsewhere: FaultUpstream
) -> None:
    poison = dict.fromkeys(await litellm_params(upstream), elsewhere.url) | {
        "api_base": elsewhere.url, "base_url": elsewhere.url, "api_key": "sk-theirs", "mock_response": "free lunch",
        "model_list": [{"model_name": "ok", "litellm_params": {"model": "openai/x", "api_base": elsewhere.url}}],
        "fallbacks": [{"model": "openai/x", "api_base": elsewhere.url}], "input_cost_per_token": 0,
        "custom_llm_provider": "azure", "metadata": {"api_base": elsewhere.url}, "max_retries": 9, "num_retries": 9,
        "success_callback": ["langfuse"], "extra_headers": {"authorization": "Bearer theirs"},
        "extra_body": {"api_base": elsewhere.url}, "stream": True, "timeout": 0.001, "service_tier": "priority",
        "web_search_options": {}, "prediction": {"type": "content", "content": "x"}, "store": True,
        "tools": [TOOL | poisoned("function", TOOL["function"], elsewhere)],
        "response_format": {"type": "text", "api_base": elsewhere.url, "enforce_validation": True},
        "temperature": 0.5,
    }  # fmt: skip
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi", "api_base": elsewhere.url}],
                 "api_base": elsewhere.url, "metadata": {"x": 1}}]  # fmt: skip
    reply = await upstream.complete(upstream.outgoing(call(provider, params=poison, messages=messages, max_tokens=7)))
    sent = provider.received[0]
    assert reply.finish_reason == "length"
    assert (len(provider.bill), len(elsewhere.bill)) == (1, 0)
    assert sent.headers["authorization"] == "Bearer sk-ours"
    assert sent.body == {
        "model": "ok",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_tokens": 7,
        "temperature": 0.5,
        "tools": [TOOL],
        "response_format": {"type": "text"},
        "prediction": {"type": "content", "content": "x"}, "store": True,
    }  # fmt: skip


def poisoned(name: str, inner: Any, elsewhere: FaultUpstream) -> dict[str, Any]:
    return {name: inner | {"api_base": elsewhere.url}, "api_base": elsewhere.url, "server_url": elsewhere.url}


async def test_only_our_headers_reach_the_provider(upstream: Upstream, provider: FaultUpstream) -> None:
    await upstream.complete(upstream.outgoing(call(provider, extra_headers={"x-team": "blue"})))
    assert provider.received[0].headers.keys() - {"connection"} == {
        "host", "accept", "accept-encoding", "authorization", "content-length", "content-type", "user-agent", "x-team",
    }  # fmt: skip
    assert provider.received[0].headers["user-agent"] == "seqroute"


async def test_keys_of_this_process_are_never_sent_to_an_address_without_one(
    upstream: Upstream, provider: FaultUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "GROQ_API_KEY",
        "OPENAI_ORG_ID",
        "OPENAI_ORGANIZATION",
        "OPENAI_PROJECT_ID",
    ):
        monkeypatch.setenv(name, "sk-environment")
    await upstream.complete(upstream.outgoing(call(provider, api_key=None)))
    assert "sk-environment" not in str(provider.received[0].headers)


@pytest.mark.parametrize(
    ("provider", "base", "key"),
    [
        ("openai", OPENAI_ADDRESS, "sk-environment"),
        ("openai", "https://api.openai.com.example/v1", "none"),
        ("together_ai", "https://api.together.xyz/v1", "none"),
        ("azure", OPENAI_ADDRESS, "none"),
    ],
)
def test_openai_s_key_of_the_environment_goes_to_openai_alone(
    monkeypatch: pytest.MonkeyPatch, provider: str, base: str, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    assert key_for(Call("m", []), ProviderNames("m", provider, None, base), base) == key
    assert key_for(Call("m", []), ProviderNames("m", provider, "sk-found", base), base) == "sk-found"
    assert key_for(Call("m", [], api_base=base), ProviderNames("m", provider, None, base), base) == "none"


async def test_moderations_of_another_provider_do_not_get_openai_s_key(
    upstream: Upstream, elsewhere: FaultUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    monkeypatch.setattr(
        OutgoingCalls, "_resolved", lambda calls, call: ProviderNames("m", "together_ai", None, elsewhere.url)
    )
    with contextlib.suppress(UpstreamFault):
        await upstream.moderate(upstream.outgoing(Call("together_ai/m", [], params={"input": ["x"]}, is_chat=False)))
    assert elsewhere.received[0].headers["authorization"] == "Bearer none"


async def test_the_operators_organization_is_sent(upstream: Upstream, provider: FaultUpstream) -> None:
    await upstream.complete(upstream.outgoing(call(provider, options={"organization": "org-7"})))
    assert provider.received[0].headers["openai-organization"] == "org-7"


def test_schemas_and_tool_choices_pass_with_their_known_fields() -> None:
    params = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"x": 1}, "strict": True}},
        "tool_choice": {"type": "function", "function": {"name": "look_up", "api_base": "x"}},
        "tools": [TOOL],
    }
    assert outgoing_params(params) == params | {
        "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    }


def picture(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


@pytest.mark.parametrize("url", ["HTTPS://X.test/A.png", "Http://X.test/A.png", "DATA:image/png;base64,QQ=="])
def test_the_scheme_of_an_address_has_no_case(url: str) -> None:
    scheme, _, rest = url.partition(":")
    message = picture(url)
    check_addresses([(0, message[0])], by_reference=ANY_ADDRESS)
    assert message[0]["content"][0]["image_url"]["url"] == f"{scheme.lower()}:{rest}"


@pytest.mark.parametrize(
    ("head", "sent"),
    [
        ("data:image/jpg;base64", "data:image/jpeg;base64"),
        ("DATA:image/PNG;charset=utf-8;BASE64", "data:image/png;base64"),
        ("data:image/webp;base64", "data:image/webp;base64"), ("data:image/svg+xml", "data:image/svg+xml"),
    ],
)  # fmt: skip
def test_a_media_type_is_sent_by_its_registered_name_alone(head: str, sent: str) -> None:
    """Claude, Gemini and Amazon refuse `image/jpg` and parameters."""
    (message,) = outgoing_messages(picture(f"{head},QQ=="), by_reference=ANY_ADDRESS)
    assert message["content"][0]["image_url"]["url"] == f"{sent},QQ=="
    file = {"type": "file", "file": {"filename": "a", "file_data": f"{head.replace('DATA', 'data')},QQ=="}}
    (message,) = outgoing_messages([{"role": "user", "content": [file]}], by_reference=ANY_ADDRESS)
    assert message["content"][0]["file"]["file_data"] == f"{sent},QQ=="


@pytest.mark.parametrize("url", ["file:///etc/passwd", "gs://bucket/x", "/etc/passwd", "ftp://x/y", ""])
def test_an_address_that_no_provider_fetches_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        outgoing_messages(picture(url), by_reference=ANY_ADDRESS)


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "https://example.com/cat.png", "http://[::1]/x"])
def test_a_picture_that_we_would_have_to_fetch_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        outgoing_messages(picture(url), by_reference=())


async def test_a_picture_goes_to_the_provider_by_reference_and_nobody_here_fetches_it(
    upstream: Upstream, provider: FaultUpstream, elsewhere: FaultUpstream
) -> None:
    await upstream.complete(upstream.outgoing(call(provider, messages=picture(f"{elsewhere.url}/cat.png"))))
    part = provider.received[0].body["messages"][0]["content"][0]
    assert part == {"type": "image_url", "image_url": {"url": f"{elsewhere.url}/cat.png"}}
    assert elsewhere.accepted_connections == 0


@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro", "mistral/m"])
async def test_other_dialects_take_pictures_inline_only(
    upstream: Upstream, provider: FaultUpstream, elsewhere: FaultUpstream, model: str
) -> None:
    wanted = call(provider, litellm_model=model, messages=picture(f"{elsewhere.url}/cat.png"))
    with pytest.raises(InvalidRequest):
        await upstream.complete(upstream.outgoing(wanted))
    assert elsewhere.accepted_connections == provider.accepted_connections == 0


async def test_anthropic_fetches_a_picture_of_a_safe_address_itself(
    upstream: Upstream, provider: FaultUpstream
) -> None:
    """LiteLLM passes https addresses on; it would fetch others, which are refused above."""
    wanted = call(provider, litellm_model="anthropic/claude-sonnet-4-5", messages=picture("https://x.test/a.png"))
    with contextlib.suppress(UpstreamFault):  # the provider of these tests answers in OpenAI's dialect
        await upstream.complete(upstream.outgoing(wanted))
    part = provider.received[0].body["messages"][0]["content"][0]
    assert part == {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}}


def test_a_file_by_address_is_refused_and_by_id_or_inline_passes() -> None:
    def file(**inner: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "file", "file": inner}]}]

    for inner in (
        {"file_id": "https://example.com/x.pdf"}, {"file_data": "gs://bucket/x.pdf"},
        {"file_url": "https://example.com/x.pdf"}, {"filename": "x.pdf"},
    ):  # fmt: skip
        with pytest.raises(InvalidRequest):
            outgoing_messages(file(**inner), by_reference=ANY_ADDRESS)
    for inner in ({"file_id": "file-abc"}, {"file_data": "data:application/pdf;base64,AAAA"}):
        assert outgoing_messages(file(**inner), by_reference=ANY_ADDRESS) == file(**inner)


def test_litellm_fetches_no_picture_and_has_no_callback_or_cache() -> None:
    """In a process of its own: what LiteLLM reads from the environment, it reads when it is first imported."""
    code = (
        "from gateway.providers.litellm_setup import import_litellm; litellm = import_litellm(); "
        "called = (litellm.callbacks, litellm.success_callback, litellm.failure_callback, litellm.input_callback); "
        "print(litellm.constants.MAX_IMAGE_URL_DOWNLOAD_SIZE_MB, sorted({n for names in called for n in names}), "
        "litellm.cache)"
    )
    plain = {name: value for name, value in os.environ.items() if name not in LITELLM_ENVIRONMENT}
    found = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    # LiteLLM's module for Vertex's context caching may add the name "cache" when it is imported; no cache is set.
    assert found.stdout.strip().replace("'cache'", "") == "0.0 [] None"
