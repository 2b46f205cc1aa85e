"""Quality signals: four dialects on one scale, stored once, by the owner only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, select

from gateway.accounts import tenants
from gateway.accounts.sessions import change_session, get_session, normalize_id
from gateway.database import tables
from gateway.database.database import Database
from gateway.decisions.feedback import FeedbackSignal, Stored, read_signal, store
from gateway.errors import InvalidRequest, NotFound

KEY = "key_1"


def signal(**fields: Any) -> FeedbackSignal:
    return read_signal(fields, KEY)


# -- dialects ----------------------------------------------------------------------------------------------------------


def test_our_own_dialect_names_one_target_and_may_name_source_and_comment() -> None:
    assert signal(decision_id="dec_1", score=0.25) == FeedbackSignal("decision", "dec_1", KEY, "score", 0.25, None)
    assert signal(completion_id="chatcmpl-1", score=1) == FeedbackSignal(
        "completion", "chatcmpl-1", KEY, "score", 1.0, None
    )
    full = signal(session_id="s", score=0, name="tests", source="ci", comment="red")
    assert full == FeedbackSignal("session", "s", "ci", "tests", 0.0, "red")


@pytest.mark.parametrize(("score", "stored"), [(1.7, 1.0), (-3, 0.0), (1e6, 1.0), (-0.0, 0.0)])
def test_a_score_beyond_the_scale_is_clipped_to_it(score: float, stored: float) -> None:
    assert signal(decision_id="d", score=score).score == stored


@pytest.mark.parametrize(
    ("value", "score"),
    [(True, 1.0), (False, 0.0), (0.7, 0.7), (12, 1.0), ("true", 1.0), (" False ", 0.0), ("0.25", 0.25)],
)
def test_tensorzero_s_dialect_is_read_as_it_is(value: object, score: float) -> None:
    body = {"inference_id": "chatcmpl-1", "metric_name": "solved", "value": value, "tags": {"a": "b"}}
    assert read_signal(body, KEY) == FeedbackSignal("completion", "chatcmpl-1", KEY, "solved", score, None)
    episode = {"episode_id": "e-1", "metric_name": "solved", "value": value}
    assert read_signal(episode, KEY) == FeedbackSignal("session", "e-1", KEY, "solved", score, None)


@pytest.mark.parametrize(
    ("value", "weight", "score"),
    [(10, 1.0, 1.0), (-10, 1.0, 0.0), (0, 1.0, 0.5), (5, 1.0, 0.75), (10, 0.5, 0.75), (-10, 0.5, 0.25), (10, 0, 0.5),
     (99, 7, 1.0)],
)  # fmt: skip
def test_portkey_s_scale_becomes_ours_and_its_weight_draws_to_the_middle(
    value: float, weight: float, score: float
) -> None:
    body = {"trace_id": "t-1", "value": value, "weight": weight, "metadata": {"x": 1}}
    assert read_signal(body, KEY) == FeedbackSignal("completion", "t-1", KEY, "portkey", score, None)


@pytest.mark.parametrize("metric", ["comment", "demonstration"])
def test_tensorzero_s_words_are_taken_and_carry_no_score(metric: str) -> None:
    body = {"inference_id": "chatcmpl-1", "metric_name": metric, "value": "nicely put"}
    assert read_signal(body, KEY) == FeedbackSignal("completion", "chatcmpl-1", KEY, metric, None, None)


@pytest.mark.parametrize(
    ("fields", "score"),
    [
        ({"target": "model", "verdict": "good_fit"}, 1.0),
        ({"target": "model", "verdict": "overprovisioned"}, 1.0),
        ({"target": "model", "verdict": "underpowered"}, 0.25),
        ({"verdict": "failed"}, 0.0),
        ({"target": "model", "verdict": "good_fit", "score": 0.9}, 0.9),
        ({"target": "policy", "verdict": "failed", "score": 0.1}, None),
    ],
)
def test_a_semantic_router_s_verdict_on_the_model_is_a_score(fields: dict[str, Any], score: float | None) -> None:
    body = {"replay_id": "chatcmpl-1", "source": "agent", "target_ref": "m", "reason": "why", **fields}
    assert read_signal(body, KEY) == FeedbackSignal("completion", "chatcmpl-1", "agent", "verdict", score, "why")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"score": 1}, "decision_id"),
        ({"decision_id": "d", "session_id": "s", "score": 1}, "decision_id"),
        ({"decision_id": "", "score": 1}, "decision_id"),
        ({"decision_id": 7, "score": 1}, "decision_id"),
        ({"decision_id": "a\0b", "score": 1}, "decision_id"),
        ({"decision_id": "d"}, "score"),
        ({"decision_id": "d", "score": "good"}, "score"),
        ({"decision_id": "d", "score": True}, "score"),
        ({"decision_id": "d", "score": float("nan")}, "score"),
        ({"decision_id": "d", "score": float("inf")}, "score"),
        ({"decision_id": "d", "score": 1.1e6}, "score"),
        ({"decision_id": "d", "score": -(10**400)}, "score"),
        ({"decision_id": "d", "score": 1, "source": "judge"}, "source"),
        ({"inference_id": "i", "metric_name": "m", "value": "nan"}, "value"),
        ({"inference_id": "i", "metric_name": "m", "value": "1e300"}, "value"),
        ({"replay_id": "r", "verdict": "great"}, "verdict"),
        ({"replay_id": "r", "verdict": ["failed"]}, "verdict"),
        ({"replay_id": "r", "verdict": "failed", "score": "bad"}, "score"),
        ({"replay_id": "", "verdict": "failed"}, "replay_id"),
        ({"replay_id": "r", "verdict": "failed", "source": "judge"}, "source"),
        ({"decision_id": "d", "score": 1, "name": ""}, "name"),
        ({"decision_id": "d", "score": 1, "name": "n" * 65}, "name"),
        ({"decision_id": "d", "score": 1, "source": 5}, "source"),
        ({"decision_id": "d", "score": 1, "comment": "c" * 2001}, "comment"),
        ({"decision_id": "d", "score": 1, "comment": "\0"}, "comment"),
        ({"inference_id": "i", "value": 1.0}, "metric_name"),
        ({"inference_id": "i", "metric_name": "solved", "value": "nice"}, "value"),
        ({"inference_id": "i", "metric_name": "m"}, "value"),
        ({"metric_name": "m", "value": 1}, "episode_id"),
        ({"trace_id": "t", "value": "up"}, "value"),
        ({"trace_id": "t", "value": 1, "weight": None}, "weight"),
    ],
)
def test_what_is_no_signal_is_refused_by_its_field(fields: Mapping[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_signal(fields, KEY)
    assert refused.value.param == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    "decision_id completion_id session_id score name source comment inference_id episode_id metric_name value trace_id "
    "weight metadata tags tenant_id replay_id verdict target reason".split()
)


@given(st.dictionaries(FIELDS, JSON, max_size=6))
def test_whatever_the_body_holds_a_signal_is_on_the_scale_or_refused(fields: dict[str, Any]) -> None:
    try:
        found = read_signal(fields, KEY)
    except InvalidRequest:
        return
    assert found.score is None or 0.0 <= found.score <= 1.0
    assert found.target_id
    assert "\0" not in found.target_id + found.name + found.source + (found.comment or "")


# -- stored ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def two_tenants(url: str) -> AsyncIterator[Database]:
    """Tenants `a` and `b`, each with a session `s`; `a` also with one whose id was hashed, and a decision."""
    database = Database(url, serving=True)
    await database.start()

    def fill(connection: Connection) -> None:
        for name in ("a", "b"):
            tenants.create_tenant(connection, name, name, budget_nanousd=100, actor="test", now_ms=1)
            change_session(connection, name, "s", default_nanousd=10, actor="test", now_ms=1)
        change_session(connection, "a", normalize_id("user 1/π"), default_nanousd=10, actor="test", now_ms=1)
        connection.execute(
            insert(tables.decisions).values(
                decision_id="dec_1", tenant_id="a", session_id="s", turn=0, completion_id="chatcmpl-1",
                requested_model="auto", feature_version=1, features=b"", candidate_features=b"", candidates="[]",
                lambda_per_usd=1.0, session_budget_nanousd=10, remaining_before_nanousd=10, model="small", action=0,
                propensity=1.0, uniform=0.5, policy_id="p", reason="policy", reserved_nanousd=1, created_at_ms=1,
            )
        )  # fmt: skip

    try:
        await database.write(fill)
        yield database
    finally:
        await database.close()


async def stored(database: Database, fields: Mapping[str, Any], tenant_id: str, feedback_id: str = "fb") -> Stored:
    return await database.write(lambda c: store(c, read_signal(fields, KEY), tenant_id, feedback_id, 5))


async def test_a_score_is_stored_once_for_each_source_and_name_and_the_first_one_stands(database_url: str) -> None:
    async with two_tenants(database_url) as database:

        def write(connection: Connection) -> None:
            first = store(connection, signal(decision_id="dec_1", score=0.25), "a", "fb_1", 5)
            again = store(connection, signal(decision_id="dec_1", score=1), "a", "fb_2", 6)
            assert (first.new, again.new, again.feedback_id) == (True, False, "fb_1")
            by_completion = store(connection, signal(completion_id="chatcmpl-1", score=1), "a", "fb_3", 7)
            assert (by_completion.new, by_completion.decision_id) == (False, "dec_1")
            assert store(connection, signal(decision_id="dec_1", score=1, name="tests"), "a", "fb_4", 8).new
            assert store(connection, signal(session_id="s", score=0.5), "a", "fb_5", 9).new
            assert store(connection, signal(session_id="s", score=0.5, source="ci"), "a", "fb_6", 9).new

        await database.write(write)
        rows = await database.read(lambda c: c.execute(select(tables.feedback)).all())
        assert sorted((row.feedback_id, row.score, row.decision_id) for row in rows) == [
            ("fb_1", 0.25, "dec_1"), ("fb_4", 1.0, "dec_1"), ("fb_5", 0.5, ""), ("fb_6", 0.5, ""),
        ]  # fmt: skip
        session = await database.read(lambda c: get_session(c, "a", "s"))
        assert (session.quality_count, session.quality_sum, session.last_quality) == (4, 2.25, 0.5)


async def test_the_ids_of_another_tenant_are_unknown_and_change_nothing(sqlite_url: str) -> None:
    async with two_tenants(sqlite_url) as database:
        for fields in (
            {"decision_id": "dec_1", "score": 1},
            {"completion_id": "chatcmpl-1", "score": 1},
            {"trace_id": "chatcmpl-1", "value": 1},
            {"session_id": "no-such", "score": 1},
            {"decision_id": "' OR 1=1 --", "score": 1},
        ):
            with pytest.raises(NotFound):
                await stored(database, fields, "b")
        assert await database.read(lambda c: c.execute(select(tables.feedback)).all()) == []


async def test_an_id_that_was_hashed_as_a_session_still_names_it(sqlite_url: str) -> None:
    async with two_tenants(sqlite_url) as database:
        for number, fields in enumerate(
            (
                {"trace_id": "user 1/π", "value": 10},
                {"episode_id": "user 1/π", "metric_name": "m", "value": True},
                {"session_id": "user 1/π", "score": 1.0},
            )
        ):
            found = await stored(database, fields, "a", f"fb_{number}")
            assert (found.new, found.session_id) == (True, normalize_id("user 1/π"))


async def test_tensorzero_s_inference_id_may_be_our_decision_id(sqlite_url: str) -> None:
    async with two_tenants(sqlite_url) as database:
        found = await stored(database, {"inference_id": "dec_1", "metric_name": "m", "value": True}, "a")
        assert found.decision_id == "dec_1"
