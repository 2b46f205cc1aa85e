"""`POST /v1/embeddings`: requests and responses in OpenAI's dialect.

Vectors of different models cannot be compared, so a request names its model and no policy chooses another. Providers
are asked for floats; base64, the default of OpenAI's SDK, is encoded here.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.dialects.dialect import AnswerIdentity, Billed, Dialect
from gateway.dialects.fields import copied, need, read, refused
from gateway.dialects.request import ChatRequest
from gateway.errors import UpstreamError

MAX_INPUTS = 2_048
MAX_DIMENSIONS = 65_536
MAX_WORD_CHARACTERS = 64
_WORDS = ("input_type", "truncate")
_KNOWN = frozenset({"model", "input", "encoding_format", "dimensions", "user", "session_id", *_WORDS})


def parse_embeddings(fields: Mapping[str, Any], body: bytes) -> tuple[ChatRequest, EmbeddingsDialect]:
    """An embeddings body as a pinned chat request with the inputs as messages, and its dialect.

    Raises InvalidRequest with the field's name.
    """
    model = need(fields, "model", str)
    if not model or model.partition("@")[0] == "auto":
        raise refused("model", "expected the name of an embedding model: vectors of two models cannot be compared")
    shape = read(fields, "encoding_format", str) or "float"
    if shape not in ("float", "base64"):
        raise refused("encoding_format", "expected float or base64")
    dimensions = read(fields, "dimensions", int)
    if dimensions is not None and not 1 <= dimensions <= MAX_DIMENSIONS:
        raise refused("dimensions", f"expected an integer from 1 to {MAX_DIMENSIONS}")
    for name in _WORDS:
        if len(read(fields, name, str) or "") > MAX_WORD_CHARACTERS:
            raise refused(name, f"expected at most {MAX_WORD_CHARACTERS} characters")
    texts, token_ids = _inputs(fields.get("input"))
    read(fields, "user", str)
    inputs: list[Any] = [*texts] or [[*ids] for ids in token_ids]
    params: dict[str, Any] = {"input": inputs, "encoding_format": "float"} | copied(
        fields, {name: name for name in ("dimensions", "user", *_WORDS)}
    )
    chat = ChatRequest(
        model=model,
        messages=tuple({"role": "user", "content": text} for text in texts or ("",)),
        params=params,
        session_hint=read(fields, "session_id", str) or None,
        body_sha256=hashlib.sha256(b"embeddings\0" + body).digest(),
        dropped=tuple(sorted(name for name, value in fields.items() if name not in _KNOWN and value is not None)),
        mode="embedding",
        token_ids=sum(map(len, token_ids)),
    )
    return chat, EmbeddingsDialect(len(inputs), as_base64=shape == "base64")


def _inputs(given: object) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """A string, strings, token ids, or lists of token ids."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise refused("input", "expected a string, a list of strings or lists of token ids, not empty")
    if all(_is_token(item) for item in given):
        return (), (tuple(given),)
    if len(given) > MAX_INPUTS:
        raise refused("input", f"expected at most {MAX_INPUTS} inputs, got {len(given)}")
    if all(isinstance(item, str) and item for item in given):
        return tuple(given), ()
    if all(isinstance(item, list) and item and all(_is_token(token) for token in item) for item in given):
        return (), tuple(tuple(item) for item in given)
    raise refused("input", "expected strings that are not empty, or lists of token ids, not both")


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def vectors_of(body: Mapping[str, Any], inputs: int) -> list[Sequence[float]] | None:
    """The vectors in the order of the inputs; None unless there is one for each."""
    data = body.get("data")
    if not isinstance(data, list) or len(data) != inputs:
        return None
    found: dict[int, Sequence[float]] = {}
    for position, entry in enumerate(data):
        vector = entry.get("embedding") if isinstance(entry, Mapping) else None
        if isinstance(vector, str):
            vector = decoded(vector)
        if not isinstance(vector, list | tuple) or not vector or not all(isinstance(v, int | float) for v in vector):
            return None
        index = entry.get("index")
        found[index if isinstance(index, int) else position] = vector
    return [found[index] for index in range(inputs)] if found.keys() == set(range(inputs)) else None


def rendered_embeddings(
    vectors: Sequence[Sequence[float]], model: str, prompt_tokens: int, *, as_base64: bool
) -> dict[str, Any]:
    """OpenAI's list object, in the requested encoding."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encoded(vector) if as_base64 else list(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }


def encoded(vector: Sequence[float]) -> str:
    """Little-endian float32 in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def decoded(text: str) -> list[float] | None:
    """The floats of a string from `encoded`; None for other strings."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return list(struct.unpack(f"<{len(data) // 4}f", data)) if len(data) % 4 == 0 else None


class EmbeddingsDialect(Dialect):
    """`POST /v1/embeddings`, for a number of inputs."""

    endpoint = "embeddings"

    def __init__(self, inputs: int, *, as_base64: bool) -> None:
        self._inputs = inputs
        self._as_base64 = as_base64

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        """OpenAI's list object. Raises UpstreamError unless there is one vector per input."""
        vectors = vectors_of(body, self._inputs)
        if vectors is None:
            raise UpstreamError("the provider's response does not have one vector per input")
        made = rendered_embeddings(vectors, answer.model, billed.usage.prompt_tokens, as_base64=self._as_base64)
        return made | {"usage": billed.told_in(made["usage"]), "seqroute": billed.report}
