"""The import of LiteLLM.

It leaves out what this process must not do: fetch, log, send telemetry, compute prices.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from gateway.dialects.repair import finishes_in_openai_s_words
from gateway.providers.litellm_clients import CurrentHandler, handler_cache
from gateway.providers.litellm_readers import (
    ignore_usage,
    keep_service_tiers,
    read_gemini_events,
    read_whole_answers,
    read_whole_blocks,
)
from gateway.providers.litellm_writers import keep_pictures

LITELLM_ENVIRONMENT: Mapping[str, str] = {
    # Nothing is fetched at import, and no .env file of the working directory is read.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_MODE": "PRODUCTION",
    "HF_HUB_OFFLINE": "1",
    # Images go to the provider by reference or not at all.
    "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0",
    # Repetitive output is for the client to handle.
    "REPEATED_STREAMING_CHUNK_LIMIT": "1000000000",
}
_MCP_GATEWAY = "litellm.responses.mcp.litellm_proxy_mcp_handler"


def _without_null(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value is not None or name == "content"}


class _WithoutMcp(ModuleType):
    """LiteLLM's module of MCP servers, which no call here has (gateway.dialects.arguments)."""

    class LiteLLM_Proxy_MCP_Handler:
        """Says of every call that it has none."""

        @staticmethod
        def should_use_litellm_mcp_gateway(tools: object) -> bool:
            """False: the tools are sent as they are."""
            return False


_PARSERS = (
    ("llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini", "ModelResponseIterator", "chunk_parser"),
    ("llms.openai.chat.gpt_transformation", "OpenAIChatCompletionStreamingHandler", "chunk_parser"),
    ("llms.mistral.chat.transformation", "MistralChatResponseIterator", "chunk_parser"),
    ("llms.databricks.chat.transformation", "DatabricksChatResponseIterator", "chunk_parser"),
    ("llms.bedrock.chat.invoke_handler", "AWSEventStreamDecoder", "converse_chunk_parser"),
    ("completion_extras.litellm_responses_transformation.transformation",
     "OpenAiResponsesToChatCompletionStreamIterator", "chunk_parser"),
)  # fmt: skip
"""LiteLLM's parsers of streams that fail on a usage in an odd form."""


def import_litellm() -> Any:
    """Import LiteLLM (takes seconds), without its logging and telemetry."""
    for name, value in LITELLM_ENVIRONMENT.items():
        os.environ[name] = value
    # Its bridge from chat to /v1/responses (gpt-5-codex, o3-pro) would import the MCP package, which is not installed.
    sys.modules.setdefault(_MCP_GATEWAY, _WithoutMcp(_MCP_GATEWAY))
    with warnings.catch_warnings():
        # LiteLLM warns when it builds its own types: do it here instead of during the first call.
        warnings.simplefilter("ignore")
        litellm: Any = importlib.import_module("litellm")
        for answer in (litellm.ModelResponse, litellm.types.utils.ModelResponseStream):
            answer().model_dump()
    # It puts its own usage into an event of OpenAI's SDK, which would write a line for it.
    warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
    # Its types of Ollama's answers are built when the first call needs them.
    warnings.filterwarnings("ignore", "Items? .* on TypedDict class", UserWarning)
    # It takes words that it does not know for `stop`, and errors too.
    finishes: Any = importlib.import_module("litellm.litellm_core_utils.core_helpers")
    finishes._FINISH_REASON_MAP |= finishes_in_openai_s_words()
    read_whole_blocks(importlib.import_module("litellm.llms.anthropic.chat.handler").ModelResponseIterator)
    keep_service_tiers(importlib.import_module("litellm.llms.groq.chat.transformation").GroqChatConfig)
    read_whole_answers(importlib.import_module("litellm.llms.anthropic.chat.transformation").AnthropicConfig)
    google: Any = importlib.import_module("litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini")
    read_gemini_events(google.ModelResponseIterator)
    for module, parser, method in _PARSERS:
        ignore_usage(getattr(importlib.import_module(f"litellm.{module}"), parser), method)
    keep_pictures()
    litellm.in_memory_llm_clients_cache = handler_cache()
    litellm.module_level_aclient = CurrentHandler("waiting")
    litellm.module_level_client = CurrentHandler("blocking")
    # The ledger computes costs. LiteLLM's own computation takes a quarter of its time and is not used.
    importlib.import_module("litellm.litellm_core_utils.litellm_logging").Logging.response_cost_calculator = (
        lambda *_, **__: None
    )
    # With tool calls or reasoning the content may be null, and some servers require the field.
    messages: Any = importlib.import_module("litellm.utils")
    messages.cleanup_none_field_in_message = _without_null
    litellm.disable_hf_tokenizer_download = True
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.drop_params = False
    litellm.disable_stop_sequence_limit = True  # it would send the first four of them to every provider
    litellm.num_retries = 0
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # Its messages repeat provider responses, which may contain keys.
        logging.getLogger(name).disabled = True
    for name in ("httpx", "openai", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    importlib.import_module("openai")
    return litellm
