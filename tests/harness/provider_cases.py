"""Every provider of the pinned LiteLLM: how a deployment of it is written, or why it cannot be called in a chat.

`tests/gateway/providers/test_every_provider.py` calls each one, whole and streamed, through real LiteLLM; the table in
docs/providers.md is made of this list (`python -m tests.harness.provider_cases` writes it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.providers.call import Call
from gateway.providers.direct import PLAIN_PROVIDERS
from gateway.providers.litellm_clients import WHOLE_ONLY
from gateway.providers.providers import Upstream
from tests.harness.dialects import DialectProvider

DOCS = Path(__file__).parents[2] / "docs" / "providers.md"
BEGIN, END = "<!-- every provider: begin -->", "<!-- every provider: end -->"

AWS = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "secret", "aws_region_name": "us-east-1"}


@dataclass(frozen=True, slots=True)
class Case:
    """How to call one provider at a local server. `usage`: whether its answers say what they cost (whole, streamed)."""

    model: str = "testmodel"
    base: str | None = "/v1"
    options: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    key: str = "sk-test"
    usage: tuple[bool, bool] = (True, True)
    picture: bool = False
    needs: str = ""
    """What a deployment needs beside `model` and `api_key`, in the words of the documentation."""


@cache
def private_key() -> str:
    """An RSA key that opens nothing: some providers sign their requests."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def google_account(provider: DialectProvider) -> str:
    return json.dumps(
        {
            "type": "service_account", "project_id": "p", "private_key_id": "k", "private_key": private_key(),
            "client_email": "a@p.iam.gserviceaccount.com", "client_id": "1",
            "token_uri": f"{provider.sign_in}/token",
        }
    )  # fmt: skip


_VERTEX = {"vertex_project": "p", "vertex_location": "us-central1", "vertex_credentials": "{google}"}
_OCI = {
    "oci_user": "ocid1.user", "oci_fingerprint": "aa:bb", "oci_tenancy": "ocid1.tenancy", "oci_region": "us-ashburn-1",
    "oci_compartment_id": "ocid1.compartment", "oci_key": "{key}",
}  # fmt: skip
_IBM = {"WATSONX_IAM_URL": "{sign_in}/token"}
_SAP = {
    "AICORE_AUTH_URL": "{sign_in}/token", "AICORE_CLIENT_ID": "c", "AICORE_CLIENT_SECRET": "s",
    "AICORE_BASE_URL": "{address}", "AICORE_RESOURCE_GROUP": "default",
}  # fmt: skip

_OPENAI_ALIKE = """
    ai21 ai21_chat aiml aiohttp_openai amazon_nova apertis azure_ai baseten bedrock_mantle cerebras
    charity_engine chutes cognition cometapi compactifai cortecs darkbloom dashscope databricks deepinfra
    deepseek docker_model_runner edenai empower featherless_ai fireworks_ai friendliai galadriel github groq
    helicone hosted_vllm hyperbolic inception lambda_ai libertai litellm_proxy llamafile lm_studio maritalk meta
    meta_llama minimax mistral modelscope moonshot morph nadir nano-gpt nebius neosantara novita nscale
    nvidia_nim openai openai_like openrouter ovhcloud parasail perplexity pinstripes poe prism publicai
    qwen_ai_platform qwencloud reka sail sambanova scaleway scx-ai synthetic tencent tensormesh together_ai v0
    vercel_ai_gateway volcengine wandb xai xiaomi_mimo xinference zai custom_openai codestral assemblyai
    """.split()

CASES: dict[str, Case] = {
    **{name: Case() for name in _OPENAI_ALIKE},
    "a2a": Case(base="/agent", usage=(False, False), needs="`api_base` of the agent"),
    "anthropic": Case(base=""),
    "anthropic_text": Case(model="claude-2", base="", usage=(False, False)),
    "azure": Case(base="", options={"api_version": "2024-10-21"}, needs="`api_base`, `api_version`"),
    "azure_text": Case(base="", options={"api_version": "2024-10-21"}, needs="`api_base`, `api_version`"),
    "bedrock": Case(model="anthropic.claude-3-haiku-20240307-v1:0", base="", options=AWS, needs="`aws_...`"),
    "bytez": Case(base=None, usage=(False, False)),
    "clarifai": Case(model="user.app.model"),
    "cloudflare": Case(base="/ai/run/", needs="`api_base` with the account's id"),
    "cohere": Case(base="/cohere/v2/chat"),
    "cohere_chat": Case(base="/cohere/v2/chat"),
    "custom": Case(base="/custom", usage=(False, False), needs="`api_base`"),
    "datarobot": Case(base=""),
    "fal_ai": Case(base="/fal", picture=True),
    "gdc": Case(base="", options=_VERTEX, needs="`api_base`, `vertex_...`"),
    "gemini": Case(base="/v1beta"),
    "gigachat": Case(base="", environment={"GIGACHAT_AUTH_URL": "{sign_in}/token"}),
    "gradient_ai": Case(base=""),
    "heroku": Case(base="", needs="`api_base`"),
    "huggingface": Case(base=""),
    "langflow": Case(base="", usage=(False, False), needs="`api_base`; the model is the flow's id"),
    "langgraph": Case(base="", usage=(False, False), needs="`api_base`; the model is the agent's id"),
    "lemonade": Case(base="/v1"),
    "nlp_cloud": Case(base="/", usage=(False, False)),
    "oci": Case(model="meta.llama-3.3-70b-instruct", base="", options=_OCI, usage=(True, True), needs="`oci_...`"),
    "ollama": Case(base=""),
    "ollama_chat": Case(base=""),
    "oobabooga": Case(base="", needs="`api_base`"),
    "petals": Case(base="/petals", usage=(False, False), needs="`api_base`"),
    "predibase": Case(base="", options={"predibase_tenant_id": "t"}, needs="`predibase_tenant_id`"),
    "ragflow": Case(model="chat/id/model", base="", needs="`api_base`"),
    "replicate": Case(model="meta/meta-llama-3-8b-instruct", base=None, usage=(False, False)),
    "sagemaker": Case(base="/endpoints/e/invocations", options=AWS, usage=(False, False), needs="`aws_...`"),
    "sagemaker_chat": Case(base="/endpoints/e/invocations", options=AWS, needs="`aws_...`"),
    "sagemaker_nova": Case(base="/endpoints/e/invocations", options=AWS, needs="`aws_...`"),
    "sap": Case(
        model="gpt-4o",
        base=None,
        environment=_SAP,
        key="",
        needs="`AICORE_...` in the environment",
    ),
    "snowflake": Case(base="", needs="`api_base` of the account"),
    "text-completion-codestral": Case(model="codestral-2405", base="/mistral-fim/fim/completions"),
    "text-completion-inception": Case(),
    "text-completion-openai": Case(),
    "triton": Case(base="/generate", usage=(False, False), needs="`api_base` that ends in `/generate`"),
    "vertex_ai": Case(model="gemini-2.5-pro", base=None, options=_VERTEX, needs="`vertex_...`"),
    "vertex_ai_beta": Case(model="gemini-2.5-pro", base=None, options=_VERTEX, needs="`vertex_...`"),
    "watsonx": Case(base="", options={"project_id": "p"}, environment=_IBM, needs="`api_base`, `project_id`"),
    "watsonx_text": Case(base="", options={"project_id": "p"}, environment=_IBM, needs="`api_base`, `project_id`"),
}

ROUTES: dict[str, Case] = {
    "azure/o3-mini": Case(base="", options={"api_version": "2024-12-01-preview"}),
    "azure_ai/claude-sonnet-4-5": Case(base=""),
    "bedrock/converse/us.anthropic.claude-sonnet-4-5-20250929-v1:0": Case(base="", options=AWS),
    "bedrock/invoke/anthropic.claude-3-haiku-20240307-v1:0": Case(base="", options=AWS),
    "bedrock/us.amazon.nova-pro-v1:0": Case(base="", options=AWS),
    "vertex_ai/claude-sonnet-4-5": Case(base=None, options=_VERTEX),
    "vertex_ai/meta/llama-4-scout-17b-16e-instruct-maas": Case(base=None, options=_VERTEX),
    "vertex_ai/mistral-large-2411": Case(base=None, options=_VERTEX),
}
"""Models whose provider is reached by another way than its other models."""

_WITHOUT_CHAT = """
    a2a_agent auto_router aws_polly aws_textract azure_speech black_forest_labs cursor deepgram dotprompt elevenlabs
    humanloop infinity jina_ai langfuse litellm_agent manus milvus mongodb nvidia_riva pg_vector recraft reducto
    runwayml s3_vectors soniox stability strands_decider topaz transcribe typesafe valkey voyage
    """.split()

NO_CHAT = "LiteLLM has no chat for it"
IMPOSSIBLE: Mapping[str, str] = {
    **dict.fromkeys(_WITHOUT_CHAT, NO_CHAT),
    "chatgpt": "a person has to sign in at a browser for it",
    "github_copilot": "a person has to sign in at a browser for it",
    "vllm": "it runs the model inside this process; `hosted_vllm` calls a vLLM server",
}


def call_of(name: str, provider: DialectProvider, *, stream: bool, **more: Any) -> Call:
    """A call of the provider at the fake one."""
    case = CASES[name] if name in CASES else ROUTES[name]
    known: dict[str, Callable[[DialectProvider], str]] = {"google": google_account, "key": lambda _: private_key()}
    options = {
        key: known[value.strip("{}")](provider) if value.startswith("{") else value
        for key, value in case.options.items()
    }
    content: Any = "hi"
    if case.picture:
        url = {"url": "data:image/png;base64,iVBORw0KGgo="}
        content = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": url}]
    arguments: dict[str, Any] = {
        "litellm_model": f"{name}/{case.model}" if name in CASES else name,
        "messages": [{"role": "user", "content": content}],
        "api_base": None if case.base is None else provider.address + case.base,
        "api_key": case.key or None,
        "max_tokens": 50,
        "stream": stream,
        "timeout_s": 20.0,
        "stream_timeout_s": 20.0,
        "drop_params": True,
        "options": options,
    }
    return Call(**arguments | more)


def environment_of(name: str, provider: DialectProvider) -> dict[str, str]:
    """What has to stand in the environment for a call of the provider."""
    places = {"sign_in": provider.sign_in, "address": provider.address}
    return {key: value.format(**places) for key, value in (CASES | ROUTES)[name].environment.items()}


class RedirectedUpstream(Upstream):
    """An upstream whose calls all end at the fake provider, also those of code that knows one address only."""

    def __init__(self, provider: DialectProvider) -> None:
        super().__init__()
        self._fake = provider

    async def start(self) -> None:
        await super().start()
        assert self._clients is not None
        transport: Any = self._clients.litellm._http
        bounded = transport._transport
        bounded._inner = _ToFake(bounded._inner, self._fake)


class _ToFake(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, provider: DialectProvider) -> None:
        self._inner = inner
        self._provider = provider

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = httpx.URL(self._provider.address)
        if request.url.host not in ("127.0.0.1", "localhost"):
            request.headers["x-asked-of"] = f"{request.url.scheme}://{request.url.host}"
            request.url = request.url.copy_with(scheme="http", host=asked.host, port=asked.port)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def table() -> str:
    """The section of docs/providers.md that is made of this list."""
    plain = {name for name, case in CASES.items() if not case.needs and case.usage == (True, True)}
    direct, whole = set(PLAIN_PROVIDERS), WHOLE_ONLY
    rows = [("direct", "", "reported", sorted(direct))]
    rows += [("LiteLLM", "", "reported", sorted(plain - direct - whole))]
    rows += [("LiteLLM, streams made of whole answers", "", "reported", sorted((plain & whole) - direct))]
    for name in sorted(CASES.keys() - plain):
        case = CASES[name]
        way = "LiteLLM, streams made of whole answers" if name in whole else "LiteLLM"
        usage = {(True, True): "reported", (True, False): "of streams: estimated"}.get(case.usage, "estimated")
        rows.append((way, case.needs, usage, [name]))
    for why in dict.fromkeys(IMPOSSIBLE.values()):
        rows.append((f"not here: {why}", "", "", sorted(name for name, said in IMPOSSIBLE.items() if said == why)))
    lines = ["| providers | way | needs beside `model` and `api_key` | usage |", "|---|---|---|---|"]
    lines += [
        f"| {', '.join(f'`{name}`' for name in names)} | {way} | {needs} | {usage} |"
        for way, needs, usage, names in rows
    ]
    return "\n".join(lines)


def written(page: str) -> str:
    """`page` with the table of today between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text()))
