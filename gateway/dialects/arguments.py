"""Outgoing messages and parameters, rebuilt by the schema for every attempt.

LiteLLM reads some 350 of its own arguments from its input (`api_base`, `mock_response`, `fallbacks`,
`input_cost_per_token`, MCP servers inside `tools`, ...). So a caller's field is passed on only if the schema names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from gateway.catalog.addresses import ANY_ADDRESS
from gateway.errors import InvalidRequest
from gateway.schema import reader

THINKING_PARTS = frozenset({"thinking", "redacted_thinking"})
_LONGEST_HEAD = 256
"""Characters before the comma of a `data:` address."""
_MEDIA_TYPES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
"""Names that browsers' users write, for those that Claude, Gemini and Amazon alone take."""


def outgoing_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the parameters with known fields only; LiteLLM modifies them."""
    outgoing = reader.read_params(params)
    for name, value in outgoing.items():
        if isinstance(value, dict | list):
            outgoing[name] = orjson.loads(orjson.dumps(_without_null(value)))
    return outgoing


FROM_MODELS = ("provider_specific_fields", "extra_content", "thinking_blocks", "reasoning_items", "reasoning_details")
"""State from a model's response; allowed only in assistant messages."""


def outgoing_messages(
    messages: Sequence[Mapping[str, Any]], *, by_reference: tuple[str, ...], thinking_parts: bool = True
) -> list[dict[str, Any]]:
    """Messages with known fields only.

    `by_reference`: beginnings of image URLs that the provider fetches itself. `thinking_parts`: the provider accepts
    Anthropic's thinking blocks as content parts. A null content stays, because some servers require the field. Raises
    InvalidRequest for an address that LiteLLM would otherwise fetch.
    """
    outgoing = reader.read_messages(messages)
    parted = [item for item in enumerate(outgoing) if isinstance(item[1].get("content"), list)]
    check_addresses(parted, by_reference=by_reference)
    for message in outgoing:
        if message["role"] != "assistant":
            for name in FROM_MODELS:
                message.pop(name, None)
        for name in [name for name, value in message.items() if value is None and name != "content"]:
            del message[name]
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = [
                _without_null(part) for part in content if thinking_parts or part["type"] not in THINKING_PARTS
            ] or ""
        for name in ("tool_calls", "cache_control"):
            if name in message:
                message[name] = _without_null(message[name])
    return outgoing


def check_addresses(
    messages: Iterable[tuple[int, Mapping[str, Any]]], *, by_reference: tuple[str, ...]
) -> frozenset[str]:
    """Require images and videos inline or by a URL for the provider, files inline or by id.

    `messages` are those whose content is a list of parts, with their positions. Returns the beginnings of
    `by_reference` that occur. Raises InvalidRequest.
    """
    found = set()
    for index, message in messages:
        for position, part in enumerate(message["content"]):
            for kind in ("image_url", "video_url", "file"):
                if kind in part:
                    url = _checked_address(part[kind], f"messages[{index}].content[{position}].{kind}", by_reference)
                    found |= {beginning for beginning in by_reference if url.startswith(beginning)}
    return frozenset(found)


def checked_url(url: str, where: str, *, by_reference: tuple[str, ...] = ANY_ADDRESS) -> str:
    """The `url`, if it is inline data or, `by_reference`, an address for the provider.

    Its scheme becomes lower case. Raises InvalidRequest.
    """
    if not url.startswith("data:"):
        scheme = url[:8].partition(":")[0]
        url = scheme.lower() + url[len(scheme) :]
    if url.startswith("data:"):
        return _with_plain_head(url)
    if url.startswith(by_reference):
        return url
    expected = "a data: or https: address" if by_reference else "a data: address with this model"
    raise InvalidRequest(f"{where}: expected {expected}", param=where)


def _checked_address(inner: Any, where: str, by_reference: tuple[str, ...]) -> str:
    """The URL, empty without one; its scheme becomes lower case."""
    if isinstance(inner, str):
        inner = {"url": inner}
    url = inner.get("url")
    if url is not None:
        url = inner["url"] = checked_url(url, f"{where}.url", by_reference=by_reference)
    for name in ("file_id", "file_data"):
        value = inner.get(name)
        if isinstance(value, str) and "://" in value[:64] and not value.startswith("data:"):
            raise InvalidRequest(f"{where}.{name}: expected inline data or an id", param=f"{where}.{name}")
    if where.endswith(".file") and not (inner.get("file_data") or inner.get("file_id")):
        raise InvalidRequest(f"{where}.file_data: expected the file itself, as a data: address", param=where)
    if isinstance(data := inner.get("file_data"), str) and data.startswith("data:"):
        inner["file_data"] = _with_plain_head(data)
    return url or ""


def _with_plain_head(address: str) -> str:
    """A `data:` address with the media type's registered name in lower case, and without parameters of it."""
    end = address.find(",", 0, _LONGEST_HEAD)
    media, *marks = address[len("data:") : max(end, 0)].lower().split(";")
    if end < 0 or not marks or marks[-1].strip() != "base64":
        return address
    head = f"data:{_MEDIA_TYPES.get(media.strip(), media.strip())};base64"
    return address if address.startswith(head + ",") else head + address[end:]


def _without_null(value: Any) -> Any:
    """Remove null fields, two objects deep: strict servers accept an absent field, but not null."""
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: {key: item for key, item in inner.items() if item is not None} if isinstance(inner, dict) else inner
        for name, inner in value.items()
        if inner is not None
    }
