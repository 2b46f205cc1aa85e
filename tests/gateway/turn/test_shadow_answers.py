"""Which turns a second model answers unseen, with which probability, and what it is asked."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.accounts import tenants
from gateway.accounts.auth import JUDGE_TENANT, SHADOW_TENANT, Caller
from gateway.config.settings import JudgeSettings, ShadowSettings
from gateway.database.database import Database
from gateway.errors import TenantBudgetExceeded
from gateway.metrics import Metrics
from gateway.routing.guard import RequestedModel
from gateway.routing.router import Routed
from gateway.turn.context import Attempt, RoutingDecision
from gateway.turn.fallback import FALLBACK
from gateway.turn.judge import Judge
from gateway.turn.shadow_answers import WAITING, ShadowAnswers
from gateway.turn.shadow_draw import MOST_PROMPT_TOKENS, chances, drawn, shadow_sample
from policy.exploration import Exploration
from policy.rules import ReSolving
from tests.gateway.turn.turns import attempt, context
from tests.policy.observations import candidate, observation

EVERY = ShadowSettings(sample=1.0, budget_nanousd_per_day=5_000)


def choice(sample: float, uniform: float = 0.0, **effort: str) -> RoutingDecision:
    """One of three models and of a fourth that is not feasible, with exploration."""
    seen = observation(
        [candidate("a", 0.001, 0.9), candidate("b", 0.002, 0.5), candidate("c", 0.003, 0.4, **effort),
         candidate("d", feasible=False, why_not="context")]
    )  # fmt: skip
    decision = ReSolving(exploration=Exploration(0.3, tolerance=0.5)).decide(seen, uniform)
    return RoutingDecision(seen, Routed(decision, None), attempt().choice.estimate, uniform, sample)


def settled(made: RoutingDecision, decision_id: str = "dec_1", **request: Any) -> Attempt:
    return replace(attempt(**request), choice=made, decision_id=decision_id)


def shadow_answers(database: Any = None, settings: ShadowSettings | None = EVERY) -> tuple[ShadowAnswers, Metrics]:
    metrics = Metrics()
    return ShadowAnswers(lambda: settings, database=database, metrics=metrics, clock=lambda: 1.0), metrics


def counted(metrics: Metrics, outcome: str) -> float:
    return float(metrics.registry.get_sample_value("seqroute_shadow_answers_total", {"outcome": outcome}) or 0.0)


def test_the_logged_chances_are_those_of_the_draws() -> None:
    made = choice(0.5)
    drawn_of: dict[str | None, float] = {}
    for action, probability in enumerate(made.routed.decision.probabilities.tolist()):
        taken = replace(made, routed=replace(made.routed, decision=replace(made.routed.decision, action=action)))
        for i in range(2_000 if probability > 0.0 else 0):
            model = drawn(taken, f"dec_{i}")
            drawn_of[model] = drawn_of.get(model, 0.0) + probability / 2_000
    found = dict(zip("abcd", chances(made), strict=True))
    assert sum(found.values()) == pytest.approx(0.5)
    assert found["d"] == 0.0
    assert {name: drawn_of.get(name, 0.0) for name in "abc"} == pytest.approx(
        {name: found[name] for name in "abc"}, abs=0.03
    )


def test_by_hand_a_certain_choice_leaves_half_of_the_sample_to_each_of_two_others() -> None:
    made = choice(0.2)
    certain = replace(made.routed.decision, action=0, probabilities=made.routed.decision.probabilities * 0)
    certain.probabilities[0] = 1.0
    assert chances(replace(made, routed=Routed(certain, None))) == pytest.approx([0.0, 0.1, 0.1, 0.0])


def test_levels_of_effort_and_a_fallback_are_not_answered_again() -> None:
    assert {drawn(choice(1.0, effort="high"), f"dec_{i}") for i in range(50)} == {"b"}
    made = choice(1.0)
    fallen = replace(made.routed.decision, reason=FALLBACK)
    assert drawn(replace(made, routed=Routed(fallen, None)), "dec_1") is None
    assert drawn(choice(0.0), "dec_1") is None


def test_only_a_clients_turn_whose_model_we_chose_can_be_answered_again() -> None:
    ordinary = context()
    assert shadow_sample(EVERY, ordinary) == 1.0
    assert shadow_sample(None, ordinary) == 0.0
    own = Caller(JUDGE_TENANT, "key_judge", "tenant", False, None)
    for other in (
        replace(ordinary, caller=own),
        replace(ordinary, caller=replace(own, tenant_id=SHADOW_TENANT)),
        replace(ordinary, requested=RequestedModel("small", None)),
        replace(ordinary, chat=replace(ordinary.chat, provider_bound=True)),
        replace(ordinary, chat=replace(ordinary.chat, mode="embedding")),
        context(prompt_tokens=MOST_PROMPT_TOKENS + 1),
    ):
        assert shadow_sample(EVERY, other) == 0.0


def test_a_full_queue_drops_what_comes() -> None:
    made, metrics = shadow_answers()
    for i in range(WAITING + 3):
        made.offer(settled(choice(1.0), f"dec_{i}"))
    assert counted(metrics, "dropped") == 3


async def test_the_second_model_is_asked_the_same_on_a_budget_of_its_own(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    await database.start()
    try:
        made, metrics = shadow_answers(database)
        asked: list[tuple[Caller, dict[str, Any], str]] = []
        done = asyncio.Event()

        async def ask(caller: Caller, body: bytes, session_id: str) -> bytes:
            asked.append((caller, json.loads(body), session_id))
            if len(asked) == 2:
                done.set()
                raise TenantBudgetExceeded("empty")
            return b"{}"

        request = {"temperature": 0.5, "n": 2, "user": "u", "metadata": {"session_id": "s"}, "max_completion_tokens": 9}
        for decision_id in ("dec_1", "dec_2"):
            made.offer(settled(choice(1.0), decision_id, **request))
        task = asyncio.create_task(made.run(ask))
        await done.wait()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (caller, body, session_id), _ = asked
        assert (caller.tenant_id, caller.origin, session_id) == (SHADOW_TENANT, "shadow", "shadow:dec_1")
        assert body.pop("messages")
        assert body.pop("model") == drawn(choice(1.0), "dec_1")
        assert body == {"temperature": 0.5, "max_tokens": 9}
        budget = await database.read(lambda c: tenants.get_tenant(c, SHADOW_TENANT))
        assert (budget.balance.granted_nanousd, budget.window) == (5_000, "1d")
        assert counted(metrics, "answered") == 1
    finally:
        await database.close()


def test_the_judge_grades_every_shadow_answer_and_of_others_its_sample() -> None:
    metrics = Metrics()
    settings = JudgeSettings("grader", sample=0.0)
    judge = Judge(lambda: settings, database=None, metrics=metrics, clock=lambda: 1.0, new_id=str)  # type: ignore[arg-type]
    turn = attempt()
    judge.offer(turn, "an answer")
    assert judge._waiting.empty()
    own = Caller(SHADOW_TENANT, "key_shadow", "tenant", False, None)
    judge.offer(replace(turn, context=replace(turn.context, caller=own)), "an answer")
    case = judge._waiting.get_nowait()
    assert (case.tenant_id, case.decision_id) == (SHADOW_TENANT, "dec_1")
