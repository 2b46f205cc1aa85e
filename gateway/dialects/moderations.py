"""`POST /v1/moderations`: requests and responses in OpenAI's dialect, passed through.

A request names its model, or gets the first one with `mode: moderation`. The provider's verdicts are not changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from gateway.catalog.addresses import ANY_ADDRESS
from gateway.dialects.arguments import check_addresses
from gateway.dialects.dialect import AnswerIdentity, Billed, Dialect
from gateway.dialects.fields import read, refused
from gateway.dialects.request import ChatRequest
from gateway.errors import ModelNotFound

MAX_INPUTS = 2_048
_KNOWN = frozenset({"model", "input", "user", "session_id"})


def parse_moderations(fields: Mapping[str, Any], body: bytes, default_model: str | None) -> ChatRequest:
    """A moderations body as a pinned request with the inputs as messages.

    Raises InvalidRequest, ModelNotFound.
    """
    model = read(fields, "model", str) or default_model
    if model is None:
        raise ModelNotFound(
            "no moderation model is configured: the operator adds one with model_info.mode: moderation", param="model"
        )
    if model.partition("@")[0] == "auto":
        raise refused("model", "expected the name of a moderation model: verdicts of two models cannot be compared")
    parts = _inputs(fields.get("input"))
    check_addresses(((0, {"content": parts}),), by_reference=ANY_ADDRESS)
    return ChatRequest(
        model=model,
        messages=({"role": "user", "content": parts},),
        params={"input": fields["input"]},
        images=sum(part["type"] == "image_url" for part in parts),
        session_hint=read(fields, "session_id", str) or None,
        body_sha256=hashlib.sha256(b"moderations\0" + body).digest(),
        dropped=tuple(sorted(name for name, value in fields.items() if name not in _KNOWN and value is not None)),
        mode="moderation",
    )


def _inputs(given: object) -> list[dict[str, Any]]:
    """A string, strings, or parts with text and images, as parts of one message."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise refused("input", "expected a string, a list of strings or a list of text and image_url parts, not empty")
    if len(given) > MAX_INPUTS:
        raise refused("input", f"expected at most {MAX_INPUTS} inputs, got {len(given)}")
    if all(isinstance(item, str) for item in given):
        return [{"type": "text", "text": text} for text in given]
    return [_part(item, f"input[{index}]") for index, item in enumerate(given)]


def _part(item: object, where: str) -> dict[str, Any]:
    if isinstance(item, dict) and item.keys() == {"type", "text"}:
        if item["type"] == "text" and isinstance(item["text"], str):
            return item
    elif isinstance(item, dict) and item.keys() == {"type", "image_url"} and item["type"] == "image_url":
        image = item["image_url"]
        if isinstance(image, dict) and image.keys() == {"url"} and isinstance(image["url"], str):
            return item
    raise refused(where, 'expected {"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": ...}}')


class ModerationsDialect(Dialect):
    """`POST /v1/moderations`."""

    endpoint = "moderations"

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        """The provider's object with the catalogue's name of the model."""
        return {"id": f"modr-{answer.decision_id}", **body, "model": answer.model, "seqroute": billed.report}
