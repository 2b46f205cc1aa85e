"""`POST /v1/completions`: OpenAI's legacy dialect as one user message of a chat, and back.

https://platform.openai.com/docs/api-reference/completions. Current models are chat models, so the prompt becomes a user
message. Token ids are refused because their tokenizer is unknown, a suffix because chat models cannot insert text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.dialects.chat import estimated_usage
from gateway.dialects.dialect import AnswerIdentity, Billed, Dialect, StreamRenderer
from gateway.dialects.fields import need, read, refuse_sounds, refused
from gateway.dialects.pictures import picture_of
from gateway.dialects.sse import DONE_FRAME, billed_frame, data_frame
from gateway.dialects.usage_report import shown
from gateway.errors import GatewayError
from gateway.unchecked import at, listed

_OWN = frozenset({"prompt", "suffix", "echo", "best_of", "logprobs"})
_OF_CHAT = ("messages", "tools", "functions")
"""What a text cannot answer, or what stands in the prompt's place; sounds are refused beside them."""
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class CompletionsRequest:
    """A completions request: the equivalent chat body, and the echoed start of the response."""

    chat: dict[str, Any]
    prefix: str = ""
    own_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The names in this dialect of the chat body's parameters."""


def completion_id(decision_id: str) -> str:
    """The response id of a decision."""
    return "cmpl-" + decision_id.removeprefix("dec_")


def to_chat(fields: Mapping[str, Any]) -> CompletionsRequest:
    """The chat body of a completions body. Raises InvalidRequest with the field's name."""
    need(fields, "model", str)
    for name in _OF_CHAT:
        if fields.get(name):
            raise refused(name, "is not served here; send this request to /v1/chat/completions")
    refuse_sounds(fields)
    prompt = _prompt(fields.get("prompt"))
    if read(fields, "suffix", str):
        raise refused("suffix", "insertion is not served: chat models only continue; leave it out")
    best_of = read(fields, "best_of", int)
    if best_of is not None and best_of != (read(fields, "n", int) or 1):
        raise refused("best_of", "expected the value of n: only returned choices are generated")
    chat = {name: value for name, value in fields.items() if name not in _OWN}
    chat["messages"] = [{"role": "user", "content": prompt}]
    own_names: dict[str, tuple[str, ...]] = {}
    logprobs = read(fields, "logprobs", int)
    if logprobs is not None:
        if not 0 <= logprobs <= MAX_LOGPROBS:
            raise refused("logprobs", f"expected an integer from 0 to {MAX_LOGPROBS}")
        chat |= {"logprobs": True, "top_logprobs": logprobs}
        own_names["top_logprobs"] = ("logprobs",)
    return CompletionsRequest(chat, prompt if read(fields, "echo", bool) else "", own_names)


def _prompt(prompt: object) -> str:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) for item in prompt):
        raise refused("prompt", "expected one prompt, got several; send one request for each")
    if isinstance(prompt, list) and prompt:
        raise refused("prompt", "expected text, got token ids, whose tokenizer is unknown")
    raise refused("prompt", "expected a string that is not empty")


def text_completion(body: Mapping[str, Any], identity: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A chat response or chunk as a text completion or its chunk.

    `identity` has id, created and model; `prefix` is the echoed prompt.
    """
    choices = []
    for position, choice in enumerate(body.get("choices") or ()):
        part = choice.get("message") or choice.get("delta")
        content = at(part, "content")
        said = [content] if isinstance(content, str) and content else []
        said += [picture_of(each).note() for each in listed(at(part, "images"))]
        made = {"text": prefix + "\n\n".join(said), "index": choice.get("index", position)}
        made["logprobs"] = _logprobs(at(choice, "logprobs", "content"), len(prefix))
        choices.append(made | {"finish_reason": choice.get("finish_reason")})
    return {**identity, "object": "text_completion", "choices": choices}


def _logprobs(content: object, offset: int) -> dict[str, Any] | None:
    """Chat's log probabilities in the parallel lists of the legacy dialect."""
    if not isinstance(content, list):
        return None
    offsets: list[int] = []
    for entry in content:
        offsets.append(offset)
        offset += len(entry.get("token") or "")
    return {
        "tokens": [entry.get("token") for entry in content],
        "token_logprobs": [entry.get("logprob") for entry in content],
        "top_logprobs": [
            {top.get("token"): top.get("logprob") for top in entry.get("top_logprobs") or ()} for entry in content
        ],
        "text_offset": offsets,
    }


class CompletionsDialect(Dialect):
    """`POST /v1/completions`. `prefix` is the prompt when the client asked for an echo."""

    endpoint = "completions"

    def __init__(self, prefix: str, include_usage: bool) -> None:
        self._prefix = prefix
        self._include_usage = include_usage

    def whole(self, answer: AnswerIdentity, body: Mapping[str, Any], billed: Billed) -> dict[str, Any]:
        made = text_completion(body, identity_of(answer), self._prefix)
        usage = estimated_usage(billed.usage) if billed.estimated else body.get("usage") or {}
        return made | {"usage": billed.told_in(usage)}

    def stream(self, answer: AnswerIdentity) -> CompletionsStream:
        return CompletionsStream(answer, self._prefix, self._include_usage)


class CompletionsStream(StreamRenderer):
    """Chat chunks in, chunks of a text completion out."""

    def __init__(self, answer: AnswerIdentity, prefix: str, include_usage: bool) -> None:
        self._identity = identity_of(answer)
        self._prefix = prefix
        self._include_usage = include_usage

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """The text of one chunk; empty without choices."""
        if not chunk.get("choices"):
            return b""
        made = text_completion(chunk, self._identity, self._prefix)
        self._prefix = ""
        return data_frame(made)

    def end(self, billed: Billed, error: GatewayError | None) -> bytes:
        if error is not None:
            return billed_frame(billed.report, data_frame(error.as_body()))
        frames = []
        if self._include_usage:
            usage = estimated_usage(billed.usage) if billed.estimated else shown({}, billed.usage)
            made = {**self._identity, "object": "text_completion", "choices": []}
            made["usage"] = billed.told_in(usage)
            frames.append(data_frame(made | {"seqroute": billed.report}))
        return b"".join([*frames, billed_frame(billed.report, DONE_FRAME)])


def identity_of(answer: AnswerIdentity) -> dict[str, Any]:
    """The fields that every chunk repeats."""
    return {"id": completion_id(answer.decision_id), "created": int(answer.created_s), "model": answer.model}
