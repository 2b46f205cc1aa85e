"""Events of a Responses stream that its server left out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.responses_events import ResponsesEvents
from tests.gateway.providers.test_responses_route import ANSWER, CALL, MESSAGE, events, response
from tests.harness.forwarded_answers import forwarded_events

NOTE = {"type": "url_citation", "url": "https://x.test"}
CUSTOM = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "patch", "input": "a"}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
REFUSAL = MESSAGE | {"id": "msg_2", "content": [{"type": "refusal", "refusal": "No."}]}
NOTED = MESSAGE | {"id": "msg_3", "content": [{"type": "output_text", "text": "See", "annotations": [NOTE]}]}
THOUGHT = {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]}


def completed(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stream = ResponsesEvents()
    return [event for each in given for event in stream.of(each)]


def deltas(stream: list[dict[str, Any]], kind: str) -> str:
    return "".join(event["delta"] for event in stream if event["type"] == f"response.{kind}.delta")


def test_a_complete_stream_is_passed_on_as_it_is() -> None:
    stream = [event for event, _ in forwarded_events("responses", "m", ["Hel", "lo"], lambda: None, "stop")]
    assert completed(stream) == stream


@pytest.mark.parametrize(
    ("item", "kind", "text"),
    [
        (MESSAGE, "output_text", "Hello"), (CALL, "function_call_arguments", CALL["arguments"]),
        (CUSTOM, "custom_tool_call_input", "a"), (REFUSAL, "refusal", "No."), (NOTED, "output_text", "See"),
        (THOUGHT, "reasoning_text", "so"), (ANSWER[0], "reasoning_summary_text", "hm"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("begun", [False, True])
def test_the_text_of_every_kind_of_item_is_a_delta(item: dict[str, Any], kind: str, text: str, begun: bool) -> None:
    start = [{"type": "response.created", "response": response([], "in_progress")}] if begun else []
    stream = completed([*start, {"type": "response.completed", "response": response([item])}])
    assert deltas(stream, kind) == text
    opened = next(event["item"] for event in stream if event["type"] == "response.output_item.added")
    assert [opened.get(name) or [] for name in ("content", "summary", "arguments", "input")] == [[]] * 4
    assert [event["type"] for event in stream[:2]] == ["response.created", f"response.{MIDDLE[begun]}"]
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))


MIDDLE = {False: "in_progress", True: "output_item.added"}


def test_an_annotation_has_an_event_and_an_item_of_a_hosted_tool_begins_and_ends() -> None:
    stream = completed([{"type": "response.completed", "response": response([SEARCH, NOTED])}])
    kinds = [event["type"].removeprefix("response.") for event in stream]
    assert kinds == [
        "created", "in_progress", "output_item.added", "output_item.done", "output_item.added", "content_part.added",
        "output_text.delta", "output_text.annotation.added", "output_text.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip


@given(
    left_out=st.sets(st.sampled_from([event["sequence_number"] for event in events()[1:-1]])), numbered=st.booleans()
)
def test_whatever_a_server_leaves_out_no_text_comes_twice(left_out: set[int], numbered: bool) -> None:
    """Half of the deltas of an item are as few as they are: what was said in part is not said again."""
    stream = [event for event in events() if event["sequence_number"] not in left_out]
    if not numbered:
        stream = [{name: value for name, value in e.items() if name != "sequence_number"} for e in stream]
    made = completed(stream)
    assert deltas(made, "output_text") in ("Hello", "Hel", "lo", "")
    assert deltas(made, "function_call_arguments") in (CALL["arguments"], '{"path"', ':"a"}', "")
    numbers = [event["sequence_number"] for event in made]
    assert numbers == sorted(set(numbers))
    if {4, 5} <= left_out and 6 not in left_out:
        assert deltas(made, "output_text") == "Hello"


def test_a_text_that_ends_without_deltas_is_one() -> None:
    at = {"output_index": 0, "item_id": "msg_1", "content_index": 0}
    done = {"type": "response.output_text.done", **at, "text": "Hello"}
    made = completed([done, {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE}])
    assert [event["type"] for event in made] == [
        "response.output_text.delta", "response.output_text.done", "response.output_item.done",
    ]  # fmt: skip
    assert made[0] | {"type": "", "sequence_number": 0} == {
        "type": "", "sequence_number": 0, **at, "delta": "Hello", "logprobs": [],
    }  # fmt: skip


CREATED = {"type": "response.created", "response": response([], "in_progress")}
TWO_PARTS = MESSAGE | {"content": [{"type": "output_text", "text": text} for text in ("one", "two")]}


def delta(text: str, kind: str = "output_text", **at: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", **at, "delta": text}


def ended(item: dict[str, Any], **at: Any) -> dict[str, Any]:
    return {"type": "response.output_item.done", **at, "item": item}


def last(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.completed", "response": response(list(items))}


@pytest.mark.parametrize("end", [{"output_index": 0}, {}])
@pytest.mark.parametrize(
    "begun",
    [
        [delta("Hel", item_id="a"), delta("lo", item_id="a")], [delta("Hello", item_id="a", output_index=0)],
        [delta("Hello", output_index=0)], [delta("Hel"), delta("lo")], [delta("lo", item_id="a")],
        [delta("Hel", item_id="a", output_index=0), delta("lo", item_id="c", output_index=0)],
        [delta("Hel", item_id="a"), {"type": "response.output_text.done", "item_id": "a", "text": "Hello"}],
    ],
)  # fmt: skip
def test_a_text_under_another_name_is_not_said_again(begun: list[dict[str, Any]], end: dict[str, Any]) -> None:
    said = "".join(each.get("delta", "") for each in begun)
    assert deltas(completed([CREATED, *begun, ended(MESSAGE, **end), last(MESSAGE)]), "output_text") == said
    assert deltas(completed([CREATED, *begun, last(MESSAGE)]), "output_text") == said


@pytest.mark.parametrize(
    "given",
    [
        [ended(THOUGHT, output_index=0), last(THOUGHT, MESSAGE)],
        [ended(THOUGHT, output_index=0), ended(MESSAGE, output_index=0), last(THOUGHT, MESSAGE)],
        [delta("so", "reasoning_text", item_id="rs_2", output_index=0), ended(MESSAGE, output_index=0), last(MESSAGE)],
        [delta("so", "reasoning_text"), last(THOUGHT, MESSAGE)],
        [ended(REFUSAL, output_index=0), ended(MESSAGE, output_index=0), last(REFUSAL, MESSAGE)],
    ],
)
def test_an_item_is_completed_whatever_was_said_of_others(given: list[dict[str, Any]]) -> None:
    made = completed([CREATED, *given])
    assert deltas(made, "output_text") == "Hello"
    assert deltas(made, "reasoning_text") in ("so", "")
    opened = [event["item"]["id"] for event in made if event["type"] == "response.output_item.added"]
    assert MESSAGE["id"] in opened
    assert len(opened) == len(set(opened))


@pytest.mark.parametrize("ends", [True, False])
def test_every_part_of_an_item_is_said_once(ends: bool) -> None:
    at: dict[str, Any] = {"output_index": 0, "item_id": TWO_PARTS["id"]}
    done = [
        {"type": "response.output_text.done", **at, "content_index": place, "text": text}
        for place, text in enumerate(("one", "two"))
    ]
    given = [CREATED, delta("one", **at, content_index=0), *(done if ends else ()), ended(TWO_PARTS, output_index=0)]
    assert deltas(completed([*given, last(TWO_PARTS)]), "output_text") == "onetwo"


def test_two_items_with_the_same_words_are_both_said() -> None:
    again = MESSAGE | {"id": "msg_9"}
    given = [delta("Hello", item_id=MESSAGE["id"], output_index=0), ended(MESSAGE, output_index=0)]
    assert deltas(completed([CREATED, *given, last(MESSAGE, again)]), "output_text") == "HelloHello"


@pytest.mark.parametrize("odd", [None, [], {}, 1.5])
def test_names_of_any_type_are_passed_on(odd: Any) -> None:
    at = {"item_id": odd, "output_index": odd, "content_index": odd}
    given = [delta("Hello", **at), ended(MESSAGE | {"id": odd}, output_index=odd), last(MESSAGE)]
    assert deltas(completed(given), "output_text") == "Hello"


def test_an_end_without_a_name_is_completed_for_its_text_alone() -> None:
    nameless = [{name: value for name, value in item.items() if name != "id"} for item in (SEARCH, MESSAGE)]
    made = completed([CREATED, *map(ended, nameless), last(*nameless)])
    assert deltas(made, "output_text") == "Hello"
    assert [event["type"] for event in made[:3]] == [
        "response.created", "response.output_item.done", "response.output_item.added",
    ]  # fmt: skip
