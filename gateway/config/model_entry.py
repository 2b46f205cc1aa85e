"""One entry of `model_list`: a deployment's address, access data, prices and properties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from gateway.config.prices import PriceChange
from gateway.config.values import Secret

LANES = ("auto", "thin", "litellm")
"""`auto`: the thin lane where equivalent; `litellm`: never; `thin`: refuse calls it cannot carry."""
MODES = ("chat", "completion", "responses", "embedding", "moderation")
EFFORTS = ("low", "medium", "high")
"""Efforts of reasoning that a policy may choose, ascending."""
WITHOUT_OUTPUT = ("embedding", "moderation")
"""Modes whose models generate no tokens."""

CAPABILITY_KEYS: Mapping[str, str] = {
    "supports_function_calling": "tools",
    "supports_parallel_function_calling": "parallel_tools",
    "supports_vision": "vision",
    "supports_response_schema": "response_schema",
    "supports_audio_input": "audio",
    "supports_audio_output": "audio_output",
    "supports_pdf_input": "pdf",
    "supports_video_input": "video",
    "supports_reasoning": "reasoning",
    "supports_prompt_caching": "prompt_caching",
    "supports_task_budget": "task_budget",
    "supports_web_search": "web_search",
    "supports_provider_files": "provider_files",
    "supports_custom_tools": "custom_tools",
}
"""LiteLLM's flag -> the capability's name in the catalogue."""

PROVIDER_PARAMS = (
    "aws_access_key_id", "aws_bedrock_runtime_endpoint", "aws_external_id", "aws_profile_name", "aws_region_name",
    "aws_role_name", "aws_secret_access_key", "aws_session_name", "aws_session_token", "aws_sts_endpoint",
    "aws_web_identity_token", "azure_ad_token", "azure_password", "azure_scope", "azure_username", "client_id",
    "client_secret", "custom_llm_provider", "gigachat_access_token", "gigachat_auth_url", "gigachat_scope",
    "oci_compartment_id", "oci_fingerprint", "oci_key", "oci_key_file", "oci_region", "oci_tenancy", "oci_user",
    "predibase_tenant_id", "project_id", "region_name", "space_id", "tenant_id", "vertex_credentials",
    "vertex_location", "vertex_project", "watsonx_region_name",
)  # fmt: skip
"""Access data of cloud providers: passed to LiteLLM unchanged, all treated as secrets."""

UNORDERED = 10**6
"""The `order` of deployments that have none: after all others."""


@dataclass(frozen=True, slots=True)
class ModelParams:
    """The `litellm_params` of a deployment: address, access, limits; None means the default.

    `rpm` and `tpm` are the provider's limits per minute, `parallel` limits the calls at once; `weight` is the share
    within the group; a lower `order` is preferred. `provider_params` are further arguments for LiteLLM (AWS, Vertex,
    Azure). `request_defaults` are parameters for requests that omit them; `extra_body` in them is sent to the provider
    unchanged. `allowed_params` are sent although LiteLLM does not list them for the provider; `dropped_params` never
    are.
    """

    model: str
    api_base: str | None = None
    api_key: Secret | None = None
    api_version: str | None = None
    organization: str | None = None
    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    weight: float | None = None
    order: int = UNORDERED
    timeout_s: float | None = None
    stream_timeout_s: float | None = None
    extra_headers: Mapping[str, Secret] | None = None
    provider_params: Mapping[str, Secret] | None = None
    request_defaults: Mapping[str, Any] = field(default_factory=dict)
    allowed_params: frozenset[str] = frozenset()
    dropped_params: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The `model_info` of a model; `prices_usd` in USD per unit by LiteLLM's keys.

    `price_changes` ascend in time; each changes only the prices that it names.

    `capabilities` maps the catalogue's names ("tools", "vision", ...) to the stated value.
    """

    deployment_id: str | None
    mode: str | None
    base_model: str | None
    max_input_tokens: int | None
    max_output_tokens: int | None
    prices_usd: Mapping[str, Decimal]
    capabilities: Mapping[str, bool]
    quality_prior: float | None
    lane: str | None = None
    price_changes: tuple[PriceChange, ...] = ()
    cache_min_tokens: int | None = None
    cache_ttl_s: float | None = None
    """Shortest prefix and lifetime of the provider's prompt cache; None: learned from its reports."""
    efforts: Mapping[str, float | None] = field(default_factory=dict)
    """Efforts that the policy may choose, each with its prior of quality (None: derived from the model's)."""
    supported_endpoints: tuple[str, ...] | None = None
    """The routes of the provider; None: not stated."""
    access_groups: frozenset[str] = frozenset()
    """LiteLLM's names by which allow-lists mean several models."""
    prices_read: bool = True
    """False: a price of the file is wrong, and reported; `prices_usd` lacks it."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One element of `model_list`; `where` is its path, for messages."""

    where: str
    model_name: str
    params: ModelParams
    info: ModelInfo
