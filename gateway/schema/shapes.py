"""The shapes inside a chat-completions body: messages, tools and other objects.

Only the fields that are named here are sent to providers (`gateway.schema.fields`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required, TypedDict

from msgspec import Meta

MAX_OUTPUT_TOKENS = 10_000_000
MAX_MESSAGES = 10_000
MAX_TOOLS = 128
"""Of a chat request, as at OpenAI."""
MAX_STOPS = 16
MOST_TOOLS = 1_024
"""Of any request: Anthropic's tool search finds its tools among many."""
MOST_STOPS = 1_024

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Tokens = Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)]
Temperature = Annotated[int, Meta(ge=0, le=2)] | Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[int, Meta(ge=-2, le=2)] | Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[int, Meta(ge=0, le=1)] | Annotated[float, Meta(ge=0, le=1)]
Bias = Annotated[int, Meta(ge=-100, le=100)] | Annotated[float, Meta(ge=-100, le=100)]
Factor = Annotated[int, Meta(ge=0, le=10)] | Annotated[float, Meta(ge=0, le=10)]
Count = Annotated[int, Meta(ge=0, le=MAX_OUTPUT_TOKENS)]
Role = Literal["assistant", "developer", "function", "system", "tool", "user"]
PartType = Literal[
    "file", "image_url", "input_audio", "input_video", "redacted_thinking", "refusal", "text", "thinking", "video_url"
]
Plain = str | int | float | bool | None


class CacheControl(TypedDict, total=False):
    """Anthropic's mark for prompt caching."""

    type: str | None
    ttl: str | None


class Picture(TypedDict, total=False):
    """An image, by URL or inline."""

    url: Required[str]
    detail: str | None
    format: str | None


class Sound(TypedDict, total=False):
    """Audio input."""

    data: Required[str]
    format: str | None


class Video(TypedDict, total=False):
    """A video, by URL or inline."""

    url: Required[str]
    format: str | None


class Footage(TypedDict, total=False):
    """Video input in the form of a sound, or of a `Video`."""

    data: str | None
    url: str | None
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
    video_url: str | Video
    input_video: Footage
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
    """The requested response format: OpenAI's, and those of servers of open models."""

    type: Required[Literal["text", "json_object", "json_schema", "grammar", "regex", "structural_tag", "json"]]
    json_schema: JsonSchema
    schema: dict[str, Any] | None
    grammar: str | None
    pattern: str | None
    structures: list[dict[str, Any]] | None
    triggers: list[str] | None
    format: dict[str, Any] | None
    value: str | dict[str, Any] | None


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
    include_obfuscation: bool | None


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
