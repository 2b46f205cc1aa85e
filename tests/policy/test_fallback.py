from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from policy.fallback import WithFallback
from policy.mdp import Decision, Observation, PolicyFault
from policy.rules import Cheapest
from tests.policy.observations import candidate, observation

VIEW = observation([candidate("a", 0.01), candidate("b", 0.02), candidate("c", 0.001, feasible=False)])
GOOD = replace(Cheapest("learned").decide(VIEW, 0.5), reason="policy")


@dataclass
class Scripted:
    """A policy that does what it is told."""

    answer: Callable[[], Any]
    policy_id: str = "learned"
    asked: int = 0

    def decide(self, observation: Observation, uniform: float) -> Decision:
        self.asked += 1
        decision: Decision = self.answer()
        return decision


def raising(error: Exception) -> Callable[[], Decision]:
    def answer() -> Decision:
        raise error

    return answer


def guarded(
    answer: Callable[[], Any], times: list[float] | None = None, **settings: int
) -> tuple[WithFallback, Scripted]:
    """With `times` the clock reads them in turn; without, it stands still."""
    policy = Scripted(answer)
    clock = iter(times).__next__ if times is not None else (lambda: 0.0)
    return WithFallback(policy, Cheapest("rule"), deadline_s=0.02, clock=clock, **settings), policy


def test_a_good_decision_passes_untouched() -> None:
    guard, _ = guarded(lambda: GOOD)
    assert guard.decide(VIEW, 0.5) is GOOD
    assert guard.policy_id == "learned"


@dataclass
class ScriptedTogether(Scripted):
    """Also decides several turns."""

    def decide_together(self, turns: Sequence[tuple[Observation, float]]) -> list[Decision]:
        return [self.answer() for _ in turns]


@pytest.mark.parametrize(("took_s", "next_alone"), [(0.05, 0), (0.07, 3)])  # the deadline of three turns is 0.06 s
def test_turns_that_were_decided_together_are_never_decided_again(took_s: float, next_alone: int) -> None:
    policy, times = ScriptedTogether(lambda: GOOD), iter([0.0] + [took_s] * 7)
    guard = WithFallback(policy, Cheapest("rule"), deadline_s=0.02, clock=times.__next__)
    assert guard.decide_together([(VIEW, 0.5)] * 3) == [GOOD] * 3
    assert policy.asked == 0
    assert guard.last_decision_s == took_s
    assert guard.decide_together([(VIEW, 0.5)] * 3) == [GOOD] * 3
    assert policy.asked == next_alone


def test_a_policy_that_is_late_together_and_alone_rests() -> None:
    clock = [0.0]

    def slow() -> Decision:
        clock[0] += 0.03
        return GOOD

    policy = ScriptedTogether(slow)
    guard = WithFallback(policy, Cheapest("rule"), deadline_s=0.02, clock=lambda: clock[0], patience=3, rest=50)
    reasons = [[each.reason for each in guard.decide_together([(VIEW, 0.5)] * 10)] for _ in range(3)]
    assert reasons == [["policy"] * 10, ["policy-fault"] * 10, ["policy-fault"] * 10]
    assert policy.asked == 2
    assert clock[0] == pytest.approx(12 * 0.03)


def test_a_policy_that_was_late_once_decides_together_again_after_a_turn_in_time() -> None:
    times = iter([0.0, 1.0, 1.0, 1.01, 1.01, 1.02, 1.02, 1.03])
    policy = ScriptedTogether(lambda: GOOD)
    guard = WithFallback(policy, Cheapest("rule"), deadline_s=0.02, clock=times.__next__)
    for asked_alone in (0, 2, 2):
        assert guard.decide_together([(VIEW, 0.5)] * 2) == [GOOD] * 2
        assert policy.asked == asked_alone


@pytest.mark.parametrize("wrong", [replace(GOOD, action=2), replace(GOOD, propensity=0.3), None])
def test_a_wrong_decision_among_several_is_decided_alone_and_the_others_stand(wrong: Any) -> None:
    answers = iter([GOOD, wrong, GOOD, wrong])
    policy = ScriptedTogether(answers.__next__)
    guard = WithFallback(policy, Cheapest("rule"), deadline_s=0.02, clock=lambda: 0.0)
    reasons = [decision.reason for decision in guard.decide_together([(VIEW, 0.5)] * 3)]
    assert reasons == ["policy", "policy-fault", "policy"]
    assert policy.asked == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("secret"), PolicyFault("x"), MemoryError(), RecursionError(), AssertionError(), ZeroDivisionError()],
)
def test_any_exception_gives_the_rules_choice_in_the_same_turn(error: Exception) -> None:
    guard, _ = guarded(raising(error))
    decision = guard.decide(VIEW, 0.5)
    assert (decision.action, decision.policy_id, decision.reason) == (0, "rule", "policy-fault")


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, action=2),  # infeasible
        replace(GOOD, action=-1),
        replace(GOOD, action=3),
        replace(GOOD, action=True),
        replace(GOOD, action=0.0),
        replace(GOOD, propensity=0.5),
        replace(GOOD, propensity=float("nan")),
        replace(GOOD, probabilities=np.array([0.5, 0.5], np.float32), propensity=0.5),
        replace(GOOD, probabilities=np.array([0.9, 0.0, 0.1], np.float32), propensity=0.9),
        replace(GOOD, probabilities=np.array([0.7, 0.2, 0.0], np.float32), propensity=0.7),
        replace(GOOD, probabilities=np.array([1.5, -0.5, 0.0], np.float32), propensity=1.5),
        replace(GOOD, probabilities=np.array([np.nan, 1.0, 0.0], np.float32), propensity=np.nan),
        replace(GOOD, probabilities=np.array([0.0, 1.0, 0.0], np.float32), propensity=0.0),
        replace(GOOD, q_quality=np.zeros(7, np.float32)),
        None,
        "a",
    ],
)
def test_an_adversarial_decision_is_never_executed(bad: Any) -> None:
    guard, _ = guarded(lambda: bad)
    decision = guard.decide(VIEW, 0.5)
    assert (decision.policy_id, decision.reason) == ("rule", "policy-fault")


def test_a_late_decision_is_the_rules() -> None:
    guard, _ = guarded(lambda: GOOD, [0.0, 0.019, 1.0, 1.021])
    assert guard.decide(VIEW, 0.5).reason == "policy"
    assert guard.decide(VIEW, 0.5).reason == "policy-fault"
    assert guard.last_decision_s == pytest.approx(0.021)


def test_after_many_faults_in_a_row_the_policy_rests_and_is_tried_again() -> None:
    answers: list[Callable[[], Decision]] = [raising(RuntimeError())] * 4 + [lambda: GOOD] * 10
    guard, policy = guarded(lambda: answers.pop(0)(), patience=3, rest=5)
    reasons = [guard.decide(VIEW, 0.5).reason for _ in range(16)]
    # three faults, five turns of rest, one more fault, five of rest, and then it answers
    assert reasons == ["policy-fault"] * 14 + ["policy"] * 2
    assert policy.asked == 6


def test_a_fault_of_the_rule_itself_reaches_the_gateway() -> None:
    guard, _ = guarded(raising(RuntimeError()))
    with pytest.raises(PolicyFault, match="feasible"):
        guard.decide(observation([candidate(feasible=False)]), 0.5)
