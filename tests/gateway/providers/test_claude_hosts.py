"""Messages at Bedrock, Vertex AI and Azure: credentials, what a host lacks, errors, and streams that break."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import pytest_asyncio

from gateway.catalog.claude_hosts import claude_host
from gateway.catalog.usage import PartialUsage, Usage
from gateway.dialects import amazon_frames, messages_request
from gateway.dialects.forwarded import FORWARDED
from gateway.errors import InvalidRequest, http_status
from gateway.providers import claude_hosts
from gateway.providers.amazon_stream import unframed
from gateway.providers.aws_access import AwsEnvironment, aws_access
from gateway.providers.call import ProviderNames
from gateway.providers.claude_hosts import ClaudeHosts
from gateway.providers.errors import (
    BrokenFault,
    BrokenMidAnswer,
    CredentialFault,
    FailedFault,
    RejectedFault,
    ThrottledFault,
    TimeoutFault,
    UpstreamFault,
)
from gateway.providers.providers import Call, Outgoing, Upstream
from tests.gateway.providers.test_provider_dialects import CLAUDE_ANSWER, CLAUDE_END, CLAUDE_START, CLAUDE_TEXT
from tests.harness.dialects import Asked, DialectProvider, as_json, frame, invoked, spoken, thrown
from tests.harness.fixed_answers import CannedProvider, raw_answer
from tests.harness.provider_cases import AWS, google_account

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO: Any = [{"role": "user", "content": "hello"}]
OPUS = "bedrock/us.anthropic.claude-opus-4-6-v1"
ARN = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/abc"
BASH: Any = {"type": "bash_20250124", "name": "bash"}
SEARCH: Any = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
FRAMES = "application/vnd.amazon.eventstream"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def provider() -> AsyncIterator[DialectProvider]:
    async with DialectProvider(answering=answer) as made:
        yield made


def answer(asked: Asked) -> tuple[str, bytes]:
    if asked.path.endswith("/token"):
        return spoken(asked)
    events = [CLAUDE_START, *CLAUDE_TEXT, *CLAUDE_END]
    return invoked(events) if asked.path.endswith("-stream") else as_json(CLAUDE_ANSWER)


def asking(
    upstream: Upstream,
    model: str,
    address: str | None,
    fields: dict[str, Any] | None = None,
    betas: str = "",
    **more: Any,
) -> Outgoing:
    """A call of one of the hosts."""
    read = messages_request.to_chat(
        {"model": "m", "max_tokens": 9_000, "messages": HELLO} | (fields or {}), betas=betas
    )
    params = {name: value for name, value in read.chat.items() if name not in ("model", "messages", "max_tokens")}
    arguments: dict[str, Any] = {
        "litellm_model": model, "api_base": address, "options": AWS if model.startswith("bedrock") else {},
        "params": params, "messages": read.chat["messages"], "forwarded": read.forwarded, "max_tokens": 9_000,
        "drop_params": True, "timeout_s": 20.0, "stream_timeout_s": 10.0, "idle_timeout_s": 1.0,
    }  # fmt: skip
    return upstream.outgoing(Call(**arguments | more))


def sent_of(made: Outgoing) -> dict[str, Any]:
    assert made.call.forwarded is not None
    return dict(made.call.forwarded.body)


def signature(asked: Asked, secret: str) -> str:
    """What Amazon's servers compute of a request: its path is signed as it was sent."""
    auth: Any = importlib.import_module("botocore.auth")
    requests: Any = importlib.import_module("botocore.awsrequest")
    keys: Any = importlib.import_module("botocore.credentials")
    signed = {name: asked.headers[name] for name in ("content-type", "x-amz-date", "host")}
    request = requests.AWSRequest("POST", f"http://{asked.headers['host']}{asked.path}", signed, asked.raw)
    scope = asked.headers["authorization"].partition("Credential=")[2].split("/")
    request.context["timestamp"] = asked.headers["x-amz-date"]
    signer = auth.SigV4Auth(keys.Credentials(scope[0], secret), "bedrock", scope[2])
    return str(signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request))


@pytest.mark.parametrize(
    ("model", "more", "path", "region"),
    [
        (OPUS, {}, "/model/us.anthropic.claude-opus-4-6-v1/invoke", "us-east-1"),
        ("bedrock/invoke/anthropic.claude-3-haiku-20240307-v1:0", {},
         "/model/anthropic.claude-3-haiku-20240307-v1:0/invoke", "us-east-1"),
        (f"bedrock/{ARN}", {"base_model": "anthropic.claude-opus-4-6-v1"}, f"/model/{ARN}/invoke", "eu-west-1"),
    ],
)  # fmt: skip
async def test_a_request_to_bedrock_is_signed_as_it_is_sent(
    upstream: Upstream, provider: DialectProvider, model: str, more: dict[str, Any], path: str, region: str
) -> None:
    options = {name: value for name, value in AWS.items() if name != "aws_region_name" or region == value}
    made = asking(upstream, model, provider.address, options=options, extra_headers={"x-own": "1"}, **more)
    reply = await upstream.complete(made)
    assert reply.body[FORWARDED] == CLAUDE_ANSWER
    (asked,) = provider.asked
    assert (unquote(asked.path), asked.headers["x-own"]) == (path, "1")
    assert f"/{region}/bedrock/" in asked.headers["authorization"]
    assert asked.headers["authorization"].endswith(f"Signature={signature(asked, AWS['aws_secret_access_key'])}")
    assert asked.body == {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9_000, "messages": HELLO}


async def test_a_token_for_bedrock_stays_at_its_address(
    upstream: Upstream, provider: DialectProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's goes to Amazon's endpoint alone; the deployment's goes to the deployment's address."""
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "of-the-environment")
    endpoint = AWS | {"aws_bedrock_runtime_endpoint": provider.address}
    for address, options, key, found in (
        (None, endpoint, None, "Bearer of-the-environment"), (provider.address, AWS, "own", "Bearer own"),
        (provider.address, AWS, None, "AWS4-HMAC-SHA256"),
    ):  # fmt: skip
        await upstream.complete(asking(upstream, OPUS, address, options=options, api_key=key))
        assert provider.asked[-1].headers["authorization"].startswith(found)


@pytest.mark.parametrize("model", ["converse/us.anthropic.claude-opus-4-6-v1", "us.amazon.nova-pro-v1:0"])
async def test_a_translated_request_to_bedrock_s_own_endpoint_is_signed_too(
    upstream: Upstream, provider: DialectProvider, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "of-the-environment")
    monkeypatch.setattr(provider, "answering", spoken)
    await upstream.complete(asking(upstream, f"bedrock/{model}", provider.address))
    assert provider.asked[0].headers["authorization"].startswith("AWS4-HMAC-SHA256")


def without_aws(monkeypatch: pytest.MonkeyPatch, credentials_file: str = "/nonexistent") -> None:
    """An environment of this process that has no credentials of Amazon's, but for those of the file."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", credentials_file)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")


REGION = {"aws_region_name": "us-east-1"}
NOVA = "bedrock/us.amazon.nova-pro-v1:0"


@pytest.mark.parametrize("model", [OPUS, NOVA, "bedrock/invoke/us.anthropic.claude-opus-4-6-v1"])
@pytest.mark.parametrize(
    ("stated", "sent"),
    [
        ({}, "Bearer none"),
        ({"authorization": "Bearer mine"}, "Bearer mine"),
        ({"Authorization": "Basic bWluZTo="}, "Basic bWluZTo="),
        ({"authorization": "Basic bWluZTo="}, "Basic bWluZTo="),
    ],
)  # fmt: skip
@pytest.mark.parametrize("found", [False, True])
async def test_a_proxy_before_bedrock_that_signs_by_itself_needs_no_credentials(
    provider: DialectProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    model: str, stated: dict[str, str], sent: str, found: bool,
) -> None:  # fmt: skip
    """`found`: the environment has some, which sign what the operator has not stated the access for."""
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = AKFOUND\naws_secret_access_key = s\n" if found else "")
    without_aws(monkeypatch, str(credentials))
    monkeypatch.setattr(provider, "answering", spoken if model == NOVA else answer)
    cached: Any = importlib.import_module("litellm.llms.bedrock.base_aws_llm")
    monkeypatch.setattr(cached.BaseAWSLLM, "_get_or_set_cached_credentials", lambda self, args, fetch: fetch()[0])
    upstream = Upstream()
    await upstream.start()
    try:
        made = asking(upstream, model, provider.address, options=REGION, extra_headers=stated)
        await upstream.complete(made)
    finally:
        await upstream.close()
    (asked,) = provider.asked
    value = asked.headers["authorization"]
    assert value.startswith("AWS4-HMAC-SHA256 Credential=AKFOUND/") if found and not stated else value == sent


async def test_credentials_that_are_not_found_are_not_looked_for_with_every_call(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance's server that hangs takes seconds each time."""
    looked: list[object] = []
    module: Any = importlib.import_module("litellm.llms.bedrock.base_aws_llm")
    monkeypatch.setattr(module.BaseAWSLLM, "resolve_credentials", lambda *asked: looked.append(asked))
    environment = AwsEnvironment()
    access = aws_access(Call(NOVA, HELLO, api_base="http://127.0.0.1:1", options=REGION))
    assert [await environment.key(access) for _ in range(3)] == ["none"] * 3
    assert len(looked) == 1
    keyed = aws_access(Call(NOVA, HELLO, api_base="http://127.0.0.1:1", options=AWS))
    assert await environment.key(keyed) == ""


async def test_without_credentials_nothing_is_sent(
    upstream: Upstream, provider: DialectProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_aws(monkeypatch)
    google = {"vertex_project": "p", "vertex_location": "us-east5", "vertex_credentials": '{"type": "service_account"}'}
    amazon = REGION | {"aws_bedrock_runtime_endpoint": provider.address}
    profile = {**REGION, "aws_profile_name": "nobody"}
    for model, address, options, named in (
        (OPUS, None, amazon, "aws_access_key_id"), (NOVA, None, amazon, "aws_access_key_id"),
        (OPUS, provider.address, profile, "aws_profile_name"), (NOVA, provider.address, profile, "aws_profile_name"),
        ("vertex_ai/claude-opus-4-6", provider.address, google, "vertex_credentials"),
    ):  # fmt: skip
        with pytest.raises(CredentialFault, match=f"no credentials .* expected .*{named}.* litellm_params") as caught:
            await upstream.complete(asking(upstream, model, address, options=options))
        assert (caught.value.dispatched, caught.value.retryable, http_status(caught.value.answer())) == (
            False, True, 502,
        )  # fmt: skip
    assert provider.asked == []


async def test_a_role_that_lacks_a_region_is_told_of_the_region(
    upstream: Upstream, provider: DialectProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_aws(monkeypatch)
    for name in ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    errors: Any = importlib.import_module("botocore.exceptions")

    def find(*_: object, **__: object) -> None:
        raise errors.NoRegionError

    module: Any = importlib.import_module("litellm.llms.bedrock.base_aws_llm")
    monkeypatch.setattr(module.BaseAWSLLM, "get_credentials", find)
    for model in (OPUS, NOVA):
        with pytest.raises(CredentialFault, match="expected aws_region_name in"):
            await upstream.complete(asking(upstream, model, provider.address, options={"aws_role_name": "r"}))
    assert provider.asked == []


async def test_a_token_server_of_google_s_that_hangs_holds_up_no_other_account(
    upstream: Upstream, provider: DialectProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google's library waits for two minutes, in threads."""
    left = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await left.wait()
        writer.close()

    def asked(account: str) -> Any:
        options = {"vertex_project": "p", "vertex_location": "us-east5", "vertex_credentials": account}
        return upstream.complete(asking(upstream, "vertex_ai/claude-opus-4-6", provider.address, options=options))

    good = google_account(provider)
    await asked(good)
    monkeypatch.setattr(claude_hosts, "TOKEN_WAIT_S", 0.3)
    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        bad = json.dumps({**json.loads(good), "token_uri": f"http://127.0.0.1:{port}/token"})
        waiting = [asyncio.ensure_future(asked(bad)) for _ in range(60)]
        await asyncio.sleep(0)
        assert (await asked(good)).usage
        faults = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(fault) for fault in faults} == {CredentialFault}
        assert (await asked(good)).usage
        left.set()


async def test_azure_is_sent_its_key_else_its_token(upstream: Upstream, provider: DialectProvider) -> None:
    model, token = "azure_ai/claude-opus-4-6", {"azure_ad_token": "t", "api_version": "2024-05-01-preview"}
    await upstream.complete(asking(upstream, model, provider.address, api_key="k"))
    await upstream.complete(asking(upstream, model, f"{provider.address}/anthropic", options=token))
    await upstream.complete(asking(upstream, model, provider.address, api_key="k", options=token))
    own: dict[str, Any] = {"extra_headers": {"Authorization": "Bearer own"}}
    await upstream.complete(asking(upstream, model, provider.address, {"tools": [BASH]}, **own))
    keyed, signed, both, stated = provider.asked
    assert [asked.path for asked in provider.asked] == ["/anthropic/v1/messages"] * 4
    assert (both.headers["x-api-key"], "authorization" in both.headers) == ("k", False)
    assert (stated.headers["authorization"], "x-api-key" in stated.headers) == ("Bearer own", False)
    assert (keyed.headers["x-api-key"], "authorization" in keyed.headers) == ("k", False)
    assert (signed.headers["authorization"], "x-api-key" in signed.headers) == ("Bearer t", False)
    assert keyed.body == {"model": "claude-opus-4-6", "max_tokens": 9_000, "messages": HELLO}


@pytest.mark.parametrize(
    "model",
    [
        "eu-west-1/anthropic.claude-opus-4-6-v1",
        "invoke/eu-west-1/anthropic.claude-opus-4-6-v1",
        "eu-west-1/invoke/anthropic.claude-opus-4-6-v1",
    ],
)
async def test_a_region_in_the_name_signs_the_request_and_is_no_part_of_its_address(
    upstream: Upstream, provider: DialectProvider, model: str
) -> None:
    keys = {name: value for name, value in AWS.items() if name != "aws_region_name"}
    await upstream.complete(asking(upstream, f"bedrock/{model}", provider.address, options=keys))
    await upstream.complete(asking(upstream, f"bedrock/{model}", provider.address, options=AWS))
    assert [asked.path for asked in provider.asked] == ["/model/anthropic.claude-opus-4-6-v1/invoke"] * 2
    regions = [asked.headers["authorization"].split("/")[2] for asked in provider.asked]
    assert regions == ["eu-west-1", AWS["aws_region_name"]]  # as LiteLLM has it, what is stated comes first


@pytest.mark.parametrize("fields", [{"tools": [BASH]}, {}])
async def test_a_call_to_azure_without_any_key_is_not_sent(
    upstream: Upstream, provider: DialectProvider, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """A key of the environment is for the environment's address."""
    monkeypatch.setenv("AZURE_API_KEY", "of-the-environment")
    made = asking(upstream, "azure_ai/claude-opus-4-6", provider.address, fields)
    assert (made.call.forwarded is None) is (not fields)
    if fields:
        with pytest.raises(CredentialFault) as caught:
            await upstream.complete(made)
        assert (caught.value.dispatched, provider.asked) == (False, [])


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (OPUS, {"defaults": {"guardrailConfig": {"guardrailIdentifier": "g"}}}),
        (OPUS, {"defaults": {"extra_body": {"guardrailConfig": {"guardrailIdentifier": "g"}}}}),
        (OPUS, {"options": AWS | {"region_name": "eu-west-1"}}),
        ("anthropic/claude-opus-4-6", {"defaults": {"safety_identifier": "x"}}),
        ("azure_ai/claude-opus-4-6", {"options": {"tenant_id": "t", "client_id": "c", "client_secret": "s"}}),
        ("azure_ai/claude-opus-4-6", {"options": {"azure_ad_token": "oidc/env/TOKEN"}}),
    ],
)  # fmt: skip
async def test_what_the_operator_adds_to_every_request_is_not_left_out_of_one_that_cannot_be_translated(
    upstream: Upstream, model: str, more: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="no model that may answer this request has it"):
        asking(upstream, model, "http://127.0.0.1:1", {"tools": [BASH]}, api_key="k", **more)
    assert asking(upstream, model, "http://127.0.0.1:1", api_key="k", **more).call.forwarded is None


async def test_the_operator_s_betas_reach_a_host_that_litellm_does_not_know_to_have_them(
    upstream: Upstream, provider: DialectProvider
) -> None:
    stated: dict[str, Any] = {"extra_headers": {"Anthropic-Beta": "interleaved-thinking-2025-05-14"}}
    await upstream.complete(asking(upstream, OPUS, provider.address, **stated))
    await upstream.complete(asking(upstream, "azure_ai/claude-opus-4-6", provider.address, api_key="k", **stated))
    assert provider.asked[0].body["anthropic_beta"] == ["interleaved-thinking-2025-05-14"]
    assert "anthropic-beta" not in provider.asked[0].headers
    assert provider.asked[1].headers["anthropic-beta"] == "interleaved-thinking-2025-05-14"


LOOK: Any = {"name": "look", "input_schema": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("claude-sonnet-4-5-20250929-v1:0", True), ("claude-opus-4-20250514-v1:0", True),
        ("claude-opus-4-6-v1", False), ("claude-opus-4-7", False), ("claude-3-7-sonnet-20250219-v1:0", False),
    ],
)  # fmt: skip
async def test_bedrock_is_told_to_interleave_thinking_for_the_models_that_need_it(
    upstream: Upstream, model: str, sent: bool
) -> None:
    """Bedrock refuses the beta for older models, and newer ones do it unasked."""
    beta = "interleaved-thinking-2025-05-14"
    fields = {"thinking": {"type": "enabled", "budget_tokens": 2_000}}
    made = asking(upstream, f"bedrock/us.anthropic.{model}", "http://127.0.0.1:1", fields, beta)
    assert (beta in (sent_of(made).get("anthropic_beta") or ())) is sent
    assert ("anthropic-beta" in made.left_out) is not sent


MARK: Any = {"type": "ephemeral", "ttl": "1h"}


@pytest.mark.parametrize(
    ("model", "fields", "kept", "names"),
    [
        (OPUS, {"system": [{"type": "text", "text": "s", "cache_control": MARK | {"scope": "global"}}]},
         {"system": [{"type": "text", "text": "s", "cache_control": MARK}]}, ("system[].cache_control.scope",)),
        ("azure_ai/claude-opus-4-6", {"tools": [LOOK | {"cache_control": MARK | {"scope": "global"}}]},
         {"tools": [LOOK | {"cache_control": MARK}]}, ("tools[].cache_control.scope",)),
        ("bedrock/anthropic.claude-3-haiku-20240307-v1:0", {"cache_control": MARK},
         {"messages": [{"role": "user", "content": [
             {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]}]},
         ("messages[].content[].cache_control.ttl",)),
        (OPUS, {"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}, {}, ("context_management",)),
        (OPUS, {"context_management": {"edits": [
            {"type": "clear_thinking_20251015"}, {"type": "clear_tool_uses_20250919"}]}},
         {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, ("context_management.edits",)),
        (OPUS, {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
         {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}, ()),
        (OPUS, {"system": "s", "metadata": {"user_id": "u"}, "thinking": {"type": "adaptive"}, "top_k": 3},
         {"system": "s", "metadata": {"user_id": "u"}, "thinking": {"type": "adaptive"}, "top_k": 3}, ()),
        ("vertex_ai/claude-haiku-4-5@20251001", {"output_config": {"effort": "low"}},
         {"thinking": {"type": "enabled", "budget_tokens": 1_024}}, ()),
    ],
)  # fmt: skip
async def test_what_a_host_lacks_is_left_out_by_name(
    upstream: Upstream, model: str, fields: dict[str, Any], kept: dict[str, Any], names: tuple[str, ...]
) -> None:
    made = asking(upstream, model, "http://127.0.0.1:1", fields, "context-management-2025-06-27", api_key="k")
    body = sent_of(made)
    assert {name: body.get(name) for name in (*kept, *fields) if name in body} == kept
    assert made.left_out == names


async def test_tools_reach_the_hosts_that_have_them(upstream: Upstream, provider: DialectProvider) -> None:
    google = {
        "vertex_project": "p", "vertex_location": "us-east5", "vertex_credentials": google_account(provider)
    }  # fmt: skip
    await upstream.complete(asking(upstream, OPUS, provider.address, {"tools": [BASH]}))
    assert provider.asked[-1].body["tools"] == [BASH]
    searching = asking(upstream, "vertex_ai/claude-opus-4-6", provider.address, {"tools": [SEARCH]}, options=google)
    await upstream.complete(searching)
    assert (provider.asked[-1].body["tools"], provider.asked[-1].headers["anthropic-beta"]) == (
        [SEARCH | {"max_uses": 2}], "web-search-2025-03-05",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("provider_name", "model", "base_model", "host"),
    [
        ("anthropic", "anthropic/glm-4.6", None, "anthropic"),
        ("bedrock", "bedrock/eu.anthropic.claude-opus-4-6-v1", None, "bedrock"),
        ("bedrock", "bedrock/eu-west-1/anthropic.claude-opus-4-6-v1", None, "bedrock"),
        ("bedrock", "bedrock/invoke/us-gov-west-1/anthropic.claude-opus-4-6-v1", None, "bedrock"),
        ("bedrock", "bedrock/somewhere/anthropic.claude-opus-4-6-v1", None, None),
        ("bedrock", f"bedrock/invoke/{ARN}", "claude-opus-4-6", "bedrock"),
        ("bedrock", f"bedrock/{ARN}", "amazon.nova-pro-v1:0", None),
        ("bedrock", "bedrock/converse/anthropic.claude-opus-4-6-v1", None, None),
        ("vertex_ai", "vertex_ai/claude-opus-4-6", None, "vertex_ai"),
        ("vertex_ai", "vertex_ai/gemini-2.5-pro", None, None),
        ("azure_ai", "azure_ai/claude-opus-4-6", None, "azure_ai"),
        ("azure_ai", "azure_ai/mistral-large", "claude-opus-4-6", None),
        ("openai", "openai/claude-opus-4-6", None, None),
    ],
)
async def test_a_host_is_told_by_provider_and_model(
    provider_name: str, model: str, base_model: str | None, host: str | None
) -> None:
    assert claude_host(provider_name, model, base_model) == host


async def test_another_litellm_than_the_reviewed_one_translates(monkeypatch: pytest.MonkeyPatch) -> None:
    litellm = importlib.import_module("litellm")
    call, elsewhere = Call(OPUS, []), ProviderNames(OPUS.removeprefix("bedrock/"), "bedrock")
    assert ClaudeHosts(litellm, AwsEnvironment()).host_of(call, elsewhere) == "bedrock"
    monkeypatch.setattr("gateway.providers.claude_hosts.VERIFIED_LITELLM", "0.0.0")
    assert ClaudeHosts(litellm, AwsEnvironment()).host_of(call, elsewhere) is None
    assert (
        ClaudeHosts(litellm, AwsEnvironment()).host_of(call, ProviderNames("claude-opus-4-6", "anthropic"))
        == "anthropic"
    )


def failing(status: int, body: Any, *headers: str) -> bytes:
    made = raw_answer(json.dumps(body).encode(), "application/json", *headers)
    return made.replace(b"200 OK", b"%d X" % status, 1)


def of_google(code: int, status: str, message: str = "m") -> Any:
    return [{"error": {"code": code, "status": status, "message": message}}]


@pytest.mark.parametrize(
    ("model", "status", "body", "fault", "code"),
    [
        (OPUS, 429, {"message": "Too many requests, please wait."}, ThrottledFault, ""),
        (OPUS, 400, {"message": "messages.0: bad"}, RejectedFault, ""),
        (OPUS, 400, {"message": "Input is too long for requested model."}, RejectedFault, "context_length_exceeded"),
        (OPUS, 403, {"message": "no access"}, CredentialFault, ""),
        (OPUS, 404, {"message": "Could not resolve"}, RejectedFault, ""),
        (OPUS, 503, {"message": "busy"}, FailedFault, ""),
        ("vertex_ai/claude-opus-4-6", 429, of_google(429, "RESOURCE_EXHAUSTED"), ThrottledFault, ""),
        ("vertex_ai/claude-opus-4-6", 400, of_google(400, "INVALID_ARGUMENT"), RejectedFault, ""),
        ("vertex_ai/claude-opus-4-6", 400, {"type": "error", "error": {
            "type": "invalid_request_error", "message": "prompt is too long: 250000 tokens > 200000 maximum"}},
         RejectedFault, "context_length_exceeded"),
        ("vertex_ai/claude-opus-4-6", 403, of_google(403, "PERMISSION_DENIED"), CredentialFault, ""),
        ("azure_ai/claude-opus-4-6", 401, {"error": {"code": "401", "message": "Access denied"}}, CredentialFault, ""),
        ("azure_ai/claude-opus-4-6", 529, {"type": "error", "error": {"type": "overloaded_error", "message": "o"}},
         FailedFault, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_a_host_keeps_its_meaning(
    upstream: Upstream, provider: DialectProvider, model: str, status: int, body: Any, fault: type[UpstreamFault],
    code: str, stream: bool,
) -> None:  # fmt: skip
    google = {
        "vertex_project": "p", "vertex_location": "us-east5", "vertex_credentials": google_account(provider)
    }  # fmt: skip
    more: dict[str, Any] = {"api_key": "k"} if model.startswith("azure") else {}
    more |= {"options": google} if model.startswith("vertex") else {}
    async with CannedProvider(failing(status, body)) as canned:
        asked = asking(upstream, model, canned.address, stream=stream, **more)
        with pytest.raises(fault) as caught:
            await (upstream.open_stream if stream else upstream.complete)(asked)
    assert (type(caught.value), caught.value.status, caught.value.code) == (fault, status, code)


async def test_amazon_s_header_names_the_error(upstream: Upstream) -> None:
    """A quota that is used up has the status of a wrong request, and no name in its body."""
    for name, fault, code in (
        ("ServiceQuotaExceededException:http://internal.amazon.com/", CredentialFault, "insufficient_quota"),
        ("ValidationException", RejectedFault, ""),
    ):
        refusal = failing(400, {"message": "Your request exceeds what is allowed."}, f"x-amzn-errortype: {name}")
        async with CannedProvider(refusal) as canned:
            with pytest.raises(fault) as caught:
                await upstream.complete(asking(upstream, OPUS, canned.address))
        assert (caught.value.reported.type, caught.value.code) == (name.partition(":")[0], code)


class Pieces:
    """A body that arrives in pieces."""

    begun = True

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece

    async def aclose(self) -> None:
        """Nothing is open."""


async def streamed(upstream: Upstream, frames: bytes, *, whole: bool = True) -> tuple[str, Any, UpstreamFault | None]:
    """The text, the usage and the fault of a stream of Amazon's frames."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {FRAMES}\r\ntransfer-encoding: chunked\r\n\r\n{len(frames):x}\r\n"
    body = head.encode() + frames + b"\r\n" + (b"0\r\n\r\n" if whole else b"")
    text, stream = "", None
    async with CannedProvider(body) as canned:
        try:
            stream = await upstream.open_stream(asking(upstream, OPUS, canned.address, stream=True))
            async for chunk in stream:
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        except UpstreamFault as fault:
            return text, fault.usage if stream is None else stream.usage, fault
        finally:
            if stream is not None:
                await stream.aclose()
    return text, stream.usage, None


BEGUN = [CLAUDE_START, *CLAUDE_TEXT]


async def test_a_stream_of_frames_that_ends_is_billed_as_reported(upstream: Upstream) -> None:
    text, usage, fault = await streamed(upstream, invoked([*BEGUN, *CLAUDE_END])[1])
    assert (text, usage.output_tokens, fault) == ("Hello", 7, None)


async def test_what_bedrock_counts_in_headers_is_the_usage_of_an_answer_without_any(upstream: Upstream) -> None:
    said = json.dumps({name: value for name, value in CLAUDE_ANSWER.items() if name != "usage"}).encode()
    counts = "x-amzn-bedrock-input-token-count: 12", "x-amzn-bedrock-output-token-count: 34"
    async with CannedProvider(raw_answer(said, "application/json", *counts)) as canned:
        reply = await upstream.complete(asking(upstream, OPUS, canned.address))
    assert reply.usage == Usage(12, 34)


async def test_what_bedrock_counts_behind_the_answer_is_what_its_events_left_out(upstream: Upstream) -> None:
    uncounted = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    metrics = {"inputTokenCount": 999, "outputTokenCount": 70, "cacheReadInputTokenCount": 5_000}
    stop = {"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics}
    started = {"type": "message_start", "message": CLAUDE_ANSWER | {"content": [], "usage": {"input_tokens": 100}}}
    frames = invoked([started, *CLAUDE_TEXT, CLAUDE_END[0], uncounted, stop])[1]
    _, usage, fault = await streamed(upstream, frames)
    assert (usage, fault) == (Usage(5_100, 70, cached_tokens=5_000), None)
    _, usage, _ = await streamed(upstream, invoked([*BEGUN, *CLAUDE_END[:2], stop])[1])
    assert usage.output_tokens == 7


UNREADABLE = {
    "unknown header": frame({}, b"{}", kind=77), "no length": frame({}, b"", length=0),
    "length of the prelude": frame({}, b"", length=12), "length of gigabytes": frame({}, b"", length=2**32 - 1),
    "no JSON": frame({}, b"{"), "no base64": frame({}, b'{"bytes": "a"}'), "nesting": frame({}, b"[" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("stop", ["cut", "ended", "half a frame", "broken frame", "exception", *UNREADABLE])
async def test_a_stream_of_frames_that_breaks_is_billed_as_reported_so_far(upstream: Upstream, stop: str) -> None:
    frames = invoked(BEGUN)[1]
    if stop == "half a frame":
        frames += frames[:60]
    elif stop == "broken frame":
        frames += frames[:40] + bytes([frames[40] ^ 1]) + frames[41:]
    elif stop in UNREADABLE:
        frames += UNREADABLE[stop] + invoked([*CLAUDE_END])[1]
    elif stop == "exception":
        frames += thrown("throttlingException", "Too many requests")
    text, usage, fault = await streamed(upstream, frames, whole=stop != "cut")
    started = CLAUDE_START["message"]["usage"]
    assert isinstance(usage, PartialUsage)
    assert usage.known.prompt_tokens == started["input_tokens"] + started["cache_read_input_tokens"] + started.get(
        "cache_creation_input_tokens", 0
    )
    assert (text, type(fault)) == ("Hello", BrokenMidAnswer if stop == "exception" else BrokenFault)
    assert fault is not None
    assert (fault.dispatched, fault.retryable) == (True, False)
    assert http_status(fault.answer()) == (429 if stop == "exception" else 502)


@pytest.mark.parametrize("name", UNREADABLE)
async def test_an_unreadable_frame_before_the_answer_is_a_broken_answer(upstream: Upstream, name: str) -> None:
    text, _, fault = await streamed(upstream, UNREADABLE[name] + invoked([*BEGUN, *CLAUDE_END])[1])
    assert (text, type(fault), str(fault)) == ("", BrokenFault, "the connection to the provider broke off")


async def test_a_large_frame_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, given = amazon_frames._parts, []

    def counted(frame: bytes) -> amazon_frames.Frame:
        given.append(len(frame))
        return parts(frame)

    monkeypatch.setattr(amazon_frames, "_parts", counted)
    events = [{"type": "ping"}, {"type": "text", "text": "x" * 2**20}, {"type": "ping"}]
    frames = invoked(events)[1]
    sent = [frames[at : at + 1_000] for at in range(0, len(frames), 1_000)]
    made = b"".join([piece async for piece in unframed(Pieces(sent))])
    assert [json.loads(line.removeprefix(b"data: ")) for line in made.split(b"\n\n")[:-1]] == events
    assert given == [len(invoked([event])[1]) for event in events]


@pytest.mark.parametrize(
    ("kind", "message", "fault", "status"),
    [
        ("throttlingException", "Too many requests", ThrottledFault, 429),
        ("validationException", "messages.0: bad", RejectedFault, 400),
        ("modelTimeoutException", "x", TimeoutFault, 504),
        ("internalServerException", "x", FailedFault, 502),
    ],
)
async def test_an_exception_before_the_answer_means_what_its_status_would(
    upstream: Upstream, kind: str, message: str, fault: type[UpstreamFault], status: int
) -> None:
    _, _, seen = await streamed(upstream, thrown(kind, message))
    assert (type(seen), seen and seen.status) == (fault, status)
