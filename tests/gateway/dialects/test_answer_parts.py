"""Chat deltas as a sequence of parts, whatever order a provider sends their fragments in."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.answer_parts import AnswerPart, AnswerParts, PartEvent, provider_id, whole_parts


def fed(*deltas: dict[str, Any]) -> tuple[list[AnswerPart], list[PartEvent]]:
    parts = AnswerParts("x")
    happened: list[PartEvent] = []
    for delta in deltas:
        happened += parts.feed(delta)
    happened += parts.finish()
    return parts.parts, happened


def fragment(arguments: str = "", *, index: int | None = 0, name: str | None = None, **fields: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"tool_calls": [{"function": function, **({} if index is None else {"index": index}), **fields}]}


def calls(parts: list[AnswerPart]) -> list[tuple[str, str, str]]:
    return [(part.id, part.name, part.text) for part in parts if part.kind == "tool"]


def test_each_part_is_closed_before_the_next_one_opens() -> None:
    parts, happened = fed(
        {"reasoning_content": "th"}, {"reasoning_content": "ink"}, {"content": "Hi"},
        fragment('{"a":1}', name="f", id="c1"), fragment('{"b":2}', index=1, name="g", id="c2"),
    )  # fmt: skip
    assert [(part.kind, part.text) for part in parts] == [
        ("reasoning", "think"), ("text", "Hi"), ("tool", '{"a":1}'), ("tool", '{"b":2}'),
    ]  # fmt: skip
    opened: list[int] = []
    for step, part, _ in happened:
        if step == "open":
            assert not opened
            opened.append(part.index)
        elif step == "close":
            assert opened.pop() == part.index
        else:
            assert opened == [part.index]
    assert not opened


def test_interleaved_fragments_of_parallel_calls_are_put_in_order() -> None:
    parts, _ = fed(
        fragment('{"a"', name="f", id="c1"), fragment('{"b"', index=1, name="g", id="c2"),
        fragment(":1}"), fragment(":2}", index=1),
    )  # fmt: skip
    assert calls(parts) == [("c1", "f", '{"a":1}'), ("c2", "g", '{"b":2}')]


def test_text_between_the_fragments_of_a_call_breaks_nothing() -> None:
    parts, _ = fed(fragment('{"a"', name="f", id="c1"), {"content": "meanwhile"}, fragment(":1}"))
    assert calls(parts) == [("c1", "f", '{"a":1}')]
    assert [part.text for part in parts if part.kind == "text"] == ["meanwhile"]


def test_text_that_waited_for_a_call_comes_before_the_text_after_it() -> None:
    parts, _ = fed(fragment("{", name="f", id="c1"), {"content": "one"}, fragment("}"), {"content": " two"})
    assert [part.text for part in parts if part.kind == "text"] == ["one two"]


def test_parallel_calls_that_all_claim_index_0_are_told_apart_by_their_ids() -> None:
    parts, _ = fed(fragment("{}", name="f", id="c1"), fragment("{}", name="g", id="c2"))
    assert calls(parts) == [("c1", "f", "{}"), ("c2", "g", "{}")]


def test_ids_that_clients_could_confuse_are_extended_and_mapped_back() -> None:
    """Equal ids of one answer, and those that the next answer has again: the function's name, a count."""
    pieces = [fragment("{}", name="f", id="c"), fragment("[]", index=1, name="f", id="c")]
    parts, _ = fed(*pieces, fragment("{}", index=2, name="f", id="f"), fragment("{}", index=3, name="g", id="0"))
    ids = [part.id for part in parts]
    assert ids == ["c", "c__sr_x_1", "f__sr_x_2", "0__sr_x_3"]
    assert [provider_id(each) for each in ids] == ["c", "c", "f", "0"]


def test_calls_of_a_complete_answer_with_one_id_stay_two() -> None:
    made = [{"id": "f", "function": {"name": "f", "arguments": text}} for text in ("{1}", "{2}")]
    whole = {"choices": [{"index": 0, "message": {"tool_calls": made}}]}
    assert calls(whole_parts(whole, "x")) == [("f__sr_x_0", "f", "{1}"), ("f__sr_x_1", "f", "{2}")]


def test_equal_calls_without_ids_get_different_ones() -> None:
    parts, _ = fed({"tool_calls": [{"index": at, "function": {"name": "f", "arguments": "{}"}} for at in (0, 1)]})
    assert calls(parts) == [("call_x_0", "f", "{}"), ("call_x_1", "f", "{}")]


def test_calls_without_index_and_id_get_ids_of_ours() -> None:
    parts, _ = fed(fragment("{}", index=None, name="f"))
    assert calls(parts) == [("call_x_0", "f", "{}")]


def test_arguments_sent_as_an_object_become_json() -> None:
    parts, _ = fed({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": {"a": 1}}}]})
    assert calls(parts) == [("c", "f", '{"a":1}')]


def test_signed_thinking_keeps_its_signature_block_by_block() -> None:
    parts, _ = fed(
        {"reasoning_content": "one", "thinking_blocks": [{"type": "thinking", "thinking": "one", "signature": ""}]},
        {"reasoning_content": "", "thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "S1"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "two", "signature": "S2"}]},
        {"thinking_blocks": [{"type": "redacted_thinking", "data": "R"}]},
        {"content": "x"},
    )
    assert [(part.kind, part.text, part.signature) for part in parts] == [
        ("reasoning", "one", "S1"), ("reasoning", "two", "S2"), ("state", "", ""), ("text", "x", ""),
    ]  # fmt: skip


def test_streamed_reasoning_details_are_joined_by_their_index() -> None:
    text = {"type": "reasoning.text", "index": 0}
    parts, _ = fed(
        {"reasoning": "a", "reasoning_details": [text | {"text": "a"}]},
        {"reasoning": "b", "reasoning_details": [text | {"text": "b", "signature": "S"}]},
        {"content": "x"},
    )
    assert parts[0].state == {"reasoning_details": [text | {"text": "ab", "signature": "S"}]}


def test_a_thought_signature_comes_before_its_call() -> None:
    signature = {"google": {"thought_signature": "S"}}
    parts, _ = fed(fragment("{}", name="f", id="c1", extra_content=signature))
    assert [(part.kind, part.state) for part in parts] == [
        ("state", {"extra_content": {"c1": signature}}),
        ("tool", {}),
    ]


FUNCTIONS = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", ""])},
    optional={"arguments": st.sampled_from(["{", "}", '{"a":', "1}", ""])},
)
FRAGMENTS = st.fixed_dictionaries(
    {"function": FUNCTIONS}, optional={"index": st.integers(0, 2), "id": st.sampled_from(["c1", "c2", ""])}
)
DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "content": st.text("abé", max_size=3) | st.none(),
        "reasoning_content": st.text("ab", max_size=3),
        "refusal": st.text("ab", max_size=2),
        "tool_calls": st.lists(FRAGMENTS, max_size=3),
    },
)


@given(st.lists(DELTAS, max_size=8))
def test_no_order_of_fragments_loses_a_character_or_leaves_a_part_open(deltas: list[dict[str, Any]]) -> None:
    parts, happened = fed(*deltas)
    for kind in ("content", "refusal"):
        sent = "".join(delta.get(kind) or "" for delta in deltas)
        assert "".join(p.text for p in parts if p.kind == {"content": "text"}.get(kind, kind)) == sent
    grown: dict[int, str] = {}
    for step, part, piece in happened:
        if step == "grow":
            grown[part.index] = grown.get(part.index, "") + piece
    assert grown == {part.index: part.text for part in parts if part.text}
    assert [step for step, _, _ in happened].count("open") == [step for step, _, _ in happened].count("close")
    assert [part.index for part in parts] == list(range(len(parts)))
