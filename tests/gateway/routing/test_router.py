"""Which policy answers a session, what is logged of it, and that no fault of a policy reaches the turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.config.settings import PolicySettings
from gateway.routing.guard import RequestedModel
from gateway.routing.router import POLICY_FAULT, Routed, Router, forced, forced_reason, share
from gateway.turn.headers import TurnHeaders
from policy.answer_lengths import AnswerLengths
from policy.features import SESSION_FEATURES, STATE_DIM, encode_state
from policy.mdp import COST_LEVELS, Decision, Observation, PolicyFault
from policy.reload import CheckpointRef, LoadedPolicy, ServingPolicies
from policy.rules import LAMBDA_PRESETS, Cheapest, Random, Strongest
from policy.text import STATS_DIM, TEXT_DIM
from tests.policy.observations import candidate, observation

ANY, PINNED = RequestedModel(None, None), RequestedModel("big", None)
SMALL, BIG = candidate("small", 0.001, 0.6), candidate("big", 0.01, 0.9)
BOTH = observation([SMALL, BIG])
NOTHING_ASKED = TurnHeaders(None, None, False, None, None)


def served(policy: Any, **presets: float) -> LoadedPolicy:
    return LoadedPolicy(policy, CheckpointRef(policy.policy_id), presets)


RULE = served(Cheapest(policy_id="rule:behind"))
CHAMPION = served(Strongest(policy_id="champion"))
CANARY = served(Strongest(policy_id="canary"))


@dataclass(frozen=True)
class Broken:
    """A policy that does what `act` does."""

    act: Callable[[], Any]
    policy_id: str = "broken"

    def decide(self, observed: Observation, uniform: float) -> Decision:
        answer: Decision = self.act()
        return answer


@dataclass
class Faults:
    count: int = 0

    def __call__(self) -> None:
        self.count += 1


def router(
    lineup: ServingPolicies, on_fault: Callable[[], None] = lambda: None, rule: LoadedPolicy = RULE, **settings: Any
) -> Router:
    chosen = PolicySettings(**settings)
    return Router(lambda: chosen, rule, lambda: lineup, monotonic=lambda: 0.0, on_fault=on_fault)


def decide(subject: Router, observed: Observation = BOTH, requested: RequestedModel = ANY, key: str = "t/s") -> Any:
    return subject.decide(observed, 0.5, requested, key).decision


# -- lengths of the answers --------------------------------------------------------------------------------------------


def with_lengths() -> LoadedPolicy:
    """A champion that expects 100 tokens of `small`, twice as many for every unit of the prompt's logarithm."""
    weights = np.zeros((STATE_DIM, 1))
    weights[TEXT_DIM + STATS_DIM + SESSION_FEATURES.index("log_input_tokens")] = 1.0
    arrays = {
        "centre": np.zeros(STATE_DIM), "scale": np.ones(STATE_DIM), "weights": weights, "widths": np.zeros(STATE_DIM),
        "offset": np.zeros(1), "quantiles": np.full((1, len(COST_LEVELS)), np.log(100.0)), "known": np.ones(1),
    }  # fmt: skip
    lengths = AnswerLengths.from_arrays(("small",), {name: x.astype(np.float32) for name, x in arrays.items()})
    return replace(CHAMPION, lengths=lengths)


def test_the_champion_predicts_lengths_from_the_state_that_is_logged() -> None:
    lineup = ServingPolicies(with_lengths())
    unestimated = structs.replace(BOTH, candidates=())
    found = router(lineup).answer_tokens(unestimated, 500, 2)
    assert set(found) == {"small"}
    logged = encode_state(
        structs.replace(BOTH, candidates=tuple(structs.replace(c, input_tokens=500) for c in BOTH.candidates))
    )
    assert lineup.champion.lengths is not None
    assert found == lineup.champion.lengths.by_model(logged)
    assert found["small"][0] == pytest.approx(100.0 * 501.0 ** (1 / 12), rel=1e-5)


def test_without_a_head_or_with_policies_off_models_keep_their_own_distribution() -> None:
    assert router(ServingPolicies(CHAMPION)).answer_tokens(BOTH, 500, 2) == {}
    assert router(ServingPolicies(with_lengths()), mode="off").answer_tokens(BOTH, 500, 2) == {}


def test_a_turn_that_cannot_be_encoded_counts_as_a_fault_and_has_no_predicted_lengths() -> None:
    faults = Faults()
    broken = structs.replace(BOTH, text=np.full_like(BOTH.text, np.nan))
    assert router(ServingPolicies(with_lengths()), faults).answer_tokens(broken, 500, 2) == {}
    assert faults.count == 1


# -- forced ------------------------------------------------------------------------------------------------------------


def test_a_pin_is_executed_with_probability_one_and_says_so() -> None:
    only_big = observation([structs.replace(SMALL, feasible=False, why_not="not the pinned model"), BIG])
    decision = decide(router(ServingPolicies(CHAMPION)), only_big, PINNED)
    assert (decision.action, decision.reason, decision.propensity, decision.policy_id) == (
        1, "pinned", 1.0, "rule:forced",
    )  # fmt: skip
    assert decision.probabilities.tolist() == [0.0, 1.0]
    assert np.isnan(decision.q_quality).all()
    assert decision.quality.tolist() == pytest.approx([0.6, 0.9])


@pytest.mark.parametrize(
    ("why_not", "reason"),
    [
        (["tool loop on another model"], "tool-loop"),
        (["not affordable"], "only-affordable"),
        (["lacks tools"], "capability"),
        (["context too small"], "capability"),
        (["unhealthy"], "capability"),
        (["lacks tools", "not affordable"], "only-affordable"),
        (["not affordable", "tool loop on another model"], "tool-loop"),
        ([], "policy"),
    ],
)
def test_when_one_is_left_the_reason_says_what_took_the_others(why_not: list[str], reason: str) -> None:
    others = [structs.replace(SMALL, feasible=False, why_not=why) for why in why_not]
    seen = observation([*others, BIG])
    assert forced_reason(seen) == reason
    decision = decide(router(ServingPolicies(served(Broken(lambda: 1 / 0)))), seen)
    assert (decision.action, decision.reason, decision.propensity) == (len(others), reason, 1.0)


@given(st.lists(st.tuples(st.floats(1e-9, 10.0), st.booleans()), min_size=1, max_size=8))
def test_a_forced_choice_is_the_cheapest_feasible_one(candidates: list[tuple[float, bool]]) -> None:
    views = [structs.replace(candidate(f"m{k}", cost), feasible=may) for k, (cost, may) in enumerate(candidates)]
    if not any(may for _, may in candidates):
        return
    action = forced(observation(views), "x").action
    assert views[action].feasible
    assert views[action].cost_max_usd == min(v.cost_max_usd for v in views if v.feasible)


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "policy_id", "reason", "shadow"),
    [
        ("off", "rule:behind", "policy-off", None),
        ("shadow", "rule:behind", "shadow", "champion"),
        ("on", "champion", "policy", None),
    ],
)
def test_the_mode_decides_who_serves_and_what_is_logged(
    mode: str, policy_id: str, reason: str, shadow: str | None
) -> None:
    routed = router(ServingPolicies(CHAMPION), mode=mode).decide(BOTH, 0.5, ANY, "t/s")
    assert (routed.decision.policy_id, routed.decision.reason) == (policy_id, reason)
    assert (routed.shadow.policy_id if routed.shadow else None) == shadow


def test_a_shadow_s_choice_is_logged_beside_the_champion_s() -> None:
    routed = router(ServingPolicies(RULE, shadow=CHAMPION)).decide(BOTH, 0.5, ANY, "t/s")
    assert BOTH.candidates[routed.decision.action].name == "small"
    assert routed.shadow is not None
    assert (routed.shadow.policy_id, routed.shadow.model) == ("champion", "big")


@given(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 10_000), st.sampled_from(["canary", "on"]))
def test_a_shadow_never_changes_what_is_done(uniform: float, session: int, mode: str) -> None:
    champion, trial = served(Random(policy_id="champion")), served(Random(policy_id="trial"))
    alone = router(ServingPolicies(champion, canary=CANARY), mode=mode).decide(BOTH, uniform, ANY, f"t/{session}")
    beside = router(ServingPolicies(champion, canary=CANARY, shadow=trial), mode=mode)
    watched = beside.decide(BOTH, uniform, ANY, f"t/{session}")
    assert (watched.decision.action, watched.decision.policy_id, watched.decision.reason) == (
        alone.decision.action, alone.decision.policy_id, alone.decision.reason,
    )  # fmt: skip
    assert watched.decision.probabilities.tolist() == alone.decision.probabilities.tolist()
    assert watched.shadow is not None


def test_a_fault_is_logged_with_whose_turn_it_was() -> None:
    lineup = ServingPolicies(CHAMPION, canary=served(Broken(lambda: 1 / 0, "canary")), shadow=CHAMPION)
    routed = router(lineup, canary_fraction=1.0).decide(BOTH, 0.5, ANY, "t/s")
    assert (routed.decision.policy_id, routed.decision.reason) == ("rule:behind", POLICY_FAULT)
    assert routed.shadow is not None
    assert (routed.shadow.policy_id, routed.shadow.model) == ("canary", None)


def test_a_shadow_that_fails_is_invisible_and_counts_as_no_fault() -> None:
    faults = Faults()
    routed = router(ServingPolicies(CHAMPION, shadow=served(Broken(lambda: 1 / 0))), faults).decide(
        BOTH, 0.5, ANY, "t/s"
    )
    assert (routed.decision.policy_id, routed.decision.reason, routed.shadow) == ("champion", "policy", None)
    assert faults.count == 0


def test_exploration_keeps_its_own_reason_whatever_the_mode() -> None:
    exploring = served(Random(policy_id="rule:behind"))
    subject = router(ServingPolicies(CHAMPION), rule=exploring, mode="off")
    reasons = {subject.decide(BOTH, uniform, ANY, "t/s").decision.reason for uniform in (0.01, 0.99)}
    assert reasons <= {"policy-off", "explore"}
    assert "explore" in reasons


def test_a_session_stays_with_its_share_and_shares_are_near_the_fraction() -> None:
    keys = [f"ten_1/session-{number}" for number in range(4_000)]
    assert all(share(key) == share(key) and 0.0 <= share(key) < 1.0 for key in keys)
    # 4,000 draws at 0.1 lie within 0.1 +- 0.02 but for one time in 10,000.
    assert abs(sum(share(key) < 0.1 for key in keys) / len(keys) - 0.1) < 0.02


def test_in_canary_mode_the_canary_s_sessions_and_only_they_meet_the_new_policy() -> None:
    subject = router(ServingPolicies(CHAMPION, canary=CANARY), mode="canary", canary_fraction=0.3)
    for number in range(200):
        key = f"t/{number}"
        expected = "canary" if share(key) < 0.3 else "rule:behind"
        assert decide(subject, key=key).policy_id == expected


def test_in_canary_mode_without_a_canary_the_champion_is_on_trial() -> None:
    subject = router(ServingPolicies(CHAMPION), mode="canary", canary_fraction=0.3)
    served_by = {decide(subject, key=f"t/{number}").policy_id for number in range(100)}
    assert served_by == {"champion", "rule:behind"}


def test_while_the_champion_serves_a_canary_takes_its_share_of_it() -> None:
    subject = router(ServingPolicies(CHAMPION, canary=CANARY), canary_fraction=0.3)
    for number in range(200):
        expected = "canary" if share(f"t/{number}") < 0.3 else "champion"
        assert decide(subject, key=f"t/{number}").policy_id == expected


# -- the price of quality ----------------------------------------------------------------------------------------------


def test_lambda_comes_from_the_header_then_the_preset_then_the_default() -> None:
    subject = router(ServingPolicies(served(Strongest(policy_id="c"), cheap=40.0)), default_lambda=3.0)
    assert subject.lambda_per_usd(RequestedModel(None, "cheap"), 0.0) == 0.0
    assert subject.lambda_per_usd(RequestedModel(None, "cheap"), None) == 40.0
    assert subject.lambda_per_usd(RequestedModel(None, "balanced"), None) == LAMBDA_PRESETS["balanced"]
    assert subject.lambda_per_usd(ANY, None) == 3.0


def test_while_a_rule_is_champion_the_configurations_presets_hold_and_a_published_policy_brings_its_own() -> None:
    named = {"cheap": 48_000.0}
    ruled = router(
        ServingPolicies(served(Cheapest(policy_id="rule:resolving"), **LAMBDA_PRESETS)), lambda_presets=named
    )
    assert ruled.lambda_per_usd(RequestedModel(None, "cheap"), None) == 48_000.0
    assert ruled.lambda_per_usd(RequestedModel(None, "balanced"), None) == LAMBDA_PRESETS["balanced"]
    published = router(ServingPolicies(served(Strongest(policy_id="c"), cheap=40.0)), lambda_presets=named)
    assert published.lambda_per_usd(RequestedModel(None, "cheap"), None) == 40.0


# -- faults ------------------------------------------------------------------------------------------------------------


def infeasible_choice() -> Decision:
    return structs.replace(Strongest().decide(BOTH, 0.5), action=7)


def wrong_propensity() -> Decision:
    return structs.replace(Strongest().decide(BOTH, 0.5), propensity=0.3)


def fault() -> Decision:
    raise PolicyFault("no")


@pytest.mark.parametrize("act", [lambda: 1 / 0, fault, infeasible_choice, wrong_propensity, lambda: None])
def test_a_fault_is_answered_by_the_rule_in_the_same_turn_and_counted(act: Callable[[], Any]) -> None:
    faults = Faults()
    decision = decide(router(ServingPolicies(served(Broken(act))), faults))
    assert (BOTH.candidates[decision.action].name, decision.reason) == ("small", POLICY_FAULT)
    assert decision.policy_id == "rule:behind"
    assert decision.propensity == decision.probabilities[decision.action] == 1.0
    assert faults.count == 1


def test_when_the_rule_faults_too_the_cheapest_feasible_model_answers() -> None:
    broken = served(Broken(fault, "rule:broken"))
    decision = decide(router(ServingPolicies(served(Broken(fault))), rule=broken))
    assert (decision.action, decision.reason, decision.propensity) == (0, POLICY_FAULT, 1.0)


def test_a_late_answer_is_a_fault_and_a_new_deadline_holds_from_the_next_turn() -> None:
    now = [0.0]
    settings = [PolicySettings(decision_deadline_ms=50.0)]

    def slow() -> Decision:
        now[0] += 0.06
        return Strongest(policy_id="slow").decide(BOTH, 0.5)

    lineup = ServingPolicies(served(Broken(slow, "slow")))
    subject = Router(lambda: settings[0], RULE, lambda: lineup, monotonic=lambda: now[0], on_fault=lambda: None)
    assert decide(subject).reason == POLICY_FAULT
    settings[0] = PolicySettings(decision_deadline_ms=100.0)
    assert decide(subject).policy_id == "slow"


def test_another_checkpoint_under_the_same_name_is_judged_anew() -> None:
    broken = ServingPolicies(served(Broken(fault, "same")))
    good = ServingPolicies(served(Strongest(policy_id="same")))
    lineup = [broken]
    subject = Router(PolicySettings, RULE, lambda: lineup[0], monotonic=lambda: 0.0, on_fault=lambda: None)
    for _ in range(10):
        assert decide(subject).reason == POLICY_FAULT
    lineup[0] = good
    assert decide(subject).policy_id == "same"


# -- several turns at once ---------------------------------------------------------------------------------------------


@dataclass
class Together:
    """A policy that counts the turns of each call, and cannot read a turn with this lambda."""

    unreadable: float | None = None
    policy_id: str = "champion"
    calls: list[int] = field(default_factory=list)

    def decide(self, observed: Observation, uniform: float) -> Decision:
        if observed.lambda_per_usd == self.unreadable:
            raise PolicyFault("unreadable")
        return Random(policy_id=self.policy_id).decide(observed, uniform)

    def decide_together(self, turns: Sequence[tuple[Observation, float]]) -> list[Decision]:
        self.calls.append(len(turns))
        return [self.decide(*turn) for turn in turns]


def priced(lambda_per_usd: float) -> Observation:
    return observation([SMALL, BIG], lambda_per_usd=lambda_per_usd)


async def test_turns_that_ask_at_once_are_decided_together_each_as_alone() -> None:
    policy = Together()
    subject = router(ServingPolicies(served(policy)))
    only = observation([SMALL, candidate("big", 0.01, 0.9, feasible=False)])
    asked = [(priced(1.0), 0.1), (only, 0.5), (priced(2.0), 0.9), (priced(3.0), 0.4)]
    found = await asyncio.gather(*(subject.decide_soon(*turn, ANY, f"t/{k}") for k, turn in enumerate(asked)))
    assert policy.calls == [3]
    for (observed, uniform), routed in zip(asked, found, strict=True):
        alone = subject.decide(observed, uniform, ANY, "t/s")
        assert (routed.decision.action, routed.decision.reason) == (alone.decision.action, alone.decision.reason)
    assert {routed.decision.action for routed in found} == {0, 1}
    assert (await subject.decide_soon(priced(1.0), 0.1, ANY, "t/s")).decision.action == found[0].decision.action
    assert policy.calls == [3], "a turn alone needs no second form"


async def test_a_turn_that_cannot_be_decided_spoils_no_other_that_asked_at_once() -> None:
    faults = Faults()
    subject = router(ServingPolicies(served(Together(unreadable=2.0))), faults)
    asked = (subject.decide_soon(priced(price), 0.9, ANY, "t/s") for price in (1.0, 2.0, 3.0))
    found = [routed.decision for routed in await asyncio.gather(*asked)]
    assert [decision.policy_id for decision in found] == ["champion", "rule:behind", "champion"]
    assert found[1].reason == POLICY_FAULT
    assert faults.count == 1


async def test_a_turn_that_leaves_before_its_decision_takes_none_from_the_others() -> None:
    policy = Together()
    subject = router(ServingPolicies(served(policy)))
    leaving, *staying = [asyncio.ensure_future(subject.decide_soon(BOTH, 0.9, ANY, f"t/{k}")) for k in range(3)]
    asyncio.get_running_loop().call_soon(leaving.cancel)
    found = await asyncio.gather(leaving, *staying, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert [routed.decision.policy_id for routed in found[1:] if isinstance(routed, Routed)] == ["champion"] * 2


async def test_more_turns_than_one_pass_takes_let_the_loop_do_what_else_is_due() -> None:
    policy, seen = Together(), list[list[int]]()
    subject = router(ServingPolicies(served(policy)))
    asked = [asyncio.ensure_future(subject.decide_soon(BOTH, 0.9, ANY, f"t/{k}")) for k in range(40)]
    for _ in range(4):
        await asyncio.sleep(0)
        seen.append(list(policy.calls))
    assert [routed.decision.policy_id for routed in await asyncio.gather(*asked)] == ["champion"] * 40
    assert seen == [[], [16], [16, 16], [16, 16, 8]]


async def test_an_unforeseen_error_of_one_turn_is_its_own() -> None:
    class OfTwo(Cheapest):
        def decide(self, observed: Observation, uniform: float) -> Decision:
            if observed.lambda_per_usd == 2.0:
                raise ValueError("no rule for this turn")
            return super().decide(observed, uniform)

    subject = router(ServingPolicies(served(Together(unreadable=2.0))), rule=served(OfTwo(policy_id="rule:behind")))
    asked = (subject.decide_soon(priced(price), 0.9, ANY, "t/s") for price in (1.0, 2.0, 3.0))
    first, second, third = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(second, ValueError)
    assert [each.decision.policy_id for each in (first, third) if isinstance(each, Routed)] == ["champion"] * 2


async def test_an_error_reaches_every_turn_that_waits() -> None:
    def no_lineup() -> ServingPolicies:
        raise LookupError("no policies")

    subject = Router(PolicySettings, RULE, no_lineup, monotonic=lambda: 0.0, on_fault=lambda: None)
    asked = (subject.decide_soon(BOTH, 0.5, ANY, "t/s") for _ in range(2))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(error) for error in found] == ["no policies"] * 2


# -- what is logged ----------------------------------------------------------------------------------------------------


@given(st.floats(0.0, 1.0, exclude_max=True), st.sampled_from(["off", "shadow", "canary", "on"]))
def test_the_logged_propensity_is_the_probability_of_the_executed_action(uniform: float, mode: str) -> None:
    subject = router(ServingPolicies(served(Random(policy_id="champion"))), mode=mode)
    decision = subject.decide(BOTH, uniform, ANY, "t/s").decision
    assert decision.propensity == pytest.approx(decision.probabilities[decision.action])
    assert decision.probabilities.sum() == pytest.approx(1.0)
    assert BOTH.mask[decision.action]
