"""Messages requests in the form that the chosen Claude model takes, and those that are translated instead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.dialects import messages_request, sealed_state
from gateway.providers.errors import CallRefused
from gateway.providers.providers import Call, Outgoing, Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO: Any = [{"role": "user", "content": "hello"}]
CALLED: Any = [
    *HELLO,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]},
]


def called(call_id: str, *blocks: Any) -> list[Any]:
    said = [*blocks, {"type": "tool_use", "id": call_id, "name": "f", "input": {}}]
    result = [{"type": "tool_result", "tool_use_id": call_id, "content": "x"}]
    return [*HELLO, {"role": "assistant", "content": said}, {"role": "user", "content": result}]


ADAPTIVE, BUDGET = {"type": "adaptive"}, {"type": "enabled", "budget_tokens": 16_000}
SCHEMA = {"format": {"type": "json_schema", "schema": {"type": "object"}}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    await made.start()
    yield made
    await made.close()


def outgoing(upstream: Upstream, model: str, fields: dict[str, Any], *, betas: str = "", **more: Any) -> Outgoing:
    read = messages_request.to_chat({"model": "m", "max_tokens": 20_000, "messages": HELLO} | fields, betas=betas)
    params = {name: value for name, value in read.chat.items() if name not in ("model", "messages", "max_tokens")}
    arguments: dict[str, Any] = {
        "litellm_model": model, "api_base": "http://127.0.0.1:1", "api_key": "sk-ours", "params": params,
        "messages": read.chat["messages"], "forwarded": read.forwarded, "max_tokens": 20_000, "drop_params": True,
        "timeout_s": 20.0, "stream_timeout_s": 10.0, "idle_timeout_s": 1.0,
    }  # fmt: skip
    return upstream.outgoing(Call(**arguments | more))


def shown(made: Outgoing) -> tuple[Any, Any, tuple[str, ...]]:
    assert made.call.forwarded is not None
    body = made.call.forwarded.body
    return body.get("thinking"), body.get("output_config"), made.left_out


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("opus-4-7", {"thinking": ADAPTIVE}, (ADAPTIVE, None, ())),
        ("opus-4-7", {"output_config": {"effort": "xhigh"}}, (None, {"effort": "xhigh"}, ())),
        ("opus-4-6", {"thinking": BUDGET, "output_config": {"effort": "max"}}, (BUDGET, {"effort": "max"}, ())),
        ("sonnet-4-5", {"thinking": BUDGET}, (BUDGET, None, ())),
        ("x", {"thinking": BUDGET, "output_config": {"effort": "max"}}, (BUDGET, {"effort": "max"}, ())),
        # What the model would refuse.
        ("opus-4-7", {"thinking": BUDGET}, (ADAPTIVE, {"effort": "high"}, ("thinking.budget_tokens",))),
        ("opus-4-6", {"output_config": {"effort": "xhigh"}}, (None, {"effort": "high"}, ("output_config.effort",))),
        ("sonnet-4-5", {"thinking": ADAPTIVE}, ({"type": "enabled", "budget_tokens": 4_096}, None, ())),
        (
            "sonnet-4-5",
            {"thinking": ADAPTIVE, "output_config": {"effort": "low"} | SCHEMA},
            ({"type": "enabled", "budget_tokens": 1_024}, SCHEMA, ()),
        ),
        ("sonnet-4-5", {"output_config": {"effort": "low"}}, ({"type": "enabled", "budget_tokens": 1_024}, None, ())),
        ("3-haiku-20240307", {"thinking": ADAPTIVE}, (None, None, ("thinking",))),
        ("3-haiku-20240307", {"output_config": {"effort": "low"}}, (None, None, ("output_config.effort",))),
        ("sonnet-4-5", {"thinking": BUDGET, "messages": CALLED}, (None, None, ("thinking",))),
        ("opus-4-7", {"temperature": 0.5, "top_k": 3}, (None, None, ("temperature", "top_k"))),
        ("sonnet-5-5", {"thinking": {"type": "disabled"}}, (None, None, ("thinking",))),
        ("opus-4-8", {"thinking": {"type": "disabled"}}, ({"type": "disabled"}, None, ())),
    ],
)
async def test_what_a_model_takes_is_unchanged_and_the_rest_gets_its_form_or_is_named(
    upstream: Upstream, model: str, fields: dict[str, Any], expected: Any
) -> None:
    assert shown(outgoing(upstream, f"anthropic/claude-{model}", fields)) == expected


FORCED: Any = {"type": "tool", "name": "f", "disable_parallel_tool_use": True}


@pytest.mark.parametrize(
    ("model", "sent", "left_out"),
    [
        ("opus-5-5", {"type": "auto", "disable_parallel_tool_use": True}, ("tool_choice",)),
        ("opus-4-8", FORCED, ()),
    ],
)
async def test_a_forced_tool_is_an_offered_one_for_a_claude_that_always_thinks(
    upstream: Upstream, model: str, sent: Any, left_out: Any
) -> None:
    """The choice of instructor, and of LangChain's structured output, which these models answer with a 400."""
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {}}}
    made = outgoing(upstream, f"anthropic/claude-{model}", {"tools": [tool], "tool_choice": FORCED})
    assert made.call.forwarded is not None
    assert (made.call.forwarded.body["tool_choice"], made.left_out) == (sent, left_out)
    named = {"type": "function", "function": {"name": "f"}}
    params = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": named}
    made = outgoing(upstream, f"anthropic/claude-{model}", {}, forwarded=None, params=params)
    assert made.left_out == left_out


async def test_the_operator_s_parameters_are_defaults_and_blocks(upstream: Upstream) -> None:
    defaults = {"reasoning_effort": "low", "temperature": 0.5}
    made = outgoing(upstream, "anthropic/claude-opus-4-6", {"stop_sequences": ["x"]}, defaults=defaults)
    assert made.call.forwarded is not None
    assert made.call.forwarded.body["temperature"] == 0.5
    assert shown(made)[1:] == ({"effort": "low"}, ())
    made = outgoing(upstream, "anthropic/claude-opus-4-6", {"thinking": {"type": "disabled"}}, defaults=defaults)
    assert shown(made) == ({"type": "disabled"}, None, ())
    made = outgoing(
        upstream, "anthropic/claude-opus-4-7", {"stop_sequences": ["x"], "output_config": {"effort": "low"}},
        defaults=defaults, dropped_params=frozenset({"stop", "reasoning_effort"}),
    )  # fmt: skip
    assert shown(made) == (None, None, ("output_config.effort", "stop_sequences"))
    with pytest.raises(CallRefused):
        outgoing(upstream, "anthropic/claude-3-haiku-20240307", {"thinking": ADAPTIVE}, drop_params=False)
    left = {"type": "tokens", "total": 40_000, "remaining": 30_000}
    made = outgoing(upstream, "anthropic/claude-opus-4-7", {"output_config": {"effort": "low"}}, task_budget=left)
    assert shown(made)[1] == {"task_budget": left, "effort": "low"}


@pytest.mark.parametrize(
    ("model", "fields", "more"),
    [
        ("bedrock/converse/anthropic.claude-sonnet-4-5-20250929-v1:0", {}, {}),
        ("bedrock/arn:aws:bedrock:us-east-1:1:application-inference-profile/a", {}, {}),
        ("bedrock/us.amazon.nova-pro-v1:0", {}, {}),
        ("bedrock/anthropic.claude-3-haiku-20240307-v1:0", {"output_config": SCHEMA}, {}),
        ("bedrock/anthropic.claude-opus-4-6-v1", {}, {"options": {"region_name": "us-east-1"}}),
        ("bedrock/anthropic.claude-opus-4-6-v1", {}, {"defaults": {"service_tier": "priority"}}),
        ("vertex_ai/gemini-2.5-pro", {}, {}),
        ("azure_ai/claude-opus-4-6", {}, {"api_key": None}),
        ("azure_ai/claude-opus-4-6", {}, {"options": {"tenant_id": "t"}}),
        ("anthropic/kimi-k2", {"output_config": SCHEMA}, {}),
        ("anthropic/claude-opus-4-7", {"messages": called("functions.f:0")}, {}),
        ("anthropic/sonnet", {"messages": called("functions.f:0")}, {"base_model": "claude-sonnet-4-5"}),
        ("anthropic/claude-opus-4-7", {}, {"lane": "litellm"}),
        ("anthropic/claude-opus-4-7", {}, {"defaults": {"extra_body": {"x": 1}}}),
        ("anthropic/claude-opus-4-7", {}, {"api_key": "sk-ant-oat01-x"}),
        ("anthropic/claude-opus-4-7", {}, {"api_key": None, "api_base": None}),
        ("anthropic/claude-3-haiku-20240307", {"output_config": SCHEMA}, {}),
        ("anthropic/claude-opus-4-8", {"messages": [{"role": "system", "content": "x"}, *HELLO]}, {}),
        ("anthropic/claude-opus-4-7", {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, {}),
    ],
)
async def test_what_claude_s_servers_would_refuse_or_others_serve_is_translated(
    upstream: Upstream, model: str, fields: dict[str, Any], more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    assert outgoing(upstream, model, fields, **more).call.forwarded is None


@pytest.mark.parametrize(("model", "kept"), [("claude-opus-4-7", ["tool_use"]), ("glm-4.6", ["thinking", "tool_use"])])
async def test_a_server_gets_the_thinking_that_its_models_can_have(
    upstream: Upstream, model: str, kept: list[str]
) -> None:
    """Claude signs its own; of the other models behind the dialect some do not. What is sealed is no server's."""
    sealed = sealed_state.seal({"reasoning_details": [{"type": "x"}]})
    history = called(
        "toolu_1", {"type": "thinking", "thinking": "a", "signature": sealed}, {"type": "text", "text": ""},
        {"type": "thinking", "thinking": "b", "signature": ""},
    )  # fmt: skip
    sent = outgoing(upstream, f"anthropic/{model}", {"messages": history}).call.forwarded
    assert sent is not None
    assert [block["type"] for block in sent.body["messages"][1]["content"]] == kept


async def test_a_model_of_another_name_is_sent_what_its_client_wrote(upstream: Upstream) -> None:
    fields = {
        "messages": called("functions.f:0", {"type": "thinking", "thinking": "b", "signature": ""}),
        "thinking": ADAPTIVE, "output_config": {"effort": "max"}, "temperature": 0.5, "top_k": 3,
        "stop_sequences": ["1", "2", "3", "4", "5"],
    }  # fmt: skip
    made = outgoing(upstream, "anthropic/kimi-k2", fields)
    assert made.call.forwarded is not None
    assert (made.call.forwarded.body.items() >= fields.items(), made.left_out) == (True, ())
    made = outgoing(upstream, "anthropic/kimi-k2", {}, defaults={"reasoning_effort": "high"})
    assert shown(made) == (ADAPTIVE, {"effort": "high"}, ())


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("MiniMax-M3", {"thinking": BUDGET}, (ADAPTIVE, {"effort": "high"}, ("thinking.budget_tokens",))),
        ("glm-5.2", {"thinking": BUDGET}, (BUDGET, None, ())),
        ("glm-4.6", {"thinking": ADAPTIVE}, ({"type": "enabled", "budget_tokens": 4_096}, None, ())),
        ("kimi-k2.6", {"thinking": ADAPTIVE, "messages": CALLED}, ({"type": "disabled"}, None, ("thinking",))),
        ("kimi-k2.6", {"messages": CALLED}, (None, None, ())),
        ("deepseek-v4-pro", {"messages": CALLED}, ({"type": "disabled"}, None, ())),
        ("deepseek-v4-pro", {"thinking": BUDGET}, (BUDGET, None, ())),
    ],
)
async def test_a_family_of_models_gets_the_thinking_that_it_takes(
    upstream: Upstream, model: str, fields: dict[str, Any], expected: Any
) -> None:
    """Kimi and DeepSeek refuse to think after an answer that called tools without one; DeepSeek thinks unasked."""
    assert shown(outgoing(upstream, f"anthropic/{model}", fields)) == expected


CLAUDE_CODE: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "fix the test"}]},
        {"role": "system", "content": "# Environment", "output_config": {"effort": "medium"}},
        *CALLED[1:],
        {"role": "system", "content": [
            {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "WebFetch"}}
        ]},
    ],
    "thinking": {"type": "adaptive", "display": "updates"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "tools": [
        {"name": "f", "input_schema": {"type": "object"}},
        {"name": "WebFetch", "input_schema": {"type": "object"}, "defer_loading": True},
    ],
}  # fmt: skip
"""What Claude Code 2.1.333 writes for Claude Opus 5.5, shortened; its betas, and one of Copilot CLI."""
CLAUDE_CODE_BETAS = (
    "claude-code-20250219", "interleaved-thinking-2025-05-14", "context-management-2025-06-27",
    "per-turn-control-2026-07-01", "mid-conversation-tool-changes-2026-07-01", "thinking-token-count-2026-05-13",
    "advanced-tool-use-2025-11-20", "effort-2025-11-24", "thinking-display-updates-2026-08-18",
    "thinking-binding-controls-2026-08-01",
)  # fmt: skip


async def test_system_messages_of_a_conversation_and_changes_of_tools_go_to_claude_as_written(
    upstream: Upstream,
) -> None:
    for model in ("claude-opus-5-5", "claude-opus-4-8", "glm-5.2"):
        made = outgoing(upstream, f"anthropic/{model}", CLAUDE_CODE, betas=",".join(CLAUDE_CODE_BETAS))
        assert made.call.forwarded is not None
        assert (made.call.forwarded.body.items() >= CLAUDE_CODE.items(), made.left_out) == (True, ()), model
        assert made.call.forwarded.betas == CLAUDE_CODE_BETAS
        counted = made.call.forwarded.beside_messages().tools
        assert [each.get("type") for each in counted] == [None, None, "tool_addition"]


async def test_a_claude_before_4_8_gets_system_messages_as_the_user_s_and_all_tools_at_once(upstream: Upstream) -> None:
    made = outgoing(upstream, "anthropic/claude-sonnet-4-6", CLAUDE_CODE, betas=",".join(CLAUDE_CODE_BETAS))
    assert made.call.forwarded is not None
    messages = made.call.forwarded.body["messages"]
    assert [message["role"] for message in messages] == ["user", "user", "assistant", "user"]
    assert messages[1]["content"][-1] == {"type": "text", "text": "# Environment"}
    assert "output_config" not in messages[1]
    assert made.left_out == ("messages", "messages[].role", "messages[].content", "messages[].output_config")
    waiting = [*CALLED[:2], {"role": "system", "content": "x"}, CALLED[2]]
    made = outgoing(upstream, "anthropic/claude-sonnet-4-6", {"messages": waiting})
    assert made.call.forwarded is not None
    assert made.call.forwarded.body["messages"][2] == CALLED[2], "a result follows its call"


async def test_an_effort_alone_is_a_message_for_claude_and_none_for_other_models(upstream: Upstream) -> None:
    lower = {"role": "system", "content": [], "output_config": {"effort": "low"}}
    fields = {"messages": [*HELLO, {"role": "assistant", "content": "hi"}, lower, *HELLO]}
    made = outgoing(upstream, "anthropic/claude-opus-5-5", fields, betas="mid-conversation-output-config-2026-07-01")
    assert made.call.forwarded is not None
    assert made.call.forwarded.body["messages"] == fields["messages"]
    read = messages_request.to_chat({"model": "m", "max_tokens": 9} | CLAUDE_CODE)
    assert [message["role"] for message in read.chat["messages"]] == ["user", "system", "assistant", "tool"]
    assert {"messages[].output_config", "messages[].content[].tool_addition"} <= set(read.dropped)
    read = messages_request.to_chat({"model": "m", "max_tokens": 9} | fields)
    assert [message["role"] for message in read.chat["messages"]] == ["user", "assistant", "user"]


async def test_a_tool_of_the_client_s_own_needs_no_type(upstream: Upstream) -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}}
    for model, sent in (("deepseek-v4-pro", tool), ("claude-opus-4-7", tool | {"type": "custom"})):
        made = outgoing(upstream, f"anthropic/{model}", {"tools": [tool | {"type": "custom"}]})
        assert made.call.forwarded is not None
        assert (made.call.forwarded.body["tools"], made.left_out) == ([sent], ())


async def test_betas_decide_which_fields_are_sent() -> None:
    body = {
        "model": "m", "max_tokens": 9, "messages": HELLO, "output_format": SCHEMA["format"],
        "context_management": {"edits": [{"type": "compact_20260112"}]},
    }  # fmt: skip
    plain = messages_request.to_chat(body).forwarded
    asked = messages_request.to_chat(body, betas="structured-outputs-2025-11-13,context-management-2025-06-27")
    assert plain is not None
    assert asked.forwarded is not None
    assert (plain.body["output_config"], plain.dropped) == (SCHEMA, ("context_management",))
    assert asked.forwarded.body["output_format"] == SCHEMA["format"]
    assert "context_management" not in asked.forwarded.body  # compaction is billed beside the answer
