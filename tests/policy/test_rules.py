from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from policy import rules as baselines
from policy.exploration import Exploration
from policy.fallback import check_decision
from policy.mdp import Observation, Policy, PolicyFault
from policy.quality import PriorQuality, difficulty
from tests.policy.observations import candidate, observation, permuted, random_observation

EXPLORING = Exploration(floor=0.1)
POLICIES: list[Policy] = [
    baselines.Cheapest(exploration=EXPLORING),
    baselines.Fixed("model-1", exploration=EXPLORING),
    baselines.Strongest(exploration=EXPLORING),
    baselines.Random(),
    baselines.Threshold(0.1, exploration=EXPLORING),
    baselines.TunedLambda(exploration=EXPLORING),
    baselines.TunedLambda(3.0, reserve=1.0, exploration=EXPLORING),
    baselines.Pacing(exploration=EXPLORING),
    baselines.ReSolving(exploration=EXPLORING),
    baselines.ReSolving(cache_aware=False, reserve=0.0),
]
IDS = [f"{k}-{p.policy_id}" for k, p in enumerate(POLICIES)]

SMALL, MIDDLE, LARGE = (candidate("small", 0.001, 0.5), candidate("middle", 0.01, 0.7), candidate("large", 0.1, 0.95))


def chosen(policy: Policy, view: Observation, uniform: float = 0.0) -> str:
    return view.candidates[policy.decide(view, uniform).action].name


@pytest.mark.parametrize("policy", POLICIES, ids=IDS)
def test_every_rule_draws_only_feasible_candidates_with_exact_propensity(policy: Policy) -> None:
    rng = np.random.default_rng(7)
    for _ in range(150):
        view = random_observation(rng)
        uniform = float(rng.random())
        decision = policy.decide(view, uniform)
        check_decision(view, decision)
        assert policy.decide(view, uniform).action == decision.action
        assert decision.propensity == pytest.approx(float(decision.probabilities[decision.action]), abs=1e-6)
        assert decision.policy_id == policy.policy_id


@pytest.mark.parametrize("policy", POLICIES, ids=IDS)
def test_the_order_of_the_catalogue_does_not_matter(policy: Policy) -> None:
    rng = np.random.default_rng(8)
    for _ in range(30):
        view = random_observation(rng)
        order = rng.permutation(len(view.candidates)).tolist()
        one, other = policy.decide(view, 0.0), policy.decide(permuted(view, order), 0.0)
        assert one.probabilities[order] == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize("policy", POLICIES, ids=IDS)
def test_with_nothing_feasible_every_rule_faults(policy: Policy) -> None:
    with pytest.raises(PolicyFault):
        policy.decide(observation([candidate(feasible=False, why_not="not affordable")]), 0.5)


def test_each_rule_does_what_its_name_says() -> None:
    view = observation([MIDDLE, SMALL, LARGE], expected_turns=4, remaining_usd=0.05, lambda_per_usd=10.0)
    assert chosen(baselines.Cheapest(), view) == "small"
    assert chosen(baselines.Fixed("middle"), view) == "middle"
    assert chosen(baselines.Fixed("gone"), view) == "small"
    assert chosen(baselines.Strongest(), view) == "large"
    assert chosen(baselines.TunedLambda(), view) == "middle"
    assert chosen(baselines.TunedLambda(0.0), replace(view, lambda_per_usd=0.0)) == "large"
    assert chosen(baselines.TunedLambda(1000.0), view) == "small"
    assert chosen(baselines.Pacing(), view) == "middle"  # .0125 a turn
    assert {chosen(baselines.Random(), view, u) for u in (0.1, 0.5, 0.9)} == {"small", "middle", "large"}


def test_tuned_heuristics_take_the_clients_lambda_as_the_least_price_of_money() -> None:
    """`auto@cheap` means something whichever of them a night has published."""
    free = observation([SMALL, MIDDLE, LARGE], expected_turns=4, remaining_usd=0.05)
    thrifty = replace(free, lambda_per_usd=1000.0)
    assert [chosen(baselines.Pacing(), view) for view in (free, thrifty)] == ["middle", "small"]
    assert [chosen(baselines.TunedLambda(10.0), view) for view in (free, thrifty)] == ["middle", "small"]
    strict = baselines.TunedLambda(1000.0)
    assert [chosen(strict, view) for view in (free, replace(free, lambda_per_usd=1.0))] == ["small", "small"]


def test_routellms_threshold_takes_the_strong_only_for_a_gain() -> None:
    view = observation([SMALL, LARGE])
    gain = float(np.subtract(*PriorQuality().predict(view)[::-1]))
    assert chosen(baselines.Threshold(gain - 0.01), view) == "large"
    assert chosen(baselines.Threshold(gain + 0.01), view) == "small"


@pytest.mark.parametrize(("remaining", "expected"), [(10.0, "large"), (0.045, "middle"), (0.0045, "small")])
def test_resolving_spends_what_is_left_over_the_turns_left(remaining: float, expected: str) -> None:
    view = observation([SMALL, MIDDLE, LARGE], expected_turns=4, remaining_usd=remaining)
    assert chosen(baselines.ReSolving(), view) == expected


def test_resolving_keeps_enough_for_every_later_turn() -> None:
    """Played to the end under any budget that affords the cheapest throughout, no turn goes unanswered."""
    rng = np.random.default_rng(11)
    policy = baselines.ReSolving()
    for _ in range(20):
        turns = int(rng.integers(1, 10))
        left = 0.001 * turns * float(rng.uniform(1.0, 40.0))
        for turn in range(turns):
            offered = [replace(c, feasible=c.cost_quantiles_usd[0] <= left) for c in (SMALL, MIDDLE, LARGE)]
            view = observation(offered, turn=turn, expected_turns=turns, budget_usd=1.0, remaining_usd=left)
            left -= view.candidates[policy.decide(view, 0.5).action].cost_quantiles_usd[0]
        assert left >= -1e-12


def test_resolving_keeps_enough_to_read_the_conversation_from_the_cache_that_it_filled() -> None:
    """With 10k tokens of conversation: the bills of the cheapest plan are what the session needs, and enough."""
    rng, policy = np.random.default_rng(12), baselines.ReSolving()
    warm_usd, cold_usd = {"small": 0.001, "large": 0.004}, {"small": 0.01, "large": 0.04}
    served_by = set()
    for _ in range(40):
        turns, last = int(rng.integers(2, 10)), ""
        left = 0.01 + 0.001 * (turns - 1) + float(rng.uniform(0.0, 0.06))
        for turn in range(turns):
            offered = []
            for name, prior in (("small", 0.6), ("large", 0.9)):
                usd = warm_usd[name] if name == last else cold_usd[name]
                price = (cold_usd[name] - warm_usd[name]) / 0.01  # of 10k tokens
                offered.append(
                    candidate(
                        name, usd, prior, input_tokens=10_000, warm_tokens=10_000 * (name == last),
                        served_last=name == last, input_usd_per_mtok=price, cached_input_usd_per_mtok=0.0,
                        feasible=usd <= left + 1e-12,
                    )
                )  # fmt: skip
            view = observation(offered, turn=turn, expected_turns=turns, budget_usd=1.0, remaining_usd=left)
            chosen_now = view.candidates[policy.decide(view, 0.5).action]
            left, last = left - chosen_now.cost_quantiles_usd[0], chosen_now.name
            served_by.add(last)
        assert left >= -1e-9
    assert served_by == {"small", "large"}


@pytest.mark.parametrize(
    ("likely_usd", "cached_price", "expected"), [(0.14, 0.999, "large"), (0.14, 1.0, "small"), (0.08, 0.999, "small")]
)
def test_resolving_does_not_save_what_later_holds_would_leave_unspent(
    likely_usd: float, cached_price: float, expected: str
) -> None:
    """Four turns and .18: of every 2,000 bills of the large model, 70 are `likely_usd` and the others .08.

    With .14, its mean is .0821, and four turns with a share p of it cost .04 + .288 p: .18 buys p = .49. But after the
    last turn the .058 that a likely bill may cost more are left, half of which (there are two models) is planned with
    where there is a cache: p = .59. Without such bills, p is .50. This turn is an easy one: it takes the large model
    from p = .52 on. The cache saves a thousandth of the prompt's .001, which changes none of this.
    """
    prompt = {"input_tokens": 2_000, "input_usd_per_mtok": 0.5, "cached_input_usd_per_mtok": 0.5 * cached_price}
    bills = (0.08,) * 12 + (likely_usd,) * 3
    offered = [
        candidate("small", 0.01, 0.6, **prompt),
        candidate("large", prior=0.7, cost_quantiles_usd=bills, **prompt),
    ]
    view = observation(offered, expected_turns=4, remaining_usd=0.18)
    assert chosen(baselines.ReSolving(), view) == expected


def test_the_tenants_budget_binds_as_the_sessions_does() -> None:
    view = observation([SMALL, LARGE], expected_turns=4, remaining_usd=10.0, tenant_remaining_usd=0.01)
    assert chosen(baselines.ReSolving(), view) == "small"


def test_resolving_stays_on_a_warm_model_unless_blind_to_the_cache() -> None:
    """30k tokens of context: leaving the warm model costs a cold read that a short plan does not earn back."""
    shared = {"input_tokens": 30_000, "input_usd_per_mtok": 1.0, "cached_input_usd_per_mtok": 0.1}
    warm = candidate("warm", 0.004, 0.70, warm_tokens=30_000, served_last=True, **shared)
    rival = candidate("rival", 0.031, 0.75, **shared)
    view = observation([warm, rival], turn=4, expected_turns=10, budget_usd=0.06, remaining_usd=0.033)
    assert chosen(baselines.ReSolving(), view) == "warm"
    costs = baselines.ReSolving().decide(view, 0.0).q_cost_usd
    blind = baselines.ReSolving(cache_aware=False).decide(view, 0.0).q_cost_usd
    assert costs[1] - costs[0] > 0.02
    assert abs((blind[1] - blind[0]) - 0.027) < 1e-6


def test_values_to_go_of_resolving_are_this_turn_plus_the_plan() -> None:
    view = observation([SMALL, LARGE], expected_turns=1)
    decision = baselines.ReSolving().decide(view, 0.0)
    assert decision.q_cost_usd == pytest.approx([0.001, 0.1])
    assert decision.q_quality == pytest.approx(decision.quality)
    assert np.isnan(baselines.Cheapest().decide(view, 0.0).q_cost_usd).all()


def test_the_reason_says_who_left_no_choice() -> None:
    alone = observation([SMALL])
    poor = observation([SMALL, replace(LARGE, feasible=False, why_not="not affordable")])
    blind = observation([SMALL, replace(LARGE, feasible=False, why_not="no vision")])
    reserved = observation([SMALL, LARGE], expected_turns=10, remaining_usd=0.105)
    policy = baselines.ReSolving()
    assert policy.decide(alone, 0.0).reason == "policy"
    assert policy.decide(poor, 0.0).reason == "only-affordable"
    assert policy.decide(blind, 0.0).reason == "capability"
    assert policy.decide(reserved, 0.0).reason == "only-affordable"
    explored = baselines.Random().decide(observation([SMALL, SMALL]), 0.9)
    assert (explored.reason, explored.propensity) == ("explore", 0.5)


def test_cost_quantiles_that_are_no_costs_are_a_fault() -> None:
    for bad in (float("nan"), float("inf"), -0.1):
        with pytest.raises(PolicyFault, match="quantile"):
            baselines.Cheapest().decide(observation([candidate(cost_usd=bad)]), 0.0)


def test_a_hard_turn_widens_the_gap_between_weak_and_strong() -> None:
    easy = observation([SMALL, LARGE], words="hi")
    hard = observation(
        [SMALL, LARGE],
        words="Prove step by step why x = 3 * 7 and explain: " + "reason " * 300,
        failures=2,
        last_quality=0.1,
    )
    assert difficulty(easy) < 0.2 < 0.8 < difficulty(hard)
    gaps = [float(np.subtract(*PriorQuality().predict(v)[::-1])) for v in (easy, hard)]
    assert gaps[1] > gaps[0] + 0.1


def test_a_failure_in_the_session_escalates_to_the_stronger_model() -> None:
    calm = observation([SMALL, MIDDLE], lambda_per_usd=22.0, words="sum the list")
    troubled = observation([SMALL, MIDDLE], lambda_per_usd=22.0, words="sum the list", failures=2, last_quality=0.0)
    assert chosen(baselines.TunedLambda(), calm) == "small"
    assert chosen(baselines.TunedLambda(), troubled) == "middle"


def test_the_builtin_rules_are_named_by_their_ids() -> None:
    rules = baselines.builtin_rules(EXPLORING)
    assert {"rule:resolving", "rule:cheapest", "rule:random"} <= set(rules)
    assert all(policy_id == rule.policy_id for policy_id, rule in rules.items())
