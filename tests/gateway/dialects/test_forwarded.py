"""Requests in their own dialect: what is refused, shared, heard and echoed."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.catalog.hosted_tools import PROVIDER_FILES
from gateway.catalog.tokens import TokenCounter
from gateway.catalog.usage import Usage
from gateway.dialects import messages_request, responses_request, sealed_state
from gateway.dialects.dialect import AnswerIdentity, Billed
from gateway.dialects.forwarded import FORWARDED, ForwardedRequest
from gateway.dialects.messages import MessagesDialect
from gateway.dialects.request import with_forwarded
from gateway.dialects.responses import ForwardedStream
from gateway.dialects.responses_answer import ResponseObject, ResponsesStream
from gateway.errors import InvalidRequest
from gateway.providers.parameters import takes_effort
from gateway.routing.estimates import is_forwarded
from tests.harness.models import chat, deployment, model

SEARCH: Any = {"type": "web_search"}
CODEX: Any = {"type": "web_search", "external_web_access": False}
WEB: Any = {"type": "web_search_20250305", "name": "web_search"}
FETCH: Any = {"type": "web_fetch_20250910", "name": "web_fetch"}
INTERPRETER = "code_interpreter"


def responses(tools: list[Any], items: Any = "q", **fields: Any) -> ForwardedRequest:
    made = responses_request.to_chat({"model": "m", "input": items, "tools": tools, **fields}).forwarded
    assert made is not None
    return made


def messages(tools: list[Any], **fields: Any) -> ForwardedRequest:
    body: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "q"}]}
    made = messages_request.to_chat({**body, "tools": tools, **fields}).forwarded
    assert made is not None
    return made


def test_codex_s_search_is_left_out_where_the_history_cannot_go_to_openai() -> None:
    sealed = sealed_state.seal({"thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}]})
    items = [
        {"role": "user", "content": "q"},
        {"type": "reasoning", "summary": [], "encrypted_content": sealed},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "q"},
    ]
    read = responses_request.to_chat({"model": "m", "input": items, "tools": [CODEX]})
    assert (read.forwarded, read.dropped) == (None, ("tools.web_search",))
    with pytest.raises(InvalidRequest, match="another provider's answer"):
        responses_request.to_chat({"model": "m", "input": items, "tools": [SEARCH]})


@pytest.mark.parametrize(
    ("tool", "where"),
    [
        ({"type": INTERPRETER, "container": {"type": "auto", "memory_limit": "64g"}}, "container"),
        ({"type": "shell", "environment": {"type": "container_auto", "memory_limit": "4g"}}, "environment"),
    ],
)
def test_a_container_of_another_price_is_refused_by_name(tool: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"tools\[0\]\.{where}\.memory_limit"):
        responses([tool])
    tool[where]["memory_limit"] = "1g"
    assert responses([tool]).reference is None


@pytest.mark.parametrize(
    ("tool", "where"),
    [
        ({"type": "file_search", "vector_store_ids": ["vs_1"]}, "vector_store_ids"),
        ({"type": INTERPRETER, "container": "cntr_1"}, "container"),
        ({"type": INTERPRETER, "container": {"type": "auto", "file_ids": ["file-1"]}}, "container.file_ids"),
        ({"type": "shell", "environment": {"type": "container_reference", "container_id": "c"}},
         "environment.container_id"),
        ({"type": "image_generation", "input_image_mask": {"file_id": "file-1"}}, "input_image_mask.file_id"),
    ],
)  # fmt: skip
def test_what_a_tool_names_of_the_operator_s_account_needs_his_word(tool: dict[str, Any], where: str) -> None:
    made = responses([tool])
    assert made.reference == f"tools[0].{where}"
    assert PROVIDER_FILES in made.needs
    assert f"tools[0].{where}: files, stores and containers at OpenAI" in made.refusal().message


def test_the_environment_of_a_computer_is_a_word() -> None:
    screen = {"type": "computer_use_preview", "display_width": 800, "display_height": 600, "environment": "browser"}
    assert responses([screen]).reference is None
    assert responses([screen]).body["tools"] == [screen]
    assert responses([{"type": "shell", "environment": "browser"}]).reference == "tools[0].environment"


def test_ids_in_a_history_need_the_operator_s_word_but_for_those_kept_here() -> None:
    ran = {"type": "code_interpreter_call", "id": "ci_1", "container_id": "cntr_1", "code": "1", "outputs": []}
    shot = {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "file_id": "f"}}
    image = {"type": "image_generation_call", "id": "ig_1"}
    auto = {"type": INTERPRETER, "container": {"type": "auto"}}
    for item, path in ((ran, "container_id"), (shot, "output.file_id"), (image, "id")):
        assert responses([auto], [item]).reference == f"input[0].{path}"
    fields = {"model": "m", "input": "q", "tools": [auto]}
    kept = responses_request.to_chat(fields, earlier=[ran]).forwarded
    assert kept is not None
    assert kept.reference is None


def test_messages_name_no_container_and_no_file() -> None:
    assert messages([WEB]).reference is None
    assert messages([WEB], container="container_1").reference == "container"
    document = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    result = {"type": "web_fetch_tool_result", "tool_use_id": "s", "content": {"content": document}}
    asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [result]}]
    assert messages([WEB], messages=asked).reference == "messages[1].content[0]"


@pytest.mark.parametrize(
    ("asked", "most", "shares"),
    [
        ((None, None), 5, [3, 2]),
        ((None, None), 1, [1]),
        ((6, 1), 7, [6, 1]),
        ((4, 3), 7, [4, 3]),
        ((9, 9), 4, [2, 2]),
        ((2, None), 5, [2, 3]),
    ],
)
def test_limited_tools_share_the_calls_that_are_held_for(
    asked: tuple[int | None, int | None], most: int, shares: list[int]
) -> None:
    tools = [{**tool, "max_uses": uses} if uses else tool for tool, uses in zip((WEB, FETCH), asked, strict=True)]
    made = messages(tools, tool_choice={"type": "tool", "name": "web_fetch"})
    sent = made.outgoing("m", 9, most, stream=False, notes=())
    assert [tool["max_uses"] for tool in sent["tools"]] == shares
    assert ("tool_choice" in sent) == (len(shares) == 2)


def test_a_closing_request_has_no_mcp_server() -> None:
    server = {"type": "url", "url": "https://mcp.test", "name": "s"}
    toolset = {"type": "mcp_toolset", "mcp_server_name": "s"}
    alone = messages([], mcp_servers=[server]).closing().body
    assert not {"mcp_servers", "tools", "tool_choice"} & alone.keys()
    beside = messages([toolset, WEB], mcp_servers=[server]).closing()
    assert (beside.body["tools"], beside.body["tool_choice"]) == ([WEB], {"type": "none"})
    assert "messages_api.web_search" in beside.needs


def test_what_the_prompt_s_count_would_miss_is_told() -> None:
    server = {"type": "url", "url": "https://mcp.test", "name": "s"}
    assert messages([WEB], mcp_servers=[server]).beside_messages().tools == [WEB, server]
    image = {"type": "image_generation_call", "id": "ig_1", "result": "aGk="}
    beside = responses([SEARCH], [image, image]).beside_messages()
    assert (list(beside.tools), len(beside.pictures)) == ([SEARCH], 2)


def test_a_stream_says_which_calls_it_brought() -> None:
    reader = responses([SEARCH]).reader()
    items: list[dict[str, Any]] = [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "code_interpreter_call", "container_id": "c"},
        {"type": "code_interpreter_call", "container_id": "c"},
        {"type": "message"},
    ]
    chunks = [reader.chunks({"type": "response.output_item.done", "item": item})[0] for item in items]
    assert chunks[-1]["usage"] == {"heard_calls": {"web_search": 1, "code_interpreter": 1, "steps": 4}}
    assert chunks[-1]["choices"]
    reader = messages([WEB]).reader()
    found = {"type": "web_search_tool_result", "content": []}
    failed = {"type": "web_search_tool_result", "content": {"type": "web_search_tool_result_error"}}
    ran = {"type": "bash_code_execution_tool_result", "content": {}}
    for block in (found, failed, ran):
        *_, chunk = reader.chunks({"type": "content_block_start", "index": 0, "content_block": block})
    assert chunk["usage"] == {"heard_calls": {"web_search": 1, "steps": 3}}


def test_blocks_that_a_server_does_not_end_are_ended_for_the_client() -> None:
    begin = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}
    events: list[dict[str, Any]] = [begin | {"index": 0}, begin | {"index": 1}, {"type": "message_delta", "delta": {}}]
    reader = messages([WEB]).reader()
    sent = [chunk[FORWARDED] for event in events for chunk in reader.chunks(event) if FORWARDED in chunk]
    ends = [{"type": "content_block_stop", "index": index} for index in (0, 1)]
    assert sent == [events[0], ends[0], events[1], ends[1], events[2]]
    whole = messages([WEB]).reader()
    assert [chunk[FORWARDED] for event in sent for chunk in whole.chunks(event) if FORWARDED in chunk] == sent


def test_blocks_that_a_server_ends_late_end_once() -> None:
    begin = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}
    starts: list[dict[str, Any]] = [begin | {"index": index} for index in (0, 1)]
    ends = [{"type": "content_block_stop", "index": index} for index in (0, 1)]
    last: dict[str, Any] = {"type": "message_delta", "delta": {}}
    reader = messages([WEB]).reader()
    sent = [
        chunk[FORWARDED]
        for event in [*starts, ends[0], last, ends[1]]
        for chunk in reader.chunks(event)
        if FORWARDED in chunk
    ]
    assert sent == [starts[0], ends[0], starts[1], ends[1], last]


def test_the_client_s_own_words_are_echoed() -> None:
    request = responses_request.to_chat({"model": "m", "input": "q", "tools": [SEARCH], "max_tool_calls": 9})
    answer = AnswerIdentity("dec_1", "ours", 1, 1)
    plain = ResponsesStream(ResponseObject("dec_1", "ours", 1, request.echoed, {}, store=True))
    stream = ForwardedStream(answer, request, plain)
    told = {
        "instructions": "note", "max_tool_calls": 2, "max_output_tokens": 50, "prompt_cache_key": "k",
        "tools": [], "output": [], "model": "theirs", "status": "completed",
    }  # fmt: skip
    stream.chunk({"forwarded": {"type": "response.created", "sequence_number": 0, "response": told}})
    shown = stream._begun
    assert (shown["max_tool_calls"], shown["tools"], shown["model"]) == (9, [SEARCH], "ours")
    assert [shown[name] for name in ("instructions", "max_output_tokens", "prompt_cache_key")] == [None] * 3


def test_a_model_without_searches_or_a_certain_api_gets_the_translation() -> None:
    optional = responses_request.to_chat({"model": "m", "input": "q", "tools": [CODEX]}).forwarded
    assert optional is not None
    asked = with_forwarded(chat("q"), optional)
    both = frozenset({"responses_api", "responses_api.web_search"})
    certain = (deployment("a", api_stated=True),)
    assert is_forwarded(asked, model(capabilities=both, deployments=certain))
    assert not is_forwarded(asked, model(capabilities=both))
    assert not is_forwarded(asked, model(capabilities=frozenset({"responses_api"}), deployments=certain))
    needed = with_forwarded(chat("q"), responses([SEARCH]))
    assert is_forwarded(needed, model(capabilities=both))


async def test_tools_of_a_provider_s_own_count_as_more_than_their_text() -> None:
    counter = TokenCounter()
    plain = await counter.count([], {"tools": [{"type": "function"}]})
    own = await counter.count([], {"tools": [{"type": "computer"}]})
    mcp = await counter.count([], {"tools": [{"type": "mcp"}]})
    await counter.close()
    assert own.bound - plain.bound >= 1_234
    assert mcp.bound - plain.bound >= 8_000


def test_a_message_with_hosted_tools_has_no_effort_to_choose() -> None:
    assert not takes_effort(deployment("a"), with_forwarded(chat("q"), messages([WEB])))
    assert takes_effort(deployment("a"), with_forwarded(chat("q"), responses([SEARCH])))


def test_counts_in_texts_of_passed_on_answers_reach_the_client_as_numbers() -> None:
    answer, billed = AnswerIdentity("dec_1", "ours", 1, 1), Billed(Usage(9, 3), False, dict)
    told, expected = {"input_tokens": "9", "output_tokens": 3}, {"input_tokens": 9, "output_tokens": 3}
    messages = MessagesDialect(forwarded=True)
    assert messages.whole(answer, {FORWARDED: {"usage": told}}, billed)["usage"] == expected
    stream = messages.stream(answer)
    started = stream.chunk({FORWARDED: {"type": "message_start", "message": {"usage": told}}})
    stream.chunk({FORWARDED: {"type": "message_delta", "delta": {}, "usage": told}})
    assert b'"usage":{"input_tokens":9,"output_tokens":3}' in started
    assert b'"usage":{"input_tokens":9,"output_tokens":3}' in stream.end(billed, None)
    request = responses_request.to_chat({"model": "m", "input": "q", "tools": [SEARCH]})
    plain = ResponsesStream(ResponseObject("dec_1", "ours", 1, request.echoed, {}, store=True))
    passed = ForwardedStream(answer, request, plain)
    passed.chunk({FORWARDED: {"type": "response.completed", "response": {"usage": told}}})
    passed.end(billed, None)
    assert passed.ended is not None
    assert passed.ended["usage"] == expected


def test_citations_made_here_do_not_go_to_claude_and_its_own_do() -> None:
    own = {"type": "char_location", "cited_text": "said", "document_index": 0, "document_title": None}
    made = {"type": "web_search_result_location", "url": "https://a.test", "cited_text": "", "encrypted_index": ""}
    text = {"type": "text", "text": "x"}
    blocks = [text | {"citations": [made]}, text | {"citations": [made, own]}, text | {"citations": [own]}, text]
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": "q"},
    ]
    sent = messages([WEB], messages=turns).body["messages"]
    assert sent[1]["content"] == [text, text | {"citations": [own]}, text | {"citations": [own]}, text]
