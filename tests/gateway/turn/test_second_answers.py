"""Which turns another model answers once more, with which probability, and what it is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.accounts.auth import JUDGE_KEY_ID, Caller
from gateway.config.settings import JudgeSettings, PolicySettings, Settings
from gateway.metrics import Metrics
from gateway.routing.guard import RequestedModel
from gateway.routing.router import Routed
from gateway.turn import judge
from gateway.turn.context import Attempt, RoutingDecision
from gateway.turn.fallback import FALLBACK
from gateway.turn.second_answers import WAITING, WAITING_BYTES, SecondAnswers, repeated
from gateway.turn.second_draw import MOST_PROMPT_TOKENS, draw_second, second_chances, second_share
from policy.mdp import NOT_AFFORDABLE, Decision
from tests.gateway.turn.turns import attempt, context
from tests.harness.models import chat
from tests.policy.observations import candidate, observation

ON = JudgeSettings("grader", second_answers=0.1)
CANDIDATES = [
    candidate("a"), candidate("b"), candidate("c#d#high", effort="high"),
    candidate("dear", feasible=False, why_not=NOT_AFFORDABLE),
    candidate("narrow", feasible=False, why_not="context too small"),
]  # fmt: skip


def choice(share: float, mu: tuple[float, ...], action: int, reason: str = "policy") -> RoutingDecision:
    unknown = np.full(len(mu), np.nan, np.float32)
    decision = Decision(action, action, mu[action], "p", reason, np.array(mu), unknown, unknown, unknown)
    return RoutingDecision(
        observation(CANDIDATES), Routed(decision, None), attempt().choice.estimate, 0.5, second_share=share
    )


@given(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), st.floats(0.001, 0.1))
def test_the_logged_chance_is_the_sum_over_the_first_draws_of_the_pairs_probability(
    parts: list[int], share: float
) -> None:
    """The exact expectation: for each first model, each of the other three able ones has share / 3."""
    mu = (*(part / sum(parts) for part in parts), 0.0, 0.0)
    expected = np.zeros(5)
    for first in range(3):
        for second in set(range(4)) - {first}:
            expected[second] += mu[first] * share / 3
    assert second_chances(choice(share, mu, int(np.argmax(mu)))) == pytest.approx(expected.tolist())


def test_a_turn_draws_each_other_able_model_as_often_as_it_says() -> None:
    made = choice(0.5, (0.6, 0.4, 0.0, 0.0, 0.0), 1)
    drawn = [draw_second(made, f"dec_{i}") for i in range(6_000)]
    found = Counter(None if each is None else (each.model, each.action) for each in drawn)
    assert {each.probability for each in drawn if each is not None} == {0.5 / 3}
    assert found.keys() == {None, ("a", "a"), ("c#d", "c#d#high"), ("dear", "dear")}
    for pair, count in found.items():
        assert count / 6_000 == pytest.approx(0.5 if pair is None else 0.5 / 3, abs=0.03)
    assert draw_second(made, "dec_7") == draw_second(made, "dec_7")


def test_no_second_answer_without_a_share_another_model_or_a_choice_of_ours() -> None:
    mu = (1.0, 0.0, 0.0, 0.0, 0.0)
    assert second_chances(choice(0.0, mu, 0)) == []
    assert draw_second(choice(0.0, mu, 0), "dec_1") is None
    assert draw_second(choice(1.0, mu, 0, FALLBACK), "dec_1") is None
    alone = replace(choice(1.0, mu, 0), observation=observation([CANDIDATES[0], CANDIDATES[4]]))
    assert second_chances(alone) == []
    assert draw_second(alone, "dec_1") is None


def test_only_a_clients_turn_that_another_model_can_be_asked_in_the_same_words_has_a_share() -> None:
    plain = context()
    assert second_share(ON, plain) == 0.1
    assert second_share(None, plain) == 0.0
    for other in (
        replace(plain, caller=Caller("judge", JUDGE_KEY_ID, "tenant", False, None)),
        replace(plain, requested=RequestedModel("small", None)),
        replace(plain, fallback=True),
        replace(plain, closing=True),
        replace(plain, notes=("0.10 USD are left",)),
        replace(plain, chat=replace(plain.chat, mode="embedding")),
        replace(plain, chat=replace(plain.chat, provider_bound=True)),
        context(n=2),
        context(web_search_options={}),
        context(prompt_tokens=MOST_PROMPT_TOKENS + 1),
    ):
        assert second_share(ON, other) == 0.0


def test_the_other_model_is_asked_the_same_without_what_names_the_client() -> None:
    first = chat(
        user="u", safety_identifier="s", prompt_cache_key="k", metadata={"a": "b"}, store=True, stream=True,
        temperature=0.5, reasoning_effort="low", max_completion_tokens=9, top_k=3, cache_salt="x", unknown_field=1,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    )  # fmt: skip
    again = repeated(first, "big", may_drop=True)
    assert (again.model, again.stream, again.effort, again.max_tokens) == ("big", False, "low", 9)
    assert again.messages == first.messages
    assert again.params == {
        "temperature": 0.5, "reasoning_effort": "low", "tools": first.params["tools"], "store": False,
    }  # fmt: skip
    assert again.extras == {"top_k": 3}
    assert "store" not in repeated(chat(), "big", may_drop=False).params


def made(judge: JudgeSettings | None = ON) -> tuple[SecondAnswers, Metrics]:
    metrics, settings = Metrics(), Settings((), policy=PolicySettings(judge=judge))
    live: Any = SimpleNamespace(settings=settings)
    database: Any = SimpleNamespace(write=_nothing)
    return SecondAnswers(lambda: live, database=database, metrics=metrics, clock=lambda: 1.0), metrics


async def _nothing(work: Any) -> None:
    pass


def counted(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value("seqroute_second_answers_total", {"outcome": outcome}) or 0.0


def settled(decision_id: str, text: str = "hello") -> Attempt:
    turn = attempt(messages=[{"role": "user", "content": text}])
    return replace(turn, choice=choice(1.0, (1.0, 0.0, 0.0, 0.0, 0.0), 0), decision_id=decision_id)


def test_the_queue_is_bounded_in_number_and_in_bytes_and_tells_what_is_drawn() -> None:
    few, metrics = made()
    assert all(few.offer(settled(f"dec_{i}"), "four") for i in range(WAITING + 2))
    assert counted(metrics, "dropped") == 2
    large, metrics = made()
    assert large.offer(settled("dec_1", "x" * (WAITING_BYTES // 2)), "four")
    assert large.offer(settled("dec_2", "x" * (WAITING_BYTES // 2)), "four")
    assert counted(metrics, "dropped") == 1
    assert not few.offer(attempt(), "four")


def test_a_turn_whose_answer_no_judge_can_read_is_not_drawn() -> None:
    subject, metrics = made()
    assert not any(subject.offer(settled("dec_1"), answer) for answer in ("", " \n"))
    assert subject.offer(settled("dec_1"), "four")
    assert counted(metrics, "dropped") == 0


async def test_what_was_answered_makes_room_and_a_failure_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "PAUSE_S", 0.0)
    subject, metrics = made()
    asked: list[tuple[str, str]] = []
    done = asyncio.Event()

    async def ask(caller: Caller, request: Any, session_id: str, second: Any) -> bytes:
        asked.append((caller.tenant_id, session_id))
        if len(asked) == 1:
            raise ValueError("a defect")
        done.set()
        return b"{}"

    half = "x" * (WAITING_BYTES // 2)
    task = asyncio.create_task(subject.run(ask))
    for decision_id in ("dec_1", "dec_2"):
        subject.offer(settled(decision_id, half), "four")
        await asyncio.sleep(0.05)
    await asyncio.wait_for(done.wait(), 10)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert asked == [("second~answers", "second:dec_1"), ("second~answers", "second:dec_2")]
    assert (counted(metrics, "fault"), counted(metrics, "answered"), counted(metrics, "dropped")) == (1, 1, 0)
