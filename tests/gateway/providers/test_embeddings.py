"""Embeddings of real LiteLLM calls: every provider's code is handed what it expects, and nothing is lost in silence."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.catalog.usage import Usage
from gateway.providers.call import Call, Outgoing
from gateway.providers.errors import CallRefused
from gateway.providers.providers import Upstream
from tests.harness.fixed_answers import CannedProvider, json_answer

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
]

VECTOR = [0.1, 0.2, 0.3]
OPENAI = {
    "object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": VECTOR}],
    "usage": {"prompt_tokens": 9, "total_tokens": 9},
}  # fmt: skip
COHERE = {
    "id": "x", "response_type": "embeddings_by_type", "embeddings": {"float": [VECTOR]}, "texts": ["hi"],
    "meta": {"billed_units": {"input_tokens": 9}},
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "cohere": COHERE,
    "cohere_chat": COHERE,
    "gemini": {"embeddings": [{"values": VECTOR}], "usageMetadata": {"promptTokenCount": 9}},
    "ollama": {"model": "m", "embeddings": [VECTOR], "prompt_eval_count": 9},
}


def outgoing(upstream: Upstream, provider: CannedProvider, model: str, **params: Any) -> Outgoing:
    given = {"input": ["hi"], "encoding_format": "float"} | params
    call = Call(model, (), api_base=provider.address, api_key="k", params=given, is_chat=False, drop_params=True)
    return upstream.outgoing(call)


@pytest.mark.parametrize(
    "provider",
    [
        "openai", "custom_openai", "azure_ai", "mistral", "together_ai", "fireworks_ai", "nvidia_nim", "nebius",
        "wandb", "xinference", "litellm_proxy", "hosted_vllm", "lm_studio", "llamafile", "openrouter",
        "vercel_ai_gateway",
        "voyage", "jina_ai", "deepinfra", "github", "baseten", "novita", "scaleway", "databricks", "dashscope",
        "volcengine", "sambanova", *OTHERS,
    ],
)  # fmt: skip
async def test_vectors_come_from_every_provider_that_has_them(upstream: Upstream, provider: str) -> None:
    async with CannedProvider(json_answer(OTHERS.get(provider, OPENAI))) as canned:
        reply = await upstream.embed(outgoing(upstream, canned, f"{provider}/m"))
    assert [entry["embedding"] for entry in reply.body["data"]] == [VECTOR]
    assert reply.usage == Usage(9, 0)


@pytest.mark.parametrize(
    ("provider", "given", "asked"),
    [
        ("perplexity", "/v1", "/v1/embeddings"), ("perplexity", "", "/v1/embeddings"),
        ("volcengine", "/api/v3", "/api/v3/embeddings"), ("volcengine", "/", "/api/v3/embeddings"),
        ("voyage", "/v1/", "/v1/embeddings"), ("databricks", "/serving-endpoints/", "/serving-endpoints/embeddings"),
        ("openai", "/v1/", "/v1/embeddings"),
    ],
)  # fmt: skip
async def test_the_address_is_that_of_the_provider_s_chats(
    upstream: Upstream, provider: str, given: str, asked: str
) -> None:
    async with CannedProvider(json_answer(OPENAI)) as canned:
        call = Call(f"{provider}/m", (), api_base=canned.address + given, api_key="k", params={"input": ["hi"]},
                    is_chat=False)  # fmt: skip
        await upstream.embed(upstream.outgoing(call))
    assert [path for path, _ in canned.received] == [asked]


async def test_perplexity_s_own_vectors_are_read_and_not_asked_for_in_openai_s_format(upstream: Upstream) -> None:
    coded = {**OPENAI, "data": [{"object": "embedding", "index": 0, "embedding": "f4EA"}]}  # 127, -127, 0 as bytes
    async with CannedProvider(json_answer(coded)) as canned:
        reply = await upstream.embed(outgoing(upstream, canned, "perplexity/pplx-embed-v1-4b", dimensions=3))
    assert reply.body["data"][0]["embedding"] == [1.0, -1.0, 0.0]
    assert [body for _, body in canned.received] == [{"model": "pplx-embed-v1-4b", "input": ["hi"], "dimensions": 3}]


async def test_hugging_face_is_asked_for_vectors_without_a_look_up(upstream: Upstream) -> None:
    async with CannedProvider(json_answer([VECTOR])) as canned:
        reply = await upstream.embed(outgoing(upstream, canned, "huggingface/BAAI/bge"))
    assert [entry["embedding"] for entry in reply.body["data"]] == [VECTOR]
    assert len(canned.received) == 1


async def test_a_length_of_vectors_is_sent(upstream: Upstream) -> None:
    async with CannedProvider(json_answer(OPENAI)) as canned:
        for model in ("openai/own", "together_ai/m", "jina_ai/m"):
            await upstream.embed(outgoing(upstream, canned, model, dimensions=3))
        await upstream.embed(outgoing(upstream, canned, "fireworks_ai/nomic-ai/nomic-embed-text-v1.5", dimensions=3))
    assert [body["dimensions"] for _, body in canned.received] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    "model",
    [
        "mistral/mistral-embed", "databricks/m", "snowflake/m", "lm_studio/m", "fireworks_ai/m", "sambanova/m",
        "volcengine/m",
    ],
)  # fmt: skip
async def test_a_length_of_vectors_that_would_not_be_sent_is_refused(upstream: Upstream, model: str) -> None:
    async with CannedProvider(json_answer(OPENAI)) as canned:
        with pytest.raises(CallRefused) as refused:
            outgoing(upstream, canned, model, dimensions=3)
    assert (refused.value.answer().status, refused.value.answer().param) == (400, "dimensions")


async def test_what_the_texts_are_for_is_told_to_providers_that_ask_and_else_named(upstream: Upstream) -> None:
    """NVIDIA's retrievers refuse a call without it; Cohere's model takes every text for a document."""
    async with CannedProvider(json_answer(OPENAI)) as canned:
        calls = [
            outgoing(upstream, canned, model, input_type="query", truncate="END")
            for model in ("nvidia_nim/nvidia/nv-embedqa-e5-v5", "voyage/voyage-3", "openai/own")
        ]
        for call in calls:
            await upstream.embed(call)
    assert [(body.get("input_type"), body.get("truncate")) for _, body in canned.received] == [
        ("query", "END"), ("query", None), (None, None),
    ]  # fmt: skip
    assert [call.left_out for call in calls] == [(), ("truncate",), ("input_type", "truncate")]
    async with CannedProvider(json_answer(COHERE)) as canned:
        await upstream.embed(outgoing(upstream, canned, "cohere/embed-v4.0", input_type="search_query"))
    assert [body["input_type"] for _, body in canned.received] == ["search_query"]


async def test_an_operator_s_length_and_purpose_of_vectors_are_those_of_requests_without(upstream: Upstream) -> None:
    async with CannedProvider(json_answer(OPENAI)) as canned:
        call = Call(
            "nvidia_nim/m", (), api_base=canned.address, api_key="k", params={"input": ["hi"], "input_type": "query"},
            is_chat=False, defaults={"input_type": "passage", "dimensions": 3},
        )  # fmt: skip
        await upstream.embed(upstream.outgoing(call))
    ((_, body),) = canned.received
    assert (body["input_type"], body["dimensions"]) == ("query", 3)


async def test_a_person_whom_the_provider_is_not_told_of_is_named_to_the_client(upstream: Upstream) -> None:
    async with CannedProvider(json_answer(OPENAI)) as canned:
        told, untold = (outgoing(upstream, canned, model, user="u") for model in ("openai/m", "voyage/m"))
        await upstream.embed(told)
        await upstream.embed(untold)
    assert [body.get("user") for _, body in canned.received] == ["u", None]
    assert (told.left_out, untold.left_out) == ((), ("user",))
