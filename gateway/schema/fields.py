"""The schema of chat-completions bodies: types, bounds and allow-list in one pass.

Fields that are not named here or in `gateway.schema.shapes` are not sent to providers, at any depth: reading a body
creates new objects with only the named fields, and `gateway.schema.reader.left_out` reports the others. Fields of type
Any contain data from a provider or described by a JSON schema; they are passed on unchanged, with limited depth.

https://platform.openai.com/docs/api-reference/chat/create; `VENDOR_FIELDS` are parameters of other servers, sent only
to providers that know them (`gateway.providers.parameters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from gateway.schema.shapes import (
    MAX_MESSAGES,
    MAX_OUTPUT_TOKENS,
    MOST_STOPS,
    MOST_TOOLS,
    Audio,
    Bias,
    Count,
    Factor,
    Function,
    FunctionChoice,
    Message,
    Name,
    OllamaOptions,
    Penalty,
    Plain,
    Plugin,
    Prediction,
    Provider,
    Reasoning,
    ResponseFormat,
    SafetySetting,
    SearchParameters,
    Share,
    StreamOptions,
    Temperature,
    Thinking,
    Tokens,
    Tool,
    ToolChoice,
    WebSearch,
)

_INT64 = 2**63


class ChatFields(Struct, kw_only=True):
    """OpenAI's parameters of `POST /chat/completions`, without those that the gateway sets."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    stop: str | Annotated[list[str], Meta(max_length=MOST_STOPS)] | None = None
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
    tools: Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None = None
    functions: Annotated[list[Function], Meta(max_length=MOST_TOOLS)] | None = None
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
    disable_reasoning: bool | None = None
    clear_thinking: bool | None = None
    prompt_mode: str | None = None
    disable_tool_validation: bool | None = None
    context_length_exceeded_behavior: Literal["error", "truncate"] | None = None
    prompt_truncate_len: Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
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
    think: bool | str | None = None
    format: str | dict[str, Any] | None = None
    search_parameters: SearchParameters | None = None
    search_mode: Literal["academic", "sec", "web"] | None = None
    search_domain_filter: list[str] | None = None
    search_language_filter: list[str] | None = None
    search_recency_filter: str | None = None
    search_after_date_filter: str | None = None
    search_before_date_filter: str | None = None
    last_updated_after_filter: str | None = None
    last_updated_before_filter: str | None = None
    return_images: bool | None = None
    return_related_questions: bool | None = None
    disable_search: bool | None = None
    enable_search_classifier: bool | None = None
    language_preference: str | None = None
    do_sample: bool | None = None
    tool_stream: bool | None = None
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
INPUT_FIELDS: Mapping[str, type] = {"dimensions": int, "input_type": str, "truncate": str}
"""Parameters of embeddings alone: the length of the vectors, what the texts are for, where long ones are cut."""
