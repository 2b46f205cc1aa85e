"""What a provider says of its error, as far as it may be repeated: identifiers and numbers, never its sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.\[\]-]{0,63}")
_KEY_LIKE = re.compile(r"^(sk|pk|key|gsk|xai|AKIA|AIza|ya29)[-_.A-Za-z0-9]*\d", re.IGNORECASE)
_READ_BYTES = 64 * 1024

KNOWN_CODES: Mapping[str, str] = {
    **{
        name: name
        for name in (
            "context_length_exceeded", "content_filter", "insufficient_quota", "model_not_found", "rate_limit_exceeded",
            "unsupported_parameter", "unsupported_value", "unknown_parameter", "invalid_value", "invalid_type",
            "missing_required_parameter", "string_above_max_length", "array_above_max_length",
            "integer_above_max_value", "integer_below_min_value", "decimal_above_max_value",
            "decimal_below_min_value", "invalid_image_url", "invalid_image_format", "invalid_base64_image",
            "image_too_large", "image_parse_error", "invalid_json_schema", "invalid_function_parameters",
            "invalid_prompt", "tool_use_failed", "json_validate_failed",
        )
    },
    "context_window_exceeded": "context_length_exceeded",
    "model_context_window_exceeded": "context_length_exceeded",
    "string_too_long": "string_above_max_length",
    "content_policy_violation": "content_filter",
    "ResponsibleAIPolicyViolation": "content_filter",
    "data_inspection_failed": "content_filter",
    "billing_hard_limit_reached": "insufficient_quota",
    "insufficient_balance": "insufficient_quota",
    "insufficient_credits": "insufficient_quota",
    "DeploymentNotFound": "model_not_found",
    "model_not_exist": "model_not_found",
}  # fmt: skip
"""A provider's code -> the one that clients of OpenAI's API look for."""

# In the sentences of OpenAI and vLLM, Anthropic, Gemini, Mistral, llama.cpp.
_LIMIT = re.compile(
    r"maximum context length (?:is|of) ([\d,]+)|> ([\d,]+) maximum|with ([\d,]+) maximum context"
    r"|tokens allowed \(?([\d,]+)|context (?:size|length|window)[a-z ]{0,20}[:=(]? ?\(?([\d,]+)",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"(?:resulted in|requested|contains(?: at least)?|request has|too long:|token count|passed) \(?([\d,]+)",
    re.IGNORECASE,
)
_SAYS_OVERFLOW = re.compile(
    r"maximum context length|context[ _]length|context[ _]window|prompt is too long|input is too long|max_model_len"
    r"|too many (?:input )?tokens|input token count|available context size"
    r"|exceeds? the (?:maximum|max)(?: allowed)? (?:number of )?(?:input )?tokens",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Told:
    """A provider's error: its own names for it, ours where clients have one (`known`), and a window's two numbers."""

    type: str = ""
    code: str = ""
    param: str = ""
    known: str = ""
    limit_tokens: int | None = None
    asked_tokens: int | None = None

    @property
    def overflows(self) -> bool:
        """Whether the request was longer than the model reads."""
        return self.known == "context_length_exceeded"


NOTHING_TOLD = Told()


def told_in(body: bytes | bytearray) -> Told:
    """What an error's body says; nothing where it is no JSON of a known shape."""
    try:
        document = orjson.loads(bytes(body[:_READ_BYTES]))
    except orjson.JSONDecodeError:
        return NOTHING_TOLD
    return told_of(document)


def told_of(document: object) -> Told:
    """The same for a body, or an error event, that has been read already."""
    objects = list(_objects(document))
    if not objects:
        return NOTHING_TOLD
    codes = [name for each in objects for name in (_identifier(each.get("code")), _identifier(each.get("status")))]
    types = [_identifier(each.get("type")) for each in objects]
    params = [_identifier(each.get("param")) for each in objects]
    text = " ".join(message for each in objects if isinstance(message := each.get("message"), str))
    known = next((KNOWN_CODES[name] for name in (*codes, *types) if name in KNOWN_CODES), "")
    if not known and _SAYS_OVERFLOW.search(text):
        known = "context_length_exceeded"
    limit, asked = _numbers(text) if known == "context_length_exceeded" else (None, None)
    return Told(
        type=next((name for name in types if name), ""),
        code=next((name for name in codes if name), ""),
        param=next((name for name in params if name), ""),
        known=known,
        limit_tokens=limit,
        asked_tokens=asked,
    )


def _objects(document: object) -> Iterator[Mapping[str, Any]]:
    """The error's object, and those inside of it: OpenAI's, Azure's `innererror`, Gemini's list, vLLM's bare one."""
    if isinstance(document, list):
        document = document[0] if document else None
    if not isinstance(document, dict):
        return
    error = document.get("error")
    if isinstance(error, str):
        yield {"message": error, "code": document.get("code"), "type": document.get("type")}
    elif isinstance(error, dict):
        yield error
        inner = error.get("innererror") or error.get("metadata")
        if isinstance(inner, dict):
            yield inner
    else:
        yield document if "message" in document or "code" in document else {}
        if isinstance(detail := document.get("detail"), str):
            yield {"message": detail}


def _identifier(value: object) -> str:
    """A name that can be nothing else: no sentence, nothing that looks like a key."""
    if not isinstance(value, str) or _IDENTIFIER.fullmatch(value) is None or _KEY_LIKE.match(value):
        return ""
    return value


def _numbers(text: str) -> tuple[int | None, int | None]:
    """What the model reads at most, and what the request came to."""
    return _first(_LIMIT, text), _first(_ASKED, text)


def _first(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    digits = next((group for group in found.groups() if group), "") if found is not None else ""
    digits = digits.replace(",", "")
    return int(digits) if 2 <= len(digits) <= 9 else None
