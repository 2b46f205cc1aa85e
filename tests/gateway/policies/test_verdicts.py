"""Verdicts on a policy on trial: certain ones in time, and hardly ever a wrong one, however often one looks."""

from __future__ import annotations

from collections import Counter

import pytest

from gateway.policies.confidence_sequences import Arm
from gateway.policies.verdicts import Arms, Verdict, judge_canary, judge_shadow, weigh_tenants
from tests.harness.trial_traffic import Habits, looks


def ends(seed: int, habits: Habits, *, share: float = 0.05, sessions: int = 250, every: int = 10) -> Verdict:
    """The first verdict that ends the trial, or the last look's."""
    verdict = judge_canary(Arms(), hours=48, least_hours=24)
    for arms in looks(seed, habits, share=share, sessions=sessions, every=every):
        verdict = judge_canary(arms, hours=48, least_hours=24)
        if verdict.outcome != "on trial":
            break
    return verdict


def test_an_injected_regression_is_found_within_a_thousand_canary_turns_at_a_share_of_five_percent() -> None:
    found = [ends(seed, Habits(cost=1.3, failures=0.08)) for seed in range(60)]
    assert {verdict.outcome for verdict in found} == {"regressed"}
    assert max(verdict.turns for verdict in found) <= 1_000


def test_a_canary_as_good_as_its_control_is_hardly_ever_taken_off() -> None:
    ended = Counter(ends(seed, Habits(), share=0.1, sessions=800, every=20).outcome for seed in range(60))
    assert ended["regressed"] <= 3
    assert ended["held"] >= 40


def test_a_canary_worse_by_five_points_of_quality_hardly_ever_holds() -> None:
    ended = Counter(ends(seed, Habits(quality=0.70), share=0.1, sessions=800, every=20).outcome for seed in range(60))
    assert ended["held"] <= 3


@pytest.mark.parametrize(
    ("habits", "word"),
    [(Habits(cost=1.6), "cost"), (Habits(failures=0.15), "failures"), (Habits(quality=0.5), "quality")],
)
def test_a_regression_is_named_with_its_numbers(habits: Habits, word: str) -> None:
    verdict = ends(1, habits, share=0.2, sessions=800)
    assert verdict.outcome == "regressed"
    assert any(reason.startswith(word) for reason in verdict.reasons)
    assert {"canary", "control", "low", "high"} == set(verdict.numbers[word])


def test_dearer_turns_are_no_regression_when_quality_is_certainly_better() -> None:
    better = looks(3, Habits(cost=1.6, quality=0.98, failures=0.0), share=0.5, sessions=1_000, every=1_000)[-1]
    assert judge_canary(better, hours=48, least_hours=24).outcome == "on trial"


def test_a_few_sessions_say_nothing_and_say_so() -> None:
    few = looks(1, Habits(failures=0.9), share=0.5, sessions=20, every=20)[-1]
    verdict = judge_canary(few, hours=48, least_hours=24)
    assert (verdict.outcome, verdict.reasons) == ("on trial", ("not enough data: 20 of at least 30 sessions",))


def test_a_good_canary_does_not_hold_before_its_hours_are_over_nor_without_grades() -> None:
    good = looks(1, Habits(cost=0.7, failures=0.0, quality=0.95), share=0.5, sessions=1_500, every=1_500)[-1]
    assert judge_canary(good, hours=24, least_hours=24).outcome == "held"
    early = judge_canary(good, hours=6.5, least_hours=24)
    assert early.reasons == ("not enough data: 6.5 of 24 hours",)
    blind = Arms({**good.canary, "quality": Arm()}, good.control)
    assert judge_canary(blind, hours=24, least_hours=24).reasons == (
        "not enough data: quality may still be 0.05 worse",
    )


@pytest.mark.parametrize(
    ("turns", "answered", "outcome"), [(199, 199, "on trial"), (200, 198, "held"), (200, 197, "regressed")]
)
def test_a_shadow_has_to_answer_nearly_every_turn(turns: int, answered: int, outcome: str) -> None:
    assert judge_shadow(turns, answered).outcome == outcome


def sessions(count: int, y: float) -> Arm:
    """So many sessions of one turn each, with the same y."""
    return Arm(count, count * y, count, count * y * y, count * y, count)


def test_a_tenant_with_most_sessions_of_one_arm_weighs_less_in_both() -> None:
    """By hand: a has 8 of the canary's 10 turns, a share of .8 and a weight of .25 / .8, and so has b of the control's.
    Each over the largest is 1. With c's 10 in the control b has .4 of it, a weight of .625, and a's is half of that:
    4 + 2 turns in the canary."""
    a, b = (sessions(8, 1.0), sessions(2, 0.0)), (sessions(2, 0.0), sessions(8, 0.0))
    assert weigh_tenants({"a": a, "b": b}) == (Arm(10, 8.0, 10.0, 8.0, 8.0, 10.0), sessions(10, 0.0))
    c = (Arm(), sessions(10, 0.0))
    canary, _ = weigh_tenants({"a": a, "b": b, "c": c})
    assert canary.rate == pytest.approx(4.0 / 6.0)
    assert (canary.y, canary.m, canary.yy, canary.mm) == pytest.approx((4.0, 6.0, 2.0, 4.0))
    assert canary.sessions == 9  # (8 * .5 + 2)^2 / (8 * .25 + 2)


def test_a_tenant_alone_has_its_whole_weight() -> None:
    only = (sessions(7, 1.0), sessions(90, 0.5))
    assert weigh_tenants({"a": only, "silent": (Arm(), Arm())}) == only
    assert weigh_tenants({}) == (Arm(), Arm())
