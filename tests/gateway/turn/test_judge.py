"""Which answers are judged, what the judging model is shown, and what is read out of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import insert, select

from gateway.accounts import tenants
from gateway.accounts.auth import JUDGE_KEY_ID, Caller
from gateway.config.settings import JudgeSettings
from gateway.database import tables
from gateway.database.database import Database
from gateway.errors import TenantBudgetExceeded
from gateway.metrics import Metrics
from gateway.routing.router import share
from gateway.turn.judge import ANSWER_CHARS, CONVERSATION_CHARS, WAITING, Case, Judge, question, read_score, transcript
from tests.gateway.turn.turns import attempt

EVERYTHING = JudgeSettings("grader", sample=1.0, budget_nanousd_per_day=5_000)
CASE = Case("a", "dec_1", "[user] 2 + 2?", "4")


def judge(database: Any = None, settings: JudgeSettings | None = EVERYTHING) -> tuple[Judge, Metrics]:
    metrics = Metrics()
    made = Judge(
        lambda: settings, database=database, metrics=metrics, clock=lambda: 1.0, new_id=lambda prefix: f"{prefix}_1"
    )
    return made, metrics


def counted(metrics: Metrics, outcome: str) -> float:
    return float(metrics.registry.get_sample_value("seqroute_judged_total", {"outcome": outcome}) or 0.0)


def answer(content: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.mark.parametrize(
    ("content", "score"),
    [
        ('{"score": 0.8}', 0.8),
        ('It is right.\n{"why": "sum", "score": 1}', 1.0),
        ('{"score": 0.2} no, {"score": 0.5}', 0.5),
        ('{"score": 1.5}', None),
        ('{"score": -0.1}', None),
        ("0.8", None),
        ("", None),
        (None, None),
    ],
)
def test_the_last_score_on_the_scale_counts(content: object, score: float | None) -> None:
    assert read_score(answer(content)) == score


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}'])
def test_an_answer_without_a_message_is_no_score(body: bytes) -> None:
    assert read_score(body) is None


def test_the_judge_is_shown_rubric_conversation_and_answer_between_markers_of_this_decision() -> None:
    body = json.loads(question(CASE, replace(EVERYTHING, rubric="be strict")))
    system, user = body["messages"]
    assert (body["model"], system["content"]) == ("grader", "be strict")
    assert user["content"].count("=====dec_1=====") == 4
    assert "2 + 2?" in user["content"]
    shipped = json.loads(question(CASE, EVERYTHING))["messages"][0]["content"]
    assert '{"score": 0.8}' in shipped


def test_a_long_conversation_is_cut_to_its_newest_part() -> None:
    text = transcript([{"role": "user", "content": "old " * 9_000}, {"role": "user", "content": "the question"}])
    assert len(text) == CONVERSATION_CHARS
    assert text.endswith("[user] the question")


def test_answers_are_drawn_by_their_id_and_the_judge_s_own_and_empty_ones_never() -> None:
    half, _ = judge(settings=replace(EVERYTHING, sample=0.5))
    turn = attempt()
    ids = [f"dec_{i}" for i in range(40)]
    for decision_id in ids:
        half.offer(structs.replace(turn, decision_id=decision_id), "an answer")
    drawn = [half._waiting.get_nowait().decision_id for _ in range(half._waiting.qsize())]
    assert drawn == [decision_id for decision_id in ids if share(decision_id) < 0.5]
    every, _ = judge()
    every.offer(turn, "  ")
    own = structs.replace(turn.context, caller=Caller(tenants.JUDGE_TENANT, JUDGE_KEY_ID, "tenant", False, None))
    every.offer(structs.replace(turn, context=own), "an answer")
    judge(settings=None)[0].offer(turn, "an answer")
    assert every._waiting.empty()


def test_a_full_queue_drops_what_comes_and_holds_only_so_much_of_it() -> None:
    made, metrics = judge()
    for i in range(WAITING + 3):
        made.offer(structs.replace(attempt(), decision_id=f"dec_{i}"), "x" * 2 * ANSWER_CHARS)
    assert (made.waiting, counted(metrics, "dropped")) == (WAITING, 3)
    assert len(made._waiting.get_nowait().answer) == ANSWER_CHARS


@contextlib.asynccontextmanager
async def running(made: Judge, ask: Any) -> Any:
    task = asyncio.create_task(made.run(ask))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_grade_is_stored_for_the_turn_s_tenant_and_paid_by_the_judge_s(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    await database.start()
    try:
        turn = attempt()

        def prepare(connection: Any) -> None:
            tenants.create_tenant(connection, "ten_1", "acme", budget_nanousd=9, actor="t", now_ms=1)
            connection.execute(
                insert(tables.sessions).values(tenant_id="ten_1", session_id="s", created_at_ms=1, updated_at_ms=1)
            )
            connection.execute(
                insert(tables.decisions).values(
                    decision_id="dec_1", tenant_id="ten_1", session_id="s", turn=0, requested_model="auto",
                    feature_version=1, features=b"", candidate_features=b"", candidates="[]", lambda_per_usd=0,
                    session_budget_nanousd=1, remaining_before_nanousd=1, model="m", action=0, propensity=1.0,
                    uniform=0.5, policy_id="p", reason="policy", reserved_nanousd=1, created_at_ms=1,
                )
            )  # fmt: skip

        await database.write(prepare)
        made, metrics = judge(database)
        asked: list[tuple[Caller, str]] = []
        replies: Iterator[bytes | Exception] = iter(
            [answer('{"score": 0.75}'), answer("no idea"), TenantBudgetExceeded("empty")]
        )
        done = asyncio.Event()

        async def ask(caller: Caller, body: bytes, session_id: str) -> bytes:
            asked.append((caller, session_id))
            reply = next(replies)
            if isinstance(reply, Exception):
                done.set()
                raise reply
            return reply

        for _ in range(3):
            made.offer(turn, "an answer")
        async with running(made, ask):
            await done.wait()
            await asyncio.sleep(0)
        assert {caller.tenant_id for caller, _ in asked} == {tenants.JUDGE_TENANT}
        assert {session for _, session in asked} == {"judge:dec_1"}
        [row] = await database.read(lambda c: c.execute(select(tables.feedback)).mappings().all())
        assert (row["tenant_id"], row["decision_id"], row["source"], row["name"], row["score"]) == (
            "ten_1", "dec_1", "judge", "grader", 0.75,
        )  # fmt: skip
        tenant = await database.read(lambda c: tenants.get_tenant(c, tenants.JUDGE_TENANT))
        assert (tenant.balance.granted_nanousd, tenant.window) == (5_000, "1d")
        assert (counted(metrics, "graded"), counted(metrics, "unreadable")) == (1, 1)
    finally:
        await database.close()


def test_the_shipped_rubric_is_packaged_with_the_gateway() -> None:
    assert '"gateway.turn" = ["rubric.txt"]' in (Path(__file__).parents[3] / "pyproject.toml").read_text()
