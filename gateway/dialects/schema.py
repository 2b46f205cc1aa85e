"""The schema of chat-completions bodies: types, bounds and allow-list in one pass.

Fields that are not named here are not sent to providers, at any depth: reading a body creates new objects with only the
named fields, and `left_out` reports the others. Fields of type Any contain data from a provider or described by a JSON
schema; they are passed on unchanged, with limited depth.

https://platform.openai.com/docs/api-reference/chat/create; `VENDOR_FIELDS` are parameters of other servers, sent only
to providers that know them (`gateway.providers.parameters`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Required, TypedDict

import msgspec
from msgspec import Meta, Struct, field, inspect

from gateway.errors import InvalidRequest

MAX_OUTPUT_TOKENS = 10_000_000
MAX_MESSAGES = 10_000
MAX_TOOLS = 128
_INT64 = 2**63

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Tokens = Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)]
Temperature = Annotated[int, Meta(ge=0, le=2)] | Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[int, Meta(ge=-2, le=2)] | Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[int, Meta(ge=0, le=1)] | Annotated[float, Meta(ge=0, le=1)]
Bias = Annotated[int, Meta(ge=-100, le=100)] | Annotated[float, Meta(ge=-100, le=100)]
Factor = Annotated[int, Meta(ge=0, le=10)] | Annotated[float, Meta(ge=0, le=10)]
Count = Annotated[int, Meta(ge=0, le=MAX_OUTPUT_TOKENS)]
Role = Literal["assistant", "developer", "function", "system", "tool", "user"]
PartType = Literal["file", "image_url", "input_audio", "redacted_thinking", "refusal", "text", "thinking"]
Plain = str | int | float | bool | None


class CacheControl(TypedDict, total=False):
    """Anthropic's mark for prompt caching."""

    type: str
    ttl: str


class Picture(TypedDict, total=False):
    """An image, by URL or inline."""

    url: Required[str]
    detail: str | None
    format: str | None


class Sound(TypedDict, total=False):
    """Audio input."""

    data: str | None
    format: str | None


class File(TypedDict, total=False):
    """A file, inline or by id."""

    file_data: str | None
    filename: str | None
    file_id: str | None
    format: str | None


class Part(TypedDict, total=False):
    """One part of a message's content; its value is in the field named like its type."""

    type: Required[PartType]
    text: str
    refusal: str
    image_url: str | Picture
    input_audio: Sound
    file: File
    thinking: str
    signature: str | None
    data: str
    cache_control: CacheControl | None


class CalledFunction(TypedDict, total=False):
    """The function of a tool call."""

    name: str | None
    arguments: str | None
    thought_signature: str | None
    provider_specific_fields: Any
    extra_content: Any


class CalledTool(TypedDict, total=False):
    """The custom tool of a tool call."""

    name: str | None
    input: str | None


class ToolCall(TypedDict, total=False):
    """A tool call: OpenAI's fields, and fields that providers add and expect back unchanged."""

    id: str | None
    type: str | None
    index: int | None
    function: CalledFunction | None
    custom: CalledTool | None
    extra_content: Any
    provider_specific_fields: Any
    thought_signature: str | None
    signature: str | None
    cache_control: CacheControl | None


class Message(TypedDict, total=False):
    """A message of the history: OpenAI's fields, and those of other providers' responses."""

    role: Required[Role]
    content: str | list[Part] | None
    name: str | None
    refusal: str | None
    tool_calls: list[ToolCall] | None
    tool_call_id: str | None
    function_call: CalledFunction | None
    audio: dict[str, Any] | None
    annotations: list[Any] | None
    images: list[Any] | None
    citations: list[Any] | None
    reasoning: Any
    reasoning_content: str | None
    reasoning_details: list[Any] | None
    reasoning_items: list[Any] | None
    reasoning_opaque: str | None
    reasoning_text: str | None
    reasoning_signature: str | None
    thinking_blocks: list[Any] | None
    thinking: Any
    signature: str | None
    encrypted_content: str | None
    extra_content: Any
    provider_specific_fields: Any
    prefix: bool | None
    partial: bool | None
    cache_control: CacheControl | None


class Function(TypedDict, total=False):
    """A function that a model may call."""

    name: Required[str]
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class CustomTool(TypedDict, total=False):
    """A free-form tool that a model may call."""

    name: Required[str]
    description: str | None
    format: dict[str, Any] | None


class Tool(TypedDict, total=False):
    """A tool that the client runs."""

    type: Required[str]
    function: Function
    custom: CustomTool
    cache_control: CacheControl | None


class Named(TypedDict, total=False):
    """A reference by name."""

    name: Required[str]


class AllowedTool(TypedDict, total=False):
    """A tool in `allowed_tools`."""

    type: Required[Literal["function", "custom"]]
    function: Named
    custom: Named


class AllowedTools(TypedDict, total=False):
    """A restriction of `tool_choice` to some tools."""

    mode: Required[Literal["auto", "required"]]
    tools: Required[list[AllowedTool]]


class ToolChoice(TypedDict, total=False):
    """The object form of `tool_choice`."""

    type: str
    function: Named
    custom: Named
    allowed_tools: AllowedTools


class FunctionChoice(TypedDict, total=False):
    """The object form of the legacy `function_call`."""

    name: Required[str]


class JsonSchema(TypedDict, total=False):
    """The schema of a structured response."""

    name: str | None
    description: str | None
    schema: dict[str, Any] | None
    strict: bool | None


class ResponseFormat(TypedDict, total=False):
    """The requested response format."""

    type: Required[Literal["text", "json_object", "json_schema"]]
    json_schema: JsonSchema
    schema: dict[str, Any] | None


class Audio(TypedDict, total=False):
    """Parameters of audio output."""

    voice: str | dict[str, str] | None
    format: str | None


class Prediction(TypedDict, total=False):
    """Predicted output."""

    type: Required[Literal["content"]]
    content: Required[str | list[Part]]


class Location(TypedDict, total=False):
    """An approximate location."""

    city: str | None
    country: str | None
    region: str | None
    timezone: str | None


class UserLocation(TypedDict, total=False):
    """The user's location, for web search."""

    type: Required[Literal["approximate"]]
    approximate: Location


class WebSearch(TypedDict, total=False):
    """OpenAI's `web_search_options`."""

    search_context_size: Literal["low", "medium", "high"] | None
    user_location: UserLocation | None


class StreamOptions(TypedDict, total=False):
    """Options of a stream."""

    include_usage: bool | None


class Thinking(TypedDict, total=False):
    """Anthropic's thinking parameters, and those of similar servers."""

    type: str | None
    budget_tokens: Count | None
    display: str | None
    clear_thinking: bool | None
    keep: str | None


class Reasoning(TypedDict, total=False):
    """OpenRouter's reasoning parameters."""

    effort: str | None
    max_tokens: Count | None
    exclude: bool | None
    enabled: bool | None
    summary: str | None


class Provider(TypedDict, total=False):
    """OpenRouter's selection among the providers of a model."""

    order: list[str] | None
    only: list[str] | None
    ignore: list[str] | None
    allow_fallbacks: bool | None
    require_parameters: bool | None
    data_collection: str | None
    zdr: bool | None
    enforce_distillable_text: bool | None
    quantizations: list[str] | None
    sort: Any
    max_price: dict[str, int | float | str] | None
    preferred_min_throughput: Any
    preferred_max_latency: Any


class Plugin(TypedDict, total=False):
    """An OpenRouter plugin. Web search is billed in addition to tokens."""

    id: Required[str]
    enabled: bool | None
    max_results: int | None
    search_prompt: str | None
    engine: str | None
    pdf: dict[str, str] | None


class OllamaOptions(TypedDict, total=False):
    """Ollama's options, without `num_predict`: the reservation limits the response length."""

    num_ctx: int
    num_keep: int
    num_batch: int
    num_gpu: int
    main_gpu: int
    num_thread: int
    use_mmap: bool
    seed: int
    top_k: int
    top_p: int | float
    min_p: int | float
    tfs_z: int | float
    typical_p: int | float
    temperature: int | float
    repeat_last_n: int
    repeat_penalty: int | float
    presence_penalty: int | float
    frequency_penalty: int | float
    mirostat: int
    mirostat_tau: int | float
    mirostat_eta: int | float
    penalize_newline: bool
    stop: list[str]


class SafetySetting(TypedDict, total=False):
    """Gemini's threshold for one category of harm."""

    category: Required[str]
    threshold: Required[str]
    method: str | None


class Source(TypedDict, total=False):
    """A source of xAI's live search."""

    type: Required[str]
    country: str | None
    excluded_websites: list[str] | None
    allowed_websites: list[str] | None
    included_x_handles: list[str] | None
    excluded_x_handles: list[str] | None
    links: list[str] | None
    safe_search: bool | None


class SearchParameters(TypedDict, total=False):
    """xAI's live search, billed per source."""

    mode: str | None
    sources: list[Source] | None
    max_search_results: int | None
    return_citations: bool | None
    from_date: str | None
    to_date: str | None


class ChatFields(Struct, kw_only=True):
    """OpenAI's parameters of `POST /chat/completions`, without those that the gateway sets."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None
    parallel_tool_calls: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    modalities: list[str] | None = None
    audio: Audio | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    store: bool | None = None
    metadata: Any = None
    service_tier: str | None = None
    prediction: Prediction | None = None
    web_search_options: WebSearch | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    functions: Annotated[list[Function], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | ToolChoice | None = None
    function_call: str | FunctionChoice | None = None
    response_format: ResponseFormat | None = None


class ChatParams(ChatFields, kw_only=True):
    """OpenAI's parameters and those of other servers."""

    top_k: Annotated[int, Meta(ge=-1, le=2**31)] | None = None
    top_a: Share | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    tfs_z: Share | None = None
    repetition_penalty: Factor | None = None
    repeat_penalty: Factor | None = None
    repeat_last_n: int | None = None
    length_penalty: int | float | None = None
    mirostat: int | None = None
    mirostat_tau: int | float | None = None
    mirostat_eta: int | float | None = None
    thinking: Thinking | None = None
    thinking_budget: Count | None = None
    reasoning: Reasoning | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None
    reasoning_format: str | None = None
    reasoning_split: bool | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Plain | list[Plain]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    provider: Provider | None = None
    transforms: list[str] | None = None
    plugins: list[Plugin] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None
    structured_outputs: dict[str, Any] | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_OUTPUT_TOKENS)] | None = None
    cache_prompt: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None
    safe_prompt: bool | None = None
    num_ctx: Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)] | None = None
    keep_alive: str | int | float | None = None
    options: OllamaOptions | None = None
    search_parameters: SearchParameters | None = None
    safety_settings: list[SafetySetting] | None = None


class ChatBody(ChatParams, kw_only=True):
    """The complete body."""

    model: Name
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    session_id: Any = None
    litellm_session_id: Any = None
    conversation: Any = None
    episode_id: Any = field(default=None, name="tensorzero::episode_id")


CHAT_FIELDS = frozenset(ChatFields.__struct_fields__)
"""OpenAI's parameters that may be sent; the gateway sets messages, model, limit and streaming."""
VENDOR_FIELDS = frozenset(ChatParams.__struct_fields__) - CHAT_FIELDS
KNOWN_FIELDS = frozenset(ChatBody.__struct_encode_fields__)
OWN_FIELDS = KNOWN_FIELDS - CHAT_FIELDS - VENDOR_FIELDS
"""Fields that the gateway reads, and sends in its own form or not at all."""

# The identifying field of an object, reported when the value is not an object.
_IDENTIFIED_BY = (
    (re.compile(r"tools\[\d+\]"), "type"),
    (re.compile(r"tools\[\d+\]\.(function|custom)|functions\[\d+\]"), "name"),
    (re.compile(r"response_format|messages\[\d+\]\.content\[\d+\]"), "type"),
)
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_NO_OBJECT = re.compile(r"Expected `[a-z |]*object[a-z |]*`, got")
_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")
# Lists of plain values, reported without the index.
_WHOLE = re.compile(r"^(stop|modalities|logit_bias|transforms|guided_choice|bad_words|stop_token_ids)\b.*")


def read_body(fields: Mapping[str, Any]) -> ChatBody:
    """Read a body by the schema. Raises InvalidRequest with the parameter's name."""
    body: ChatBody = _read(fields, ChatBody)
    return body


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages rebuilt with only the schema's fields. Raises InvalidRequest."""
    made: list[dict[str, Any]] = _read(messages, list[Message], "messages")
    return made


def read_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in the schema, rebuilt. Raises InvalidRequest."""
    known = [name for name in params if name in CHAT_FIELDS or name in VENDOR_FIELDS]
    read = given(_read({name: params[name] for name in known}, ChatParams), known)
    return read | ({"n": params["n"]} if isinstance(params.get("n"), int) else {})


def given(read: ChatParams, names: Iterable[str]) -> dict[str, Any]:
    """The parameters of `names` that are not null."""
    return {name: value for name in names if (value := getattr(read, name)) is not None}


def left_out(body: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Paths, without indexes, of fields in `body` that are missing in `kept`."""
    if body == kept:  # the common case, and much cheaper than a walk
        return
    if isinstance(kept, dict):
        if len(kept) != len(body):
            yield from (f"{path}.{name}" for name in body if name not in kept)
        for name, value in kept.items():
            yield from left_out(body[name], value, f"{path}.{name}")
    elif isinstance(kept, list):
        for before, after in zip(body, kept, strict=True):
            yield from left_out(before, after, f"{path}[]")


def _read(value: Any, kind: Any, where: str = "") -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _refused(str(error), kind, where) from None


def _refused(message: str, kind: Any, where: str) -> InvalidRequest:
    """A validation error as one line: the parameter's path and its expected type."""
    found, missing = _PATH.search(message), _MISSING.match(message)
    path = _WHOLE.sub(r"\1", found[1] if found else "")
    named = missing[1] if missing else ""
    if not missing and _NO_OBJECT.match(message):
        named = next((name for pattern, name in _IDENTIFIED_BY if pattern.fullmatch(where + path)), "")
    if named:
        path = f"{path}.{named}" if path else named
    param = where + path if not where or path.startswith("[") else f"{where}.{path}"
    return InvalidRequest(f"{param}: expected {_expected(_type_at(_described(kind), path))}", param=param)


@cache
def _described(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _type_at(kind: inspect.Type, path: str) -> inspect.Type:
    """The schema's type at `path`."""
    for name, index in _STEP.findall(path):
        options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        for option in options:
            if name and isinstance(option, inspect.StructType | inspect.TypedDictType):
                known = {item.encode_name: item.type for item in option.fields}
                if name in known:
                    kind = known[name]
                    break
            if index and isinstance(option, inspect.ListType):
                kind = option.item_type
                break
            if index and isinstance(option, inspect.DictType):
                kind = option.value_type
                break
    return kind


def _expected(kind: inspect.Type) -> str:
    """A description of a type."""
    if isinstance(kind, inspect.UnionType):
        options = [option for option in kind.types if not isinstance(option, inspect.NoneType)]
        if any(isinstance(option, inspect.FloatType) for option in options):
            options = [option for option in options if not isinstance(option, inspect.IntType)]
        return " or ".join(_expected(option) for option in options)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        noun = "an integer" if isinstance(kind, inspect.IntType) else "a number"
        return noun if kind.ge is None else f"{noun} from {kind.ge} to {kind.le}"
    if isinstance(kind, inspect.StrType):
        return "a string" if kind.max_length is None else f"a string of 1 to {kind.max_length} characters"
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(str(value) for value in kind.values)
    if isinstance(kind, inspect.ListType):
        least = "at least one, " if kind.min_length else ""
        return "a list" if kind.max_length is None else f"a list of {least}at most {kind.max_length}"
    return "true or false" if isinstance(kind, inspect.BoolType) else "an object"
