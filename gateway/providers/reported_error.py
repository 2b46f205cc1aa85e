"""The safe parts of a provider's error: identifiers and numbers, never its messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.providers import meanings
from gateway.unchecked import objects_in

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.\[\]-]{0,63}")
_KEY_LIKE = re.compile(r"^(sk|pk|key|gsk|xai|AKIA|AIza|ya29)[-_.A-Za-z0-9]*\d", re.IGNORECASE)
_READ_BYTES = 64 * 1024
_MAX_SAID_CHARS = 2_000
_MARKUP = re.compile(r"<(?:style|script)\b.*?</(?:style|script)>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_NUMBERED = re.compile(r"[1-9]\d{2,5}")
_VAGUE = (400, 404, 413, 422, 500)
"""Statuses of names that only say that something is wrong: "BadRequestError", "server_error"."""

WORDS = ("message", "msg", "detail", "error_message", "errorMessage", "error_msg", "Message", "faultstring")
"""Fields with an error's message."""
OVERLOADED = 503

_FORBIDDEN = (meanings.FILTER, meanings.MODEL)
"""What a "permission denied" may be about, apart from the key."""

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
"""A provider's code -> the code that clients of OpenAI's API handle."""

# Numbers in the messages of OpenAI, vLLM, Anthropic, Gemini, Mistral, llama.cpp, TGI, xAI, SGLang and others. MiniMax
# writes the number of its error, 2013, behind its words.
_N = r"\(?([\d,]+)"
_LIMIT = re.compile(
    rf"maximum (?:supported )?(?:context|prompt|input|sequence) length (?:is|of) {_N}|maximum context length: {_N}"
    rf"|> {_N} maximum|with {_N} maximum context|tokens allowed {_N}|\+ [\d,]+ > {_N}|<= {_N}"
    rf"|context (?:size|length|window)[a-z ]{{0,20}}[:=(]? ?(?!\(?2013\)){_N}|must have less than {_N} tokens"
    rf"|(?:limit|tokens limit) (?:is|of|for this model is) {_N}|token limit: {_N}|tokens limit {_N}"
    rf"|cannot exceed {_N}|n_ctx: {_N}|max_seq_len \(?{_N}|max length of (?:the )?(?:current )?question is {_N}"
    rf"|should be \[1, {_N}\]|max(?:imum)? tokens of {_N} exceeded|max size: {_N} tokens",
    re.IGNORECASE,
)
_ASKED = re.compile(
    rf"(?:resulted in|requested(?: about| a total of)?|contains(?: at least)?|request has|too long:|token count(?: of)?"
    rf"|current length is|prompt is|given:|passed|request|the input|number of input tokens|received|n_keep:"
    rf"|prompt_tokens) {_N}",
    re.IGNORECASE,
)
_SUM = re.compile(r"([\d,]+) \+ ([\d,]+) > [\d,]+")
_DURATION = r"(?:\d+(?:\.\d+)? ?(?:milliseconds?|ms|minutes?|min|m|hours?|h|seconds?|secs?|s) ?)+"
_WAIT = re.compile(rf"\b(?:try again|retry)\b[a-z ]{{0,20}} (?:in|after) ({_DURATION})", re.IGNORECASE)
_STEP = re.compile(r"(\d+(?:\.\d+)?) ?(milli|ms|m|h|s)", re.IGNORECASE)
_UNITS_S = {"milli": 0.001, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class ReportedError:
    """A provider's error: its identifiers, the code for clients (`known`), and context sizes."""

    type: str = ""
    code: str = ""
    param: str = ""
    known: str = ""
    means: int = 0
    """The status of its kind where it names another failure than a wrong request: 401, 402, 403, 429 or 503; else 0."""
    said: str = field(default="", repr=False)
    """The provider's words, for `gateway.turn.failures` alone, which removes keys and prompts from them."""
    limit_tokens: int | None = None
    asked_tokens: int | None = None
    retry_after_s: float | None = None
    """The wait that the words ask for; the header counts first."""

    @property
    def overflows(self) -> bool:
        """The request exceeded the model's context window."""
        return self.known == "context_length_exceeded"

    @property
    def overloads(self) -> bool:
        """The provider has too much work, by its error's type or code."""
        return "overload" in f"{self.type} {self.code}".lower()


NO_REPORT = ReportedError()


def report_in(body: bytes | bytearray, name: str = "") -> ReportedError:
    """The error in a response body; of a body that is no JSON, its text.

    `name`: what a header calls an error of which the body has the words alone, as Amazon's servers do.
    """
    read = bytes(body[:_READ_BYTES])
    try:
        document = orjson.loads(read)
    except orjson.JSONDecodeError:
        return _report_of_text(read.decode("utf-8", "replace").strip())
    if name and isinstance(document, dict) and document.keys() <= {"message", "Message"}:
        document["type"] = name
    return report_of(document)


def _report_of_text(text: str) -> ReportedError:
    """The error in plain text. A page or broken JSON is not classified: its words may be of any subject."""
    if text.startswith(("<", "{", "[")):
        return ReportedError(said=" ".join(_MARKUP.sub(" ", text).split())[:_MAX_SAID_CHARS])
    return report_of({"message": text}) if text else NO_REPORT


def report_of(document: object) -> ReportedError:
    """The error in a parsed body or error event."""
    objects = list(_objects(document))
    if not objects:
        return NO_REPORT
    codes = [name for each in objects for name in (_code(each.get("code")), _code(each.get("status")))]
    types = [_identifier(each.get("type")) for each in objects]
    params = [_identifier(each.get("param")) for each in objects]
    sentences = [said for each in objects for said in _sentences(each)]
    text = " ".join(sentences)[:_MAX_SAID_CHARS]
    names = [name for each in objects for name in _names(each)]
    known = _known(names, text)
    limit, asked = _numbers(objects, text) if known == meanings.CONTEXT else (None, None)
    return ReportedError(
        type=next((name for name in types if name), ""),
        code=next((name for name in codes if name), ""),
        param=next((name for name in params if name), ""),
        known=known,
        means=_means(names, sentences),
        said=text,
        limit_tokens=limit,
        asked_tokens=asked,
        retry_after_s=_wait_s(objects, text),
    )


def duration_s(text: str) -> float:
    """A duration in seconds: "1.5", "34s", "6m0s", "24 seconds". Raises ValueError."""
    if re.fullmatch(_DURATION, text, re.IGNORECASE) is None:
        return float(text)
    return sum(float(number) * _UNITS_S[unit.lower()] for number, unit in _STEP.findall(text))


def _wait_s(objects: Iterable[Mapping[str, Any]], text: str) -> float | None:
    """What Google states in a RetryInfo, else what the words say."""
    for error in objects:
        for detail in objects_in(error.get("details")):
            delay = detail.get("retryDelay")
            if isinstance(delay, str) and re.fullmatch(_DURATION, delay[:64]) is not None:
                return duration_s(delay[:64])
    said = _WAIT.search(text)
    return None if said is None else duration_s(said[1].strip())


def _known(names: list[object], text: str) -> str:
    """The code that clients look for; a sentence counts where no name says that it is something else."""
    called = [name for name in names if isinstance(name, str) and name]
    exact = next((KNOWN_CODES[name] for name in called if name in KNOWN_CODES), "")
    if exact:
        return exact
    named = [meaning for name in called if (meaning := meanings.of_name(name)) is not None]
    by_name = next((code for _, code in named if code), "")
    precise = {status for status, _ in named}.difference(_VAGUE)
    if by_name or precise - {403}:
        return by_name
    said = meanings.of_words(text)
    if said is None or (precise and said[1] not in _FORBIDDEN):
        return ""
    return said[1]


def _names(error: Mapping[str, Any]) -> Iterator[object]:
    """What an error calls itself: its own names, and Google's reasons."""
    yield from (error.get(name) for name in ("code", "type", "status", "Code"))
    yield from (each.get("reason") for each in objects_in(error.get("details")))


def _means(names: Iterable[object], sentences: Iterable[str]) -> int:
    """The failure that is not the request's own: of the key, of a limit, of a provider with too much work.

    The words of a message may be the client's, so that only identifiers and whole known messages count.
    """
    for name in filter(None, map(_identifier, names)):
        status = (meanings.of_name(name) or (0, ""))[0]
        if status in (401, 402, 403, 429) or (status == OVERLOADED and "overload" in name.lower()):
            return status
    return next((status for said in sentences if (status := meanings.of_account(said))), 0)


def _sentences(error: Mapping[str, Any]) -> Iterator[str]:
    for name in WORDS:
        value = error.get(name)
        if isinstance(value, str) and value:
            yield value
            return
        if isinstance(value, dict):  # Mistral's, with the fields' problems
            yield from _sentences(value)
            return
        if isinstance(value, list):
            yield "; ".join(filter(None, map(_of_a_field, objects_in(value))))
            return


def _of_a_field(problem: Mapping[str, Any]) -> str:
    """One of the problems that FastAPI and pydantic list: the field's path and what is wrong with it."""
    words, place = problem.get("msg") or problem.get("message"), problem.get("loc")
    path = ".".join(map(str, place)) if isinstance(place, list) else ""
    return f"{path}: {words}" if path and isinstance(words, str) else str(words or "")


def _objects(document: object) -> Iterator[Mapping[str, Any]]:
    """The error object and nested ones: OpenAI's, Azure's `innererror`, Gemini's list, vLLM's bare one."""
    if isinstance(document, list):
        document = document[0] if document else None
    if isinstance(document, str):
        document = {"message": document}
    if not isinstance(document, dict):
        return
    if isinstance(wrapped := document.get("Response"), dict):
        document = wrapped  # Tencent's
    error = document.get("error") or document.get("Error")
    errors = document.get("errors")
    if not error and isinstance(errors, list) and errors:
        error = errors[0]
    if isinstance(error, str):
        yield {"message": error, "code": document.get("code"), "type": document.get("type")}
    elif isinstance(error, dict):
        yield error
        inner = error.get("innererror") or error.get("metadata")
        if isinstance(inner, dict):
            yield inner
            yield from _wrapped(inner.get("raw"))
    else:
        yield document
        if isinstance(base := document.get("base_resp"), dict):
            yield {"message": base.get("status_msg"), "code": base.get("status_code")}


def _wrapped(raw: object) -> Iterator[Mapping[str, Any]]:
    """The error of the provider behind a router such as OpenRouter, as JSON text, an object or a sentence."""
    if isinstance(raw, str) and raw:
        try:
            raw = orjson.loads(raw)
        except orjson.JSONDecodeError:
            raw = {"message": raw}
    if isinstance(raw, dict) and "metadata" not in raw:
        yield from _objects(raw)


def _identifier(value: object) -> str:
    """A value that is an identifier, not a sentence and not a key; else ""."""
    if not isinstance(value, str) or _IDENTIFIER.fullmatch(value) is None or _KEY_LIKE.match(value):
        return ""
    return value


def _code(value: object) -> str:
    """As `_identifier`, and the numbers that some providers count their errors with."""
    if isinstance(value, int | str) and _NUMBERED.fullmatch(str(value)) is not None:
        return str(value)
    return _identifier(value)


def _numbers(objects: list[Mapping[str, Any]], text: str) -> tuple[int | None, int | None]:
    """The context limit and the size of the request, in tokens, from an error message."""
    for error in objects:
        limit, asked = error.get("n_ctx"), error.get("n_prompt_tokens")  # llama.cpp's
        if type(limit) is int and type(asked) is int:
            return limit, asked
    limit, asked = _first(_LIMIT, text), _first(_ASKED, text)
    if (both := _SUM.search(text)) is not None:
        asked = sum(int(number.replace(",", "")) for number in both.groups())
    # What fits cannot be the reason: it is another number of the sentence.
    return limit, None if limit is not None and asked is not None and asked <= limit else asked


def _first(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    digits = next((group for group in found.groups() if group), "") if found is not None else ""
    digits = digits.replace(",", "")
    return int(digits) if 2 <= len(digits) <= 9 else None
