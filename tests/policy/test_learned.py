"""The served network as a policy, and the rules that a checkpoint may name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from policy.catalogue_statistics import NOTHING_KNOWN, CatalogueStatistics
from policy.checkpoint import load, save
from policy.exploration import Exploration
from policy.fallback import check_decision
from policy.learned import policy_from
from policy.manifest import Recipe
from policy.mdp import COST_LEVELS, PolicyFault
from policy.network_policy import NetworkPolicy, able_later
from policy.reload import pretrained
from policy.residual import INPUT_DIM, Residual
from policy.rules import Cheapest, Pacing, ReSolving, Strongest, Threshold, TunedLambda
from policy.value_layers import forward_of
from tests.policy.networks import SMALL, layers, part
from tests.policy.observations import candidate, observation, permuted, random_observation

F32 = np.float32


def network(seed: int = 0, **settings: Any) -> NetworkPolicy:
    return NetworkPolicy("network", forward_of(layers(seed)), **settings)


def shipped(**settings: Any) -> NetworkPolicy:
    policy = pretrained().policy
    assert isinstance(policy, NetworkPolicy)
    return replace(policy, **settings)


def statistics(**changes: Any) -> CatalogueStatistics:
    values: dict[str, Any] = {
        "quality": [0.4, 0.8], "spread": [0.1, 0.1], "mean_usd": [0.001, 0.01], "q95_usd": [0.002, 0.02],
        "list_usd": [5.0, 5.0], "answers": np.ones((3, len(COST_LEVELS))), "margin": [0.0, 0.0, 0.0],
        "grown_tokens": [100.0],
    } | changes  # fmt: skip
    return CatalogueStatistics(("small", "large"), **{name: np.asarray(x, F32) for name, x in values.items()})


def test_propensities_recomputed_from_the_observation_are_those_logged() -> None:
    policy, again = (network(exploration=Exploration(0.1)) for _ in range(2))
    rng = np.random.default_rng(1)
    for _ in range(100):
        view, uniform = random_observation(rng), float(rng.random())
        decision, recomputed = policy.decide(view, uniform), again.decide(view, uniform)
        check_decision(view, decision)
        assert decision.action == recomputed.action
        assert decision.propensity == float(recomputed.probabilities[decision.action])


def test_the_order_of_the_catalogue_does_not_matter() -> None:
    policy, rng = network(), np.random.default_rng(3)
    for _ in range(20):
        view = random_observation(rng)
        order = rng.permutation(len(view.candidates)).tolist()
        one, other = policy.decide(view, 0.0), policy.decide(permuted(view, order), 0.0)
        assert one.q_quality[order] == pytest.approx(other.q_quality, abs=1e-3)


def test_a_model_added_by_price_and_prior_alone_is_chosen_without_training() -> None:
    weak = [candidate("a", 0.001, 0.3), candidate("b", 0.002, 0.35)]
    newcomer = candidate("brand-new", 0.0015, 0.99)
    assert shipped().decide(observation(weak), 0.0).action < 2
    assert shipped().decide(observation([*weak, newcomer]), 0.0).action == 2
    removed = observation([structs.replace(weak[0], feasible=False, why_not="removed"), weak[1]])
    assert shipped().decide(removed, 0.0).action == 1


def test_lambda_moves_the_choice_from_quality_to_cost() -> None:
    pair = [candidate("small", 0.001, 0.4), candidate("large", 0.1, 0.95)]
    assert shipped().decide(observation(pair, lambda_per_usd=0.0, expected_turns=1), 0.0).action == 1
    assert shipped().decide(observation(pair, lambda_per_usd=1e3, expected_turns=1), 0.0).action == 0


def test_money_that_later_turns_need_is_kept() -> None:
    pair = [candidate("small", 0.001, 0.6), candidate("large", 0.1, 0.99)]
    assert shipped().decide(observation(pair, expected_turns=8, remaining_usd=0.102), 0.0).action == 0
    assert shipped().decide(observation(pair, expected_turns=8, remaining_usd=10.0), 0.0).action == 1


def test_the_price_of_starving_is_a_dial_that_needs_no_other_network() -> None:
    # `large` bills 1 or 50 cents; there are 30, and the last turn is now.
    risky = tuple(np.where(np.array(COST_LEVELS) < 0.8, 0.01, 0.5).tolist())
    pair = [candidate("small", 0.001, 0.6), candidate("large", prior=0.99, cost_quantiles_usd=risky)]
    view = observation(pair, expected_turns=1, remaining_usd=0.3)
    assert shipped(starved_penalty=0.0).decide(view, 0.0).action == 1
    assert shipped(starved_penalty=5.0).decide(view, 0.0).action == 0


def test_a_margin_is_subtracted_from_the_quality_that_serves() -> None:
    view = observation([candidate("large", 0.001, 0.9), candidate("unknown", 0.001, 0.85)], expected_turns=1)
    plain = network(statistics=statistics()).decide(view, 0.0)
    wary = network(statistics=statistics(margin=[0.0, 0.2, 0.3])).decide(view, 0.0)
    assert plain.quality - wary.quality == pytest.approx([0.2, 0.3], abs=1e-6)


def test_a_residual_moves_the_quality_by_what_it_says() -> None:
    residual = Residual(np.zeros((INPUT_DIM, 1), F32), np.ones(1, F32), np.full(1, 0.25, F32), np.full(1, -0.1, F32))
    view = observation([candidate("a", 0.001, 0.5), candidate("b", 0.002, 0.5)])
    moved = network(residual=residual).decide(view, 0.0).quality - network().decide(view, 0.0).quality
    assert moved == pytest.approx([0.15, 0.15], abs=1e-6)
    with pytest.raises(ValueError, match="residual/kernel"):
        Residual.from_arrays(residual.arrays() | {"kernel": np.zeros((2, 1), F32)})


def test_a_law_at_other_list_prices_scales_its_bills_and_leaves_newcomers_to_this_turn() -> None:
    places = np.array([1, 2])
    bills = np.array([np.full(len(COST_LEVELS), 0.05), np.full(len(COST_LEVELS), 0.03)])
    shown = (np.array([0.7, 0.6]), np.array([10.0, 7.0]), bills, np.array([0.0, 0.01]), np.ones(2, bool))
    rows = statistics().rows(places, *shown)
    assert rows.quality == pytest.approx([0.8, 0.6])
    assert rows.mean_usd == pytest.approx([0.02, 0.02], rel=1e-4)  # twice as costly now; .03 less .01 for reading
    nothing = NOTHING_KNOWN.rows(np.zeros(2, int), *shown)
    assert nothing.mean_usd == pytest.approx([0.05, 0.02], rel=1e-4)
    assert (nothing.spread >= 0.0).all()


def test_only_money_may_keep_a_model_from_later_turns() -> None:
    assert able_later(candidate("a"))
    assert able_later(candidate("a", feasible=False, why_not="not affordable"))
    assert not able_later(candidate("a", feasible=False, why_not="no tools"))


@pytest.mark.parametrize("where", ["layers", "lambda", "quantile"])
def test_anything_not_finite_is_a_policy_fault(where: str) -> None:
    found, view = layers(), observation([candidate("a"), candidate("b", 0.01)], expected_turns=4)
    if where == "layers":
        found["curves"]["bias"][0] = np.nan
    elif where == "lambda":
        view = structs.replace(view, lambda_per_usd=float("nan"))
    else:
        view = observation([candidate("a", cost_usd=float("nan")), candidate("b")])
    with pytest.raises(PolicyFault, match="finite"):
        NetworkPolicy("p", forward_of(found)).decide(view, 0.5)


@pytest.mark.parametrize(
    ("rule", "numbers", "kind"),
    [
        ("network", {"starved_penalty": 0.5}, NetworkPolicy),
        ("resolving", {"reserve": 2.0, "spread": 0.2, "cache_aware": 0.0, "margin": 0.9}, ReSolving),
        ("pacing", {"factor": 1.3}, Pacing),
        ("tuned-lambda", {"lambda_per_usd": 3.0}, TunedLambda),
        ("threshold", {"threshold": 0.2}, Threshold),
        ("strongest", {}, Strongest),
        ("cheapest", {}, Cheapest),
    ],
)
def test_a_checkpoint_serves_by_the_rule_it_names(
    tmp_path: Path, rule: str, numbers: dict[str, float], kind: type
) -> None:
    save(tmp_path / "p1", Recipe("p1", rule, numbers, sizes=SMALL), part() if rule == "network" else {})
    policy = policy_from(load(tmp_path / "p1"), Exploration(0.05))
    assert isinstance(policy, kind)
    assert policy.policy_id == "p1"
    for name, value in numbers.items():
        assert getattr(policy, name) == value
    assert getattr(policy, "exploration").floor == 0.05  # noqa: B009 - the protocol does not name it
    assert policy.decide(observation([candidate("a"), candidate("b", 0.01)]), 0.5).policy_id == "p1"


def test_serving_the_network_imports_no_jax() -> None:
    code = (
        "import sys; from policy.reload import pretrained, warm_up; warm_up(pretrained().policy);"
        "print([name for name in sys.modules if name.split('.')[0] in ('jax', 'flax')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_later_turn_of_a_long_conversation_costs_little_besides_reading_it() -> None:
    # A bill of 8,100 tokens at 1 USD a million, of which reading 8,000 is the conversation's: 100 remain, not 5 %.
    bills = np.full((2, len(COST_LEVELS)), 8_100e-6, np.float32)
    found = NOTHING_KNOWN.rows(
        np.zeros(2, np.int64), np.full(2, 0.5), np.ones(2), bills, np.array([8_000e-6, 9_000e-6]), np.ones(2, bool)
    )
    assert found.mean_usd == pytest.approx([100e-6, 81e-6], rel=1e-3)  # the least is a hundredth of the bill
    both = [(8_100e-6, 8_100e-6)] * 2
    plain = NOTHING_KNOWN.rows_of_turn([0, 0], [0.5] * 2, [1.0] * 2, both, [8_000e-6, 9_000e-6], [True] * 2)
    assert plain.mean_usd == pytest.approx([100e-6, 81e-6])
