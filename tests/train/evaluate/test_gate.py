"""Verdicts are values with their reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from train.config import GateConfig
from train.evaluate.gate import Evidence, judge, sessions_needed, tails
from train.evaluate.ope import Interval

CONFIG = GateConfig(confidence=0.95, min_sessions=100, min_ess=40, min_ess_fraction=0.05)
GOOD = Evidence(
    name="resolving",
    sessions=300,
    trees=300,
    turns=1500,
    gain=Interval(0.05, 0.02, 0.08),
    gain_sd=0.3,
    second_opinion=Interval(0.04, -0.03, 0.11),
    effective_turns=400,
    overlap=1.0,
    starved_rate=0.01,
    incumbent_starved_rate=0.01,
)


def test_a_certain_gain_is_promoted_with_its_numbers() -> None:
    verdict = judge([GOOD], CONFIG)
    assert (verdict.outcome, verdict.candidate) == ("promote", "resolving")
    assert "+0.0500" in verdict.reasons[0]
    assert "300" in verdict.reasons[0]


def test_of_two_that_pass_the_training_part_chooses_not_the_luckier_estimate() -> None:
    tuned = replace(GOOD, tuned_score=0.8)
    lucky = replace(GOOD, name="learned", gain=Interval(0.09, 0.06, 0.12), tuned_score=0.7)
    assert judge([tuned, lucky], CONFIG).candidate == "resolving"
    assert judge([replace(tuned, overlap=0.1), lucky], CONFIG).candidate == "learned"


def test_a_network_that_nothing_surpasses_with_confidence_is_published() -> None:
    """The rule is better by at least the bound: .001 is a tie, .002 is not."""
    rule = replace(GOOD, tuned_score=0.9, over_networks={"network": 0.001})
    network = replace(GOOD, name="network", network=True, gain=Interval(0.01, -0.01, 0.03), tuned_score=0.8)
    verdict = judge([rule, network], CONFIG)
    assert (verdict.outcome, verdict.candidate) == ("promote", "network")
    assert verdict.reasons[0].startswith("the network, with a gain of +0.0100")
    assert judge([replace(rule, over_networks={"network": 0.002}), network], CONFIG).candidate == "resolving"


@pytest.mark.parametrize(
    "worse",
    [
        {"gain": Interval(-0.002, -0.01, 0.02)},
        {"starved_rate": 0.2},
        {"overlap": 0.5},
        {"incumbent_overlap": 0.5},
        {"second_opinion": Interval(-0.2, -0.3, -0.1)},
    ],
)
def test_a_network_that_fails_another_test_is_not_published_for_being_level(worse: dict[str, object]) -> None:
    rule = replace(GOOD, over_networks={"network": -0.01})
    network = replace(GOOD, name="network", network=True, gain=Interval(0.01, -0.01, 0.03))
    assert judge([rule, replace(network, **worse)], CONFIG).candidate == "resolving"  # type: ignore[arg-type]


def test_a_network_alone_needs_a_certain_gain() -> None:
    network = replace(GOOD, name="network", network=True, incumbent_network=True, gain=Interval(0.01, -0.01, 0.03))
    assert judge([network], CONFIG).outcome == "not enough data"


def test_an_uncertain_gain_is_not_enough_data_and_says_how_much_would_be() -> None:
    unsure = replace(GOOD, gain=Interval(0.01, -0.02, 0.04))
    verdict = judge([unsure], CONFIG)
    # (1.645 * .3 / .01)^2 = 2435 sessions.
    assert verdict.outcome == "not enough data"
    assert verdict.reasons[0] == "not enough data: 300 of about 2,500 held-out sessions"


def test_a_loss_keeps_the_incumbent() -> None:
    verdict = judge([replace(GOOD, gain=Interval(-0.02, -0.05, 0.01))], CONFIG)
    assert verdict.outcome == "keep"
    assert "not above 0" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("worse", "word"),
    [
        (replace(GOOD, effective_turns=30), "effective sample size"),
        (replace(GOOD, overlap=0.5), "overlap"),
        (replace(GOOD, incumbent_overlap=0.01), "the log says little about what serves now"),
        (replace(GOOD, starved_rate=0.15), "starves"),
        (replace(GOOD, second_opinion=Interval(-0.1, -0.15, -0.05)), "contradicts"),
    ],
)
def test_each_floor_alone_refuses(worse: Evidence, word: str) -> None:
    verdict = judge([worse], CONFIG)
    assert verdict.outcome == "keep"
    assert word in verdict.reasons[0]


def test_no_gain_pays_for_starving_more_unless_a_price_is_set() -> None:
    starving = replace(GOOD, starved_rate=0.05)
    assert judge([replace(starving, gain=Interval(0.9, 0.8, 1.0))], CONFIG).reasons == (
        "resolving: starves 5.0% of sessions, the incumbent 1.0%",
    )


def test_starving_more_at_a_price_must_be_paid_for_with_answers() -> None:
    # 4 points more starve, 2 are allowed: .02 sessions of five turns each, a right answer apiece: .004 per turn.
    starving = replace(GOOD, starved_rate=0.05)
    assert judge([starving], replace(CONFIG, starved_worth=1.0)).outcome == "promote"
    costlier = replace(CONFIG, starved_worth=10.0)  # .04 per turn, and .02 is sure
    assert "would pay for that" in judge([starving], costlier).reasons[0]
    assert judge([starving], replace(CONFIG, max_starved_increase=0.05, starved_worth=10.0)).outcome == "promote"


def test_too_few_sessions_promote_nothing_however_large_the_gain() -> None:
    verdict = judge([replace(GOOD, trees=12, gain=Interval(0.5, 0.4, 0.6))], CONFIG)
    assert verdict.outcome == "not enough data"
    assert verdict.reasons[0].startswith("not enough data: 12 of about 100 ")


def test_no_candidate_keeps_the_incumbent() -> None:
    assert judge([], CONFIG).outcome == "keep"


@pytest.mark.parametrize(
    "changes",
    [
        {"gain": Interval(0.04, -400.0, 400.0), "gain_sd": 1e4},
        {},  # the same signal on every turn has no variance
        {"gain": Interval(0.0, 0.0, 0.0), "gain_sd": 0.0, "network": True},
    ],
)
def test_without_feedback_no_number_of_sessions_suffices(changes: dict[str, Any]) -> None:
    verdict = judge([replace(GOOD, graded_share=0.0, **changes)], CONFIG)
    assert verdict.outcome == "not enough data"
    assert verdict.reasons[0].startswith("not enough data: no held-out turn without an implicit signal has feedback")


def test_a_tiny_gain_asks_for_thousands_of_sessions() -> None:
    # The known case: sd .94 per session, gain .013: about 14,000 sessions.
    tiny = replace(GOOD, gain=Interval(0.013, -0.1, 0.1), gain_sd=0.94)
    assert sessions_needed(tiny, CONFIG) == 15_000


def test_half_of_the_error_probability_is_the_first_candidate_s_and_the_others_share_the_rest() -> None:
    assert tails(CONFIG, 0) == ()
    assert tails(CONFIG, 1) == pytest.approx((0.05,))
    assert tails(CONFIG, 3) == pytest.approx((0.025, 0.0125, 0.0125))
    assert sum(tails(CONFIG, 6)) == pytest.approx(0.05)


def test_a_candidate_with_less_of_the_error_probability_needs_more_sessions() -> None:
    # (2.326 * .94 / .013)^2 = 28,294 of one in a hundred, against (1.645 ...)^2 = 14,145 of one in twenty.
    tiny = replace(GOOD, gain=Interval(0.013, -0.1, 0.1), gain_sd=0.94, below=0.01)
    assert sessions_needed(tiny, CONFIG) == 29_000
