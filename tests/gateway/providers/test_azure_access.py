"""Azure by a token: no placeholder for a key goes out, whatever code of LiteLLM's makes the call."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from typing import Any

import pytest

from gateway.providers import azure_access
from gateway.providers.call import Call
from gateway.providers.errors import CredentialFault, FailedFault
from gateway.providers.exchange import KEY_HEADERS
from gateway.providers.providers import Upstream
from tests.harness.dialects import Asked, DialectProvider, Spoken, as_json, spoken

MODELS = ("azure/gpt-4o", "azure_ai/mistral-large", "azure_ai/claude-sonnet-4-5", "azure_text/gpt-35-turbo")
PRINCIPAL = {"tenant_id": "t", "client_id": "c", "client_secret": "s"}
EXCHANGED = {"tenant_id": "t", "client_id": "c", "azure_ad_token": "oidc/env/OF_THE_POD"}
HELLO = ({"role": "user", "content": "hello"},)


def answered(asked: Asked) -> Spoken:
    if asked.path.endswith("/token"):
        return as_json({"access_token": "exchanged", "expires_in": 3600})
    return spoken(asked)


def keys_of(asked: Asked) -> dict[str, str]:
    return {name: value for name, value in asked.headers.items() if name in KEY_HEADERS}


async def asked_with(upstream: Upstream, model: str, address: str, options: dict[str, str], **more: Any) -> None:
    params: dict[str, Any] = {"messages": HELLO, "is_chat": True, "params": {}} | more
    call = Call(model, api_base=address, options=options | {"api_version": "2024-10-21"}, max_tokens=9, **params)
    await (upstream.complete if call.is_chat else upstream.embed)(upstream.outgoing(call))


@pytest.mark.parametrize("model", MODELS)
async def test_a_token_takes_the_place_of_every_key(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("OF_THE_POD", "signed")
    async with DialectProvider(answering=answered) as provider:
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", provider.sign_in)
        await asked_with(upstream, model, provider.address, {"azure_ad_token": "stated"})
        await asked_with(upstream, model, provider.address, EXCHANGED)
        await asked_with(upstream, model, provider.address, EXCHANGED)  # a token that is fresh is not fetched again
        calls = [asked for asked in provider.asked if not asked.path.endswith("/token")]
        assert len(provider.asked) <= len(calls) + 1
    assert [keys_of(asked) for asked in calls] == [
        {"authorization": f"Bearer {token}"} for token in ("stated", "exchanged", "exchanged")
    ]


async def test_vectors_come_by_token_too(upstream: Upstream) -> None:
    vectors = {
        "object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }  # fmt: skip
    asking: dict[str, Any] = {"messages": (), "is_chat": False, "params": {"input": ["hi"]}}
    async with DialectProvider(answering=lambda asked: as_json(vectors)) as provider:
        await asked_with(upstream, "azure/text-embedding-3-small", provider.address, {"azure_ad_token": "t"}, **asking)
    assert [keys_of(asked) for asked in provider.asked] == [{"authorization": "Bearer t"}]


async def test_a_service_principal_gets_its_token_and_a_key_needs_none(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    azure = importlib.import_module("litellm.llms.azure.common_utils")
    given: list[str] = []

    def provider_of(tenant_id: str, client_id: str, client_secret: str, scope: str) -> Any:
        given.extend((tenant_id, client_id, client_secret))
        return lambda: "fetched"

    monkeypatch.setattr(azure, "get_azure_ad_token_from_entra_id", provider_of)
    own: dict[str, Any] = {"extra_headers": {"Authorization": "Bearer own"}}
    async with DialectProvider() as provider:
        await asked_with(upstream, "azure_ai/claude-sonnet-4-5", provider.address, PRINCIPAL)
        await asked_with(upstream, "azure_ai/claude-sonnet-4-5", provider.address, PRINCIPAL, api_key="k")
        await asked_with(upstream, "azure/gpt-4o", provider.address, PRINCIPAL, **own)
    assert given == ["t", "c", "s"]
    fetched, keyed, stated = map(keys_of, provider.asked)
    assert (fetched, keyed) == ({"authorization": "Bearer fetched"}, {"x-api-key": "k", "api-key": "k"})
    assert stated["authorization"] == "Bearer own"


async def test_a_password_signs_in_once_for_many_turns_and_again_after_a_while(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    azure = importlib.import_module("litellm.llms.azure.common_utils")
    signed_in: list[str] = []

    def sign_in(*_: Any, **__: Any) -> Any:
        signed_in.append("x")
        return lambda: f"fetched-{len(signed_in)}"

    monkeypatch.setattr(azure, "get_azure_ad_token_from_username_password", sign_in)
    user = {"azure_username": "u", "azure_password": "p", "client_id": "c"}
    async with DialectProvider() as provider:
        for _ in range(3):
            await asked_with(upstream, "azure/gpt-4o", provider.address, user)
        monkeypatch.setattr(azure_access, "TOKEN_KEPT_S", 0.0)
        await asked_with(upstream, "azure/gpt-4o", provider.address, user | {"client_id": "d"})
        await asyncio.sleep(0.01)
        await asked_with(upstream, "azure/gpt-4o", provider.address, user | {"client_id": "d"})
    tokens = [keys_of(asked)["authorization"].removeprefix("Bearer fetched-") for asked in provider.asked]
    assert tokens == ["1", "1", "1", "2", "3"]


async def test_without_a_token_nothing_is_sent_and_the_log_says_why(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hung, fetches = threading.Event(), []

    def hanging(*_: Any, **__: Any) -> Any:
        fetches.append(1)
        return lambda: str(hung.wait(30))

    async with DialectProvider() as provider:
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", "http://127.0.0.1:1")
        monkeypatch.setenv("OF_THE_POD", "another")
        with pytest.raises(CredentialFault, match="expected an api_key, an azure_ad_token"):
            await asked_with(upstream, "azure/gpt-4o", provider.address, EXCHANGED)
        monkeypatch.setitem(sys.modules, "azure.identity", None)
        with pytest.raises(FailedFault, match="needs a Python package"):
            await asked_with(upstream, "azure/gpt-4o", provider.address, PRINCIPAL)
        azure = importlib.import_module("litellm.llms.azure.common_utils")
        monkeypatch.setattr(azure, "get_azure_ad_token_from_entra_id", hanging)
        monkeypatch.setattr(azure_access, "TOKEN_WAIT_S", 0.05)
        waiting = [asked_with(upstream, "azure/gpt-4o", provider.address, PRINCIPAL) for _ in range(3)]
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in refused] == [CredentialFault] * 3
        assert len(fetches) == 1  # a thread that hangs cannot be stopped
        hung.set()
        assert provider.asked == []
    assert "azure-identity" in caplog.text
    assert "another" not in caplog.text
