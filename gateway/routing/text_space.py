"""The text space of the configuration: `policy_settings.text`."""

from __future__ import annotations

from gateway.config.reader import SettingsError
from gateway.config.settings import TextSettings
from policy.text import HASHED, TextSpace
from policy.text_models import TextUnavailable, onnx_space, static_space


def text_space(settings: TextSettings) -> TextSpace:
    """Open the configured space.

    Raises SettingsError, naming the key, when an extra or a file is missing or does not fit.
    """
    try:
        if settings.kind == "static":
            return static_space()
        if settings.model is not None and settings.tokenizer is not None:
            return onnx_space(settings.model, settings.tokenizer)
    except TextUnavailable as error:
        key = f"text_{error.part}" if error.part else "text"
        raise SettingsError((f"policy_settings.{key}: {error}",)) from error
    return HASHED
