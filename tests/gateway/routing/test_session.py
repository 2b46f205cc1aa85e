"""Which session a turn belongs to, and what a provider has of it in its cache."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.accounts.sessions import SESSION_ID, normalize_id
from gateway.dialects.message_digests import MessageDigests
from gateway.errors import InvalidRequest
from gateway.ledger.records import MAX_ANSWERED
from gateway.ledger.records import merge_memory as merged
from gateway.ledger.types import Balance
from gateway.routing import session as sessions
from gateway.routing.session import (
    ALIAS_HEADERS,
    SessionMemory,
    answered_by,
    home_of,
    identify,
    matching_prefix,
)
from tests.gateway.turn.turns import session_row
from tests.harness.models import remember

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "why is the sky blue?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "scattering"}, {"role": "user", "content": "and red?"}]


def remembered(memory: SessionMemory | None = None, **changes: Any) -> SessionMemory:
    turn: dict[str, Any] = {
        "model": "small", "messages": ASKED, "prompt_tokens": 100, "output_tokens": 20, "failed": False,
        "regenerated": False, "tool_error": False, "at_ms": 1_000,
    }  # fmt: skip
    return remember(memory or SessionMemory(), **(turn | changes))


# -- ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["s", "A.b_c:d-9", "x" * 128])
def test_our_own_header_is_taken_as_it_is(value: str) -> None:
    assert identify({"x-session-id": value, "session_id": "other"}, "hint") == value


def test_a_title_is_asked_for_in_the_session_that_it_is_for() -> None:
    """Kilo Code 7.7, by a header of its own."""
    title = {"x-session-id": "title-ses_dce865601ffetn5RsEC6WK0k9z"}
    assert identify(title, None) == "ses_dce865601ffetn5RsEC6WK0k9z"
    assert identify({"x-session-id": "title-page"}, None) == "title-page"


@pytest.mark.parametrize("value", ["", "x" * 129, "a b", "a/b", "{{7*7}}", "a\n", "ü", "${jndi:x}", "%s"])
def test_our_own_header_outside_its_alphabet_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        identify({"x-session-id": value}, None)
    assert refused.value.param == "X-Session-Id"


@pytest.mark.parametrize("name", ALIAS_HEADERS)
def test_every_alias_names_the_session_before_the_body_does(name: str) -> None:
    assert identify({name: "their-id"}, "from-the-body") == "their-id"


def test_the_aliases_are_the_documented_ones() -> None:
    documented = (
        "x-litellm-session-id x-litellm-trace-id x-portkey-trace-id Helicone-Session-Id x-bf-session-id "
        "agent-session-id X-Model-Affinity x-conversation-id x-claude-code-session-id session_id session-id thread-id "
        "conversation_id x-opencode-session x-session-affinity X-Amp-Thread-Id x-grok-conv-id X-OpenWebUI-Chat-Id "
        "x-chat-id x-thread-id langfuse-session-id x-opencode-session-id x-codex-thread-id x-client-session-id "
        "x-kilocode-taskid x-kilo-session x-task-id x-roo-task-id x-continue-session-id x-coder-chat-id "
        "x-goose-session-id x-hermes-session-id x-cagent-session-id"
    )
    assert {name.lower() for name in documented.split()} == set(ALIAS_HEADERS)


def test_the_operator_s_own_headers_come_before_the_built_in_aliases_and_after_ours() -> None:
    headers = {"x-flow": "flow-1", "session_id": "other"}
    assert identify(headers, None, ["X-Flow"]) == "flow-1"
    assert identify(headers | {"x-session-id": "mine"}, None, ["X-Flow"]) == "mine"


def test_an_empty_alias_names_nothing() -> None:
    assert identify({"session_id": "", "thread-id": "t"}, None) == "t"
    assert identify({"session_id": ""}, "hint") == "hint"


@given(st.text(max_size=300))
def test_an_adopted_id_is_always_well_formed_and_stays_what_it_was_if_it_can(value: str) -> None:
    own = normalize_id(value)
    assert SESSION_ID.fullmatch(own)
    assert own == value or not SESSION_ID.fullmatch(value)
    assert normalize_id(value) == own


def test_two_malformed_ids_stay_two_sessions() -> None:
    assert normalize_id("user 1/π") != normalize_id("user 2/π")


def test_without_an_id_a_turn_names_nothing() -> None:
    assert identify({"user-agent": "x"}, None) is None


def test_a_session_without_an_id_is_over_when_it_was_closed_or_quiet_for_longer_than_the_timeout() -> None:
    quiet = session_row(Balance(100, 0, 5), updated_at_ms=1_000)
    assert not sessions.is_over(quiet, 30.0, 31_000)
    assert sessions.is_over(quiet, 30.0, 31_001)
    assert not sessions.is_over(session_row(Balance(100, 7, 5), updated_at_ms=1_000), 30.0, 10**9)
    assert sessions.is_over(session_row(Balance(100, 0, 5), updated_at_ms=1_000, state="closed"), 30.0, 1_000)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_survives_its_json() -> None:
    memory = remembered(remembered(), model="big", tool_error=True, at_ms=2_000)
    assert SessionMemory.from_json(orjson.dumps(structs.asdict(memory)).decode()) == memory
    assert SessionMemory.from_json("{}") == SessionMemory()
    assert SessionMemory.from_json('{"failures": 2, "of_a_newer_version": [1]}') == SessionMemory(failures=2)


def test_turns_add_up() -> None:
    memory = remembered(remembered(regenerated=True), prompt_tokens=50, output_tokens=5, failed=True, tool_error=True)
    assert memory.tokens_so_far == 175
    assert (memory.failures, memory.regenerations, memory.tool_errors) == (1, 1, 1)


def test_the_next_turn_is_warm_on_the_model_that_read_the_same_beginning() -> None:
    memory = remembered()
    assert matching_prefix(memory, "small", MessageDigests(ANSWERED), 1_500)[0] == 100
    assert matching_prefix(memory, "big", MessageDigests(ANSWERED), 1_500)[0] == 0


def test_an_edited_beginning_is_cold() -> None:
    edited = [{"role": "user", "content": "why is the sky black?"}, *ANSWERED[1:]]
    assert matching_prefix(remembered(), "small", MessageDigests(edited), 1_500)[0] == 0
    assert matching_prefix(remembered(messages=ANSWERED), "small", MessageDigests(ASKED), 1_500)[0] == 0


def test_a_prefix_is_told_with_its_age_and_forgotten_after_a_day() -> None:
    memory = remembered(at_ms=1_000)
    assert matching_prefix(memory, "small", MessageDigests(ANSWERED), 301_500) == (100, 300.5)
    assert matching_prefix(memory, "small", MessageDigests(ANSWERED), 86_401_000) == (100, 86_400.0)
    assert matching_prefix(memory, "small", MessageDigests(ANSWERED), 86_401_001) == (0, 0.0)
    assert matching_prefix(memory, "small", MessageDigests(ANSWERED), 500) == (100, 0.0)


def test_the_home_of_a_session_is_kept_as_long_as_its_cache() -> None:
    memory = remembered(at_ms=1_000, homes={"small": "small#1"})
    assert home_of(memory, "small", 301_000) == "small#1"
    assert home_of(memory, "small", 301_001) is None
    assert home_of(memory, "small", 301_001, 3_600.0) == "small#1"
    assert home_of(memory, "small", 61_001, 60.0) is None


def test_a_failed_turn_warms_nothing() -> None:
    assert remembered(failed=True).warm == {}
    assert remembered(failed=True).answered == ()


def test_turns_that_ran_beside_each_other_are_both_remembered_in_the_order_of_their_bills() -> None:
    """Both began with the same memory; each brings only its own update."""
    helper: list[dict[str, Any]] = [{"role": "user", "content": "a helper's question"}]
    before = "{}"
    one = sessions.memory_update(
        model="small", digests=MessageDigests(ASKED), prompt_tokens=100, output_tokens=20, failed=False,
        regenerated=False, tool_error=False, at_ms=1_000,
    )  # fmt: skip
    two = sessions.memory_update(
        model="big", digests=MessageDigests(helper), prompt_tokens=7, output_tokens=3, failed=False, regenerated=True,
        tool_error=False, at_ms=1_001,
    )  # fmt: skip
    memory = SessionMemory.from_json(merged(merged(before, one), two))
    assert (memory.tokens_so_far, memory.regenerations, memory.last_model) == (130, 1, "big")
    assert (
        answered_by(memory, MessageDigests(ANSWERED)),
        answered_by(memory, MessageDigests([*helper, *ANSWERED])),
    ) == ("small", "big")
    assert set(memory.warm) == {"small", "big"}


def test_the_whole_memory_that_an_older_gateway_sends_replaces_what_there_was() -> None:
    assert merged('{"failures": 2, "last_model": "small"}', '{"failures": 1}') == '{"failures": 1}'


def test_each_model_keeps_its_own_prefix() -> None:
    memory = remembered(remembered(), model="big", messages=ANSWERED, prompt_tokens=130, at_ms=2_000)
    longer = [*ANSWERED, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    assert matching_prefix(memory, "small", MessageDigests(longer), 2_000)[0] == 100
    assert matching_prefix(memory, "big", MessageDigests(longer), 2_000)[0] == 130


def test_a_conversation_was_answered_by_the_model_that_saw_its_longest_beginning() -> None:
    helper: list[dict[str, Any]] = [{"role": "user", "content": "a helper's question"}]
    memory = remembered(remembered(model="small"), model="big", messages=helper)
    assert answered_by(memory, MessageDigests(ANSWERED)) == "small"
    assert answered_by(memory, MessageDigests([*helper, *ANSWERED])) == "big"
    longer = [*ANSWERED, {"role": "assistant", "content": "x"}]
    assert answered_by(remembered(memory, model="mid", messages=ANSWERED), MessageDigests(longer)) == "mid"
    unknown: list[dict[str, Any]] = [{"role": "user", "content": "another"}]
    assert answered_by(memory, MessageDigests(unknown)) == memory.last_model == "big"
    assert answered_by(SessionMemory(), MessageDigests(unknown)) is None
    assert answered_by(remembered(model="small", failed=True), MessageDigests(ANSWERED)) == "small"


def test_the_same_beginning_again_counts_for_the_newest_answer() -> None:
    assert answered_by(remembered(remembered(model="small"), model="big"), MessageDigests(ANSWERED)) == "big"


def test_the_memory_of_answered_turns_is_bounded() -> None:
    memory = SessionMemory()
    for number in range(3 * MAX_ANSWERED):
        memory = remembered(memory, messages=[{"role": "user", "content": str(number)}])
    assert len(memory.answered) == MAX_ANSWERED
    assert len(orjson.dumps(structs.asdict(memory))) < 4_000


def test_a_view_averages_the_scores_and_counts_seconds() -> None:
    memory = structs.replace(remembered(at_ms=1_000), failures=2)
    seen = sessions.view(
        memory, turn=3, expected_turns=9, budget_usd=1.0, remaining_usd=0.5, tenant_remaining_usd=9.0, spent_usd=0.5,
        quality_count=2, quality_sum=1.5, last_quality=0.5, tool_loop=True, at_ms=3_500,
    )  # fmt: skip
    assert seen.mean_quality == 0.75
    assert seen.seconds_since_last == 2.5
    assert (seen.last_model, seen.failures, seen.tool_loop, seen.turn) == ("small", 2, True, 3)


def test_a_first_turn_has_no_past() -> None:
    seen = sessions.view(
        SessionMemory(), turn=0, expected_turns=None, budget_usd=1.0, remaining_usd=1.0, tenant_remaining_usd=9.0,
        spent_usd=0.0, quality_count=0, quality_sum=0.0, last_quality=None, tool_loop=False, at_ms=5,
    )  # fmt: skip
    assert (seen.mean_quality, seen.last_model, seen.seconds_since_last) == (None, None, None)
