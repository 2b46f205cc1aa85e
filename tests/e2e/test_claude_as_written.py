"""A Messages request to a Claude model reaches its host as it was written, and the answer its client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml

from tests.harness.dialects import Asked, DialectProvider, Spoken, as_events, as_json, invoked, spoken
from tests.harness.gateway import Served, config, serving
from tests.harness.provider_cases import AWS, google_account

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
INFO = {
    "input_cost_per_token": "0.000005", "output_cost_per_token": "0.000025",
    "cache_read_input_token_cost": "0.0000005", "cache_creation_input_token_cost": "0.00000625",
}  # fmt: skip
USAGE = {
    "input_tokens": 100, "cache_creation_input_tokens": 1_000, "cache_read_input_tokens": 2_000, "output_tokens": 40,
}  # fmt: skip
BILL = 100 * 5_000 + 1_000 * 6_250 + 2_000 * 500 + 40 * 25_000
"""8,750,000 nano-USD."""
BLOCKS: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "first", "signature": "S1"},
    {"type": "text", "text": "Looking."},
    {"type": "thinking", "thinking": "second", "signature": "S2"},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "x"}},
]
CUT_AT = 5
"""Events of a stream that breaks off: its start, and the first words of thinking."""
CHAT_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
LOOK = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}
BETAS = {"anthropic-beta": "interleaved-thinking-2025-05-14,context-1m-2025-08-07,context-management-2025-06-27"}
QUESTION: dict[str, Any] = {"role": "user", "content": "What is at x?"}


@dataclass(slots=True)
class Scene:
    gateway: Served
    http: httpx.AsyncClient
    provider: DialectProvider
    stop: dict[str, Any] = field(default_factory=dict)

    async def ask(self, body: dict[str, Any], session_id: str, **headers: str) -> httpx.Response:
        """The answer to a turn, which is served."""
        headers |= {"X-Session-Id": session_id, "X-Session-Budget-USD": "50"}
        made = await self.http.post("/v1/messages", json={"max_tokens": 4_000, **body}, headers=headers)
        assert made.status_code == 200, made.text
        return made

    @property
    def sent(self) -> dict[str, Any]:
        return self.provider.asked[-1].body

    async def billed(self, session_id: str) -> list[int]:
        await self.gateway.settled()
        rows = (await self.http.get("/admin/ledger", params={"session": session_id})).json()["data"]
        return [abs(row["amount_nano_usd"]) for row in rows if row["kind"] == "settle"]


def streamed(stop: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of the answer."""
    start: dict[str, Any] = {"id": "msg_p", "type": "message", "role": "assistant", "model": "claude", "content": []}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start | {"usage": USAGE | {"output_tokens": 1}}},
        {"type": "ping"},
    ]
    for index, block in enumerate(BLOCKS):
        at = {"index": index}
        if block["type"] == "thinking":
            opened: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
        elif block["type"] == "text":
            opened, deltas = {"type": "text", "text": ""}, [{"type": "text_delta", "text": block["text"]}]
        else:
            opened = block | {"input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        events.append({"type": "content_block_start", **at, "content_block": opened})
        events += [{"type": "content_block_delta", **at, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", **at})
    events.append({"type": "message_delta", "delta": stop, "usage": {"output_tokens": USAGE["output_tokens"]}})
    return [*events, {"type": "message_stop"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: Any) -> AsyncIterator[Scene]:
    stop: dict[str, Any] = {}

    def answer(asked: Asked) -> Spoken:
        if asked.path.endswith("/token"):
            return spoken(asked)
        if asked.path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": "Well.", "reasoning_content": "Hm."}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return as_json({"id": "x", "object": "chat.completion", "choices": choices, "usage": CHAT_USAGE})
        if asked.path.endswith("/invoke-with-response-stream"):
            return invoked(streamed(stop)[: CUT_AT if "cut" in stop else None])
        if asked.streamed:
            return as_events(*streamed(stop)[: CUT_AT if "cut" in stop else None])
        whole = {"id": "msg_p", "type": "message", "role": "assistant", "model": "claude", "content": BLOCKS}
        return as_json(whole | {"usage": USAGE} | stop)

    folder: Path = tmp_path_factory.mktemp("claude")
    async with DialectProvider(answering=answer) as provider:
        path = config(folder, provider.address, session={"max_budget_usd": 1000, "default_budget_usd": 100})
        tree: dict[str, Any] = yaml.safe_load(path.read_text())
        levels = {"efforts": {"low": 0.3, "high": 0.9}}
        google = {"vertex_project": "p", "vertex_location": "us-east5", "vertex_credentials": google_account(provider)}
        elsewhere = {
            "bedrock": {"model": "bedrock/us.anthropic.claude-opus-4-7", "api_base": provider.address} | AWS,
            "vertex": {"model": "vertex_ai/claude-opus-4-7", "api_base": provider.address} | google,
            "azure": {"model": "azure_ai/claude-opus-4-7", "api_base": provider.address, "api_key": "sk-x"},
        }  # fmt: skip
        tree["model_list"] = [
            {"model_name": name, "litellm_params": params, "model_info": INFO} for name, params in elsewhere.items()
        ]
        tree["model_list"] += [
            {
                "model_name": name,
                "litellm_params": {"model": model, "api_base": provider.address + base, "api_key": "sk-x"},
                "model_info": INFO | more,
            }
            for name, model, base, more in (
                ("opus", "anthropic/claude-opus-4-7", "", {}),
                ("sonnet", "anthropic/claude-sonnet-4-5", "", {}),
                ("levels", "anthropic/claude-opus-4-6", "", levels),
                ("glm", "anthropic/glm-4.6", "/api/anthropic", {"supports_vision": True}),
                ("old", "anthropic/claude-3-haiku-20240307", "", {"supports_reasoning": True}),
                ("vllm", "hosted_vllm/qwen", "/v1", {"supports_vision": True, "supports_reasoning": True}),
            )
        ]
        path.write_text(yaml.safe_dump(tree))
        async with serving(path) as gateway, gateway.http() as http:
            yield Scene(gateway, http, provider, stop)
            await gateway.audit()


def heard(text: str) -> list[dict[str, Any]]:
    """The data of a stream's events."""
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


KEPT_BETAS = ["context-management-2025-06-27", "interleaved-thinking-2025-05-14"]
"""Of the three, those without a price of their own."""
MODEL_PATH = "/v1/projects/p/locations/us-east5/publishers/anthropic/models/claude-opus-4-7"


def at_host(host: str, body: dict[str, Any], stream: bool) -> tuple[str, dict[str, Any], list[str]]:
    """The path and body that reach a host, and the betas beside them."""
    told = {"stream": True} if stream else {}
    if host in ("opus", "azure"):
        path = "/v1/messages" if host == "opus" else "/anthropic/v1/messages"
        return path, body | {"model": "claude-opus-4-7"} | told, KEPT_BETAS
    *earlier, last = body["messages"]
    *results, result = last["content"]
    marked = {**last, "content": [*results, {**result, "cache_control": body["cache_control"]}]}
    body = {name: value for name, value in body.items() if name not in ("model", "cache_control")}
    body["messages"] = [*earlier, marked]
    if host == "vertex":
        path = f"{MODEL_PATH}:streamRawPredict?alt=sse" if stream else f"{MODEL_PATH}:rawPredict"
        return path, body | {"anthropic_version": "vertex-2023-10-16"} | told, KEPT_BETAS
    betas = [KEPT_BETAS[0], "fine-grained-tool-streaming-2025-05-14"]  # eager_input_streaming is a beta there
    version = {"anthropic_version": "bedrock-2023-05-31", "anthropic_beta": betas, "tools": [LOOK]}
    path = f"/model/us.anthropic.claude-opus-4-7/invoke{'-with-response-stream' if stream else ''}"
    return path, body | version, []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("host", ["opus", "bedrock", "vertex", "azure"])
async def test_a_conversation_with_tools_goes_to_claude_and_back_unchanged(
    scene: Scene, host: str, stream: bool
) -> None:
    scene.stop.update({"stop_reason": "stop_sequence", "stop_sequence": "END6"})
    answered = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True,
         "content": [{"type": "text", "text": "boom"}, PICTURE]},
    ]  # fmt: skip
    body: dict[str, Any] = {
        "model": host, "cache_control": {"type": "ephemeral"}, "tools": [LOOK | {"eager_input_streaming": True}],
        "thinking": {"type": "adaptive"}, "output_config": {"effort": "max"},
        "stop_sequences": ["END1", "END2", "END3", "END4", "END5", "END6"], "max_tokens": 4_000,
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
        "messages": [QUESTION, {"role": "assistant", "content": BLOCKS}, {"role": "user", "content": answered}],
    }  # fmt: skip
    made = await scene.ask(body | {"stream": stream}, f"{host}-{stream}", **BETAS)
    path, expected, betas = at_host(host, body, stream)
    asked = scene.provider.asked[-1]
    assert (asked.path, asked.body) == (path, expected)
    assert sorted(filter(None, asked.headers.get("anthropic-beta", "").split(","))) == betas
    assert made.headers["x-seqroute-dropped"] == "anthropic-beta"
    if stream:
        events = heard(made.text)
        wanted = streamed(scene.stop)
        assert [event["type"] for event in events] == [event["type"] for event in wanted]
        assert events[2:-2] == wanted[2:-2]
        assert (events[-2]["delta"], events[0]["message"]["model"]) == (scene.stop, host)
    else:
        answer = made.json()
        assert (answer["content"], answer["model"]) == (BLOCKS, host)
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "END6")
        assert {name: answer["usage"][name] for name in USAGE} == USAGE
    assert await scene.billed(f"{host}-{stream}") == [BILL]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_with_another_model_of_the_dialect_is_not_changed_either(
    scene: Scene, stream: bool
) -> None:
    """Its thinking may have no signature, and its calls ids of its own."""
    scene.stop.update({"stop_reason": "stop_sequence", "stop_sequence": "END6"})
    unsigned = [{**block, "signature": ""} if block["type"] == "thinking" else block for block in BLOCKS[:3]]
    called = {"type": "tool_use", "id": "functions.look:0", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "functions.look:0", "is_error": True, "content": [PICTURE]}
    body: dict[str, Any] = {
        "model": "glm", "tools": [LOOK | {"cache_control": {"type": "ephemeral"}}],
        "thinking": {"type": "enabled", "budget_tokens": 2_000}, "stop_sequences": [f"END{n}" for n in range(7)],
        "messages": [
            QUESTION, {"role": "assistant", "content": [*unsigned, called]}, {"role": "user", "content": [result]}
        ],
    }  # fmt: skip
    made = await scene.ask(body | {"stream": stream}, f"glm-{stream}")
    assert scene.sent == body | {"model": "glm-4.6", "max_tokens": 4_000} | ({"stream": True} if stream else {})
    assert scene.provider.asked[-1].path == "/api/anthropic/v1/messages"
    assert "x-seqroute-dropped" not in made.headers
    if stream:
        assert heard(made.text)[2:-2] == streamed(scene.stop)[2:-2]
    else:
        assert (made.json()["content"], made.json()["stop_sequence"]) == (BLOCKS, "END6")
    assert await scene.billed(f"glm-{stream}") == [BILL]


@pytest.mark.parametrize("host", ["opus", "glm", "bedrock", "vertex", "azure"])
async def test_a_stream_that_breaks_off_is_an_error_and_billed_as_reported_so_far(scene: Scene, host: str) -> None:
    scene.stop["cut"] = True
    made = await scene.ask({"model": host, "messages": [QUESTION], "stream": True}, f"cut-{host}")
    del scene.stop["cut"]
    assert heard(made.text)[-1]["type"] == "error"
    [bill] = await scene.billed(f"cut-{host}")
    # The prompt and its cache as reported, and a few words of thinking by our own count.
    assert BILL - 40 * 25_000 < bill <= BILL - 30 * 25_000


@pytest.mark.parametrize(
    ("host", "tool", "served"),
    [
        ("bedrock", {"type": "bash_20250124", "name": "bash"}, True),
        ("bedrock", {"type": "web_search_20250305", "name": "web_search"}, False),
        ("vertex", {"type": "web_search_20250305", "name": "web_search", "max_uses": 1}, True),
        ("vertex", {"type": "code_execution_20250825", "name": "code_execution"}, False),
        ("azure", {"type": "code_execution_20250825", "name": "code_execution"}, True),
    ],
)  # fmt: skip
async def test_a_tool_of_anthropic_s_goes_to_the_hosts_that_have_it_and_is_else_refused_by_name(
    scene: Scene, host: str, tool: dict[str, Any], served: bool
) -> None:
    scene.stop.update({"stop_reason": "end_turn", "stop_sequence": None})
    before = len(scene.provider.asked)
    body = {"model": host, "messages": [QUESTION], "tools": [LOOK, tool], "max_tokens": 4_000}
    made = await scene.http.post("/v1/messages", json=body)
    if served:
        assert (made.status_code, scene.sent["tools"]) == (200, [LOOK, tool]), made.text
    else:
        assert made.status_code == 400
        assert made.json()["error"]["message"].startswith(f'tools[1].type: "{tool["type"]}"')
        assert len(scene.provider.asked) == before


async def test_an_unusual_end_keeps_its_reason(scene: Scene) -> None:
    scene.stop.clear()
    scene.stop.update({"stop_reason": "model_context_window_exceeded", "stop_sequence": None})
    made = await scene.ask({"model": "opus", "messages": [QUESTION]}, "end")
    assert made.json()["stop_reason"] == "model_context_window_exceeded"
    made = await scene.ask({"model": "opus", "messages": [QUESTION], "stream": True}, "end")
    assert heard(made.text)[-2]["delta"] == scene.stop


async def test_a_session_that_began_elsewhere_goes_on_at_claude_without_foreign_thinking(scene: Scene) -> None:
    scene.stop.clear()
    scene.stop.update({"stop_reason": "end_turn", "stop_sequence": None})
    first = (await scene.ask({"model": "vllm", "messages": [QUESTION]}, "moves")).json()
    assert [block["type"] for block in first["content"]] == ["thinking", "text"]
    history = [QUESTION, {"role": "assistant", "content": first["content"]}, {"role": "user", "content": "And y?"}]
    await scene.ask({"model": "opus", "messages": history}, "moves")
    assert scene.sent["messages"][1]["content"] == [{"type": "text", "text": "Well."}]
    back = [*history, {"role": "assistant", "content": BLOCKS[:2]}, {"role": "user", "content": "And z?"}]
    told = await scene.ask(
        {"model": "vllm", "messages": back, "output_config": {"effort": "max"}, "thinking": {"type": "adaptive"}},
        "moves",
    )
    assert [message["role"] for message in scene.sent["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert scene.sent["reasoning_effort"] == "high"
    assert "output_config.effort" in told.headers["x-seqroute-dropped"]


async def test_the_router_s_effort_reaches_claude_in_its_own_words(scene: Scene) -> None:
    for aversion, effort in (("0", "high"), ("1000000", "low")):
        headers = {"X-Route-Lambda": aversion, "X-Route-Explore": "off"}
        made = await scene.ask({"model": "levels", "messages": [QUESTION]}, f"e-{effort}", **headers)
        assert made.headers["x-seqroute-effort"] == effort
        assert scene.sent["output_config"] == {"effort": effort}
        assert scene.sent["thinking"]["type"] == "adaptive"
    own = {"thinking": {"type": "enabled", "budget_tokens": 2_000}, "output_config": {"effort": "xhigh"}}
    made = await scene.ask({"model": "levels", "messages": [QUESTION]} | own, "e-own")
    assert scene.sent["thinking"] == own["thinking"]


async def test_the_budget_s_note_and_the_last_answer_s_are_added(scene: Scene) -> None:
    asked = {"model": "sonnet", "system": "Be brief.", "messages": [QUESTION], "tools": [LOOK]}
    await scene.ask(asked, "note", **{"X-Budget-Visible": "true"})
    first, note = scene.sent["system"]
    assert first == {"type": "text", "text": "Be brief."}
    assert note["text"].startswith("Budget of this session: ")
    await scene.ask(asked | {"model": "opus"}, "task", **{"X-Budget-Visible": "task_budget"})
    assert scene.sent["system"] == "Be brief." or "output_config" not in scene.sent
    assert scene.sent["tools"] == [LOOK]
