"""Makes LiteLLM's writers of requests keep what was asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

_JOIN = "handle_messages_with_content_list_to_str_conversion"
_JOINING = (
    "docker_model_runner.chat.transformation",
    "heroku.chat.transformation",
    "openai_like.dynamic_config",
    "sambanova.chat",
)
"""Modules of providers in OpenAI's form that keep only the texts of a message with pictures."""


def keep_pictures() -> None:
    """Let LiteLLM join the parts of messages that are all text, and no others."""
    for name in _JOINING:
        module: Any = importlib.import_module(f"litellm.llms.{name}")
        setattr(module, _JOIN, _joined)


def _joined(messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    common: Any = importlib.import_module("litellm.litellm_core_utils.prompt_templates.common_utils")
    getattr(common, _JOIN)([message for message in messages if _is_text(message.get("content"))])
    return messages


def _is_text(content: object) -> bool:
    return not isinstance(content, list) or all(part.get("type") == "text" for part in content)
