from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from policy import budgeting as planning
from policy import learned as actor
from policy import network
from policy.checkpoint import Recipe, load, save
from policy.exploration import Exploration
from policy.fallback import check_decision
from policy.features import encode
from policy.learned import SERVED_SHAPES, LearnedPolicy, NetworkQuality, NetworkValues, policy_from, shortlist
from policy.mdp import PolicyFault
from policy.network_shapes import Sizes
from policy.rules import Pacing, ReSolving, Strongest, Threshold, TunedLambda
from tests.policy.observations import candidate, observation, permuted, random_observation

SMALL = Sizes(hidden=16, joint=8, members=3)


def numpy_params(seed: int = 0) -> dict[str, dict[str, Any]]:
    """A network whose heads speak, so that decisions differ from the priors'."""
    params = jax.tree.map(np.array, network.init(jax.random.key(seed), SMALL))
    noise = np.random.default_rng(seed).standard_normal(params["heads"]["kernel"].shape)
    params["heads"]["kernel"] += 0.05 * noise.astype(np.float32)
    return params  # type: ignore[no-any-return]


def learned(seed: int = 0, **settings: Any) -> LearnedPolicy:
    return LearnedPolicy("learned", compiled(seed), **settings)


@cache
def compiled(seed: int) -> NetworkValues:
    """Shared among tests: compiling is the slow part, and deciding leaves no trace."""
    return NetworkValues(numpy_params(seed))


def test_propensities_recomputed_from_the_observation_are_those_logged() -> None:
    policy = learned(exploration=Exploration(0.1))
    again = LearnedPolicy("again", NetworkValues(numpy_params()), exploration=Exploration(0.1))
    rng = np.random.default_rng(1)
    for _ in range(200):
        view, uniform = random_observation(rng), float(rng.random())
        decision, recomputed = policy.decide(view, uniform), again.decide(view, uniform)
        check_decision(view, decision)
        assert decision.action == recomputed.action
        assert decision.propensity == pytest.approx(float(recomputed.probabilities[decision.action]), abs=1e-6)
        assert float(decision.probabilities[view.mask].sum(dtype=np.float64)) == pytest.approx(1.0, abs=1e-6)


def test_nothing_compiles_after_the_first_call_of_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = counted_forward(monkeypatch)
    policy = LearnedPolicy("fresh", NetworkValues(numpy_params(2)))
    rng = np.random.default_rng(2)
    for count in SERVED_SHAPES:
        policy.decide(observation([candidate(str(k), 0.001 * (k + 1)) for k in range(count)]), 0.5)
    assert traced == list(SERVED_SHAPES)
    for _ in range(60):
        policy.decide(random_observation(rng, most_candidates=30), float(rng.random()))
    assert traced == list(SERVED_SHAPES)


def test_the_next_checkpoint_of_the_same_sizes_compiles_nothing_and_answers_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced = counted_forward(monkeypatch)
    seen = observation([candidate("a", 0.001), candidate("b", 0.002)])
    answers = [LearnedPolicy("p", NetworkValues(numpy_params(seed))).decide(seen, 0.5).q_quality for seed in (3, 4)]
    assert traced == [SERVED_SHAPES[0]]
    assert not np.allclose(answers[0], answers[1])


def counted_forward(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every shape that is traced from here on: a jitted function runs its Python only to be compiled."""
    traced: list[int] = []
    untraced = inspect.unwrap(actor.forward)

    def forward(params: Any, state: Any, rows: Any, money: Any, quantiles: Any, masks: Any) -> Any:
        traced.append(len(rows))
        return untraced(params, state, rows, money, quantiles, masks)

    monkeypatch.setattr(actor, "forward", jax.jit(forward))
    return traced


def test_the_order_of_the_catalogue_does_not_matter_to_the_learned_policy() -> None:
    policy, rng = learned(), np.random.default_rng(3)
    for _ in range(20):
        view = random_observation(rng)
        order = rng.permutation(len(view.candidates)).tolist()
        one, other = policy.decide(view, 0.0), policy.decide(permuted(view, order), 0.0)
        assert one.q_quality[order] == pytest.approx(other.q_quality, abs=1e-4, nan_ok=True)


def test_a_model_added_by_price_and_prior_alone_is_scored_and_chosen_without_training() -> None:
    policy = learned(5, reserve=0.0)
    weak = [candidate("a", 0.001, 0.3), candidate("b", 0.002, 0.35)]
    newcomer = candidate("brand-new", 0.0015, 0.99)
    assert policy.decide(observation(weak), 0.0).action < 2
    decision = policy.decide(observation([*weak, newcomer], lambda_per_usd=0.1), 0.0)
    assert decision.action == 2
    assert np.isfinite(decision.q_quality).all()
    removed = observation([replace(weak[0], feasible=False, why_not="removed"), weak[1]])
    assert policy.decide(removed, 0.0).action == 1


def test_lambda_moves_the_choice_from_quality_to_cost() -> None:
    policy = learned(reserve=0.0)
    pair = [candidate("small", 0.001, 0.4), candidate("large", 0.1, 0.95)]
    assert policy.decide(observation(pair, lambda_per_usd=0.0, expected_turns=1), 0.0).action == 1
    assert policy.decide(observation(pair, lambda_per_usd=1e3, expected_turns=1), 0.0).action == 0


def test_the_shield_binds_the_learned_policy_too() -> None:
    pair = [candidate("small", 0.001, 0.1), candidate("large", 0.1, 0.99)]
    view = observation(pair, expected_turns=8, remaining_usd=0.1065)
    assert learned().decide(view, 0.0).action == 0
    assert learned().decide(view, 0.0).reason == "only-affordable"
    assert learned(reserve=0.5).decide(view, 0.0).action == 1


@pytest.mark.parametrize("where", ["params", "text", "lambda", "quantile"])
def test_anything_not_finite_is_a_policy_fault(where: str) -> None:
    params, view = numpy_params(), observation([candidate("a"), candidate("b", 0.01)])
    if where == "params":
        params["heads"]["bias"][0, 0] = np.nan
    elif where == "text":
        view = replace(view, text=np.full_like(view.text, np.inf))
    elif where == "lambda":
        view = replace(view, lambda_per_usd=float("nan"))
    else:
        view = observation([candidate("a", cost_usd=float("nan")), candidate("b")])
    with pytest.raises(PolicyFault, match=r"finite|encoded"):
        LearnedPolicy("p", NetworkValues(params)).decide(view, 0.5)


def test_infeasible_candidates_have_no_values() -> None:
    view = observation([candidate("a"), candidate("b", feasible=False, why_not="no tools"), candidate("c", 0.02)])
    decision = learned().decide(view, 0.5)
    assert np.isnan(decision.q_quality).tolist() == [False, True, False]
    assert decision.probabilities[1] == 0.0


def test_of_more_candidates_than_rows_an_even_spread_over_costs_is_considered() -> None:
    costs = np.arange(40.0)[::-1, None] * np.ones((1, 15))
    mask = np.ones(40, bool)
    mask[0] = False  # the dearest
    rows = shortlist(mask, mask, costs.astype(np.float32))
    assert len(rows) == 16
    assert rows[0] == 1
    assert rows[-1] == 39
    assert np.diff(rows).max() <= 3
    few = np.arange(40) > 30
    assert set(np.flatnonzero(few)) <= set(shortlist(mask, few, costs.astype(np.float32)).tolist())
    assert shortlist(mask[:2], mask[:2], costs[:2].astype(np.float32)).tolist() == [1]


@pytest.mark.parametrize(
    ("rule", "numbers", "kind"),
    [
        ("learned", {"reserve": 0.5, "pessimism": 1.0, "shrinkage": 0.7}, LearnedPolicy),
        ("resolving", {"reserve": 2.0, "spread": 0.2, "cache_aware": 0.0, "margin": 0.9}, ReSolving),
        ("pacing", {"factor": 1.3, "network_quality": 0.0}, Pacing),
        ("tuned-lambda", {"lambda_per_usd": 3.0}, TunedLambda),
        ("threshold", {"threshold": 0.2}, Threshold),
        ("strongest", {}, Strongest),
    ],
)
def test_a_checkpoint_serves_by_the_rule_it_names(
    tmp_path: Path, rule: str, numbers: dict[str, float], kind: type
) -> None:
    save(tmp_path / "p1", Recipe("p1", rule, numbers, sizes=SMALL), numpy_params())
    policy = policy_from(load(tmp_path / "p1"), Exploration(0.05))
    assert isinstance(policy, kind)
    assert policy.policy_id == "p1"
    for name, value in numbers.items():
        if hasattr(policy, name):
            assert getattr(policy, name) == value
    assert getattr(policy, "exploration").floor == 0.05  # noqa: B009 - the protocol does not name it
    assert policy.decide(observation([candidate("a"), candidate("b", 0.01)]), 0.5).policy_id == "p1"


def test_a_rules_quality_comes_from_the_network_shrunk_and_its_averages_from_the_log() -> None:
    values = compiled(0)
    view = observation(
        [candidate("known", 0.001, 0.2), candidate("new", 0.01, 0.8), candidate("off", 0.01, 0.5, feasible=False)]
    )
    plain = NetworkQuality(values, {"known": 0.66}).predict(view)
    half = NetworkQuality(values, {"known": 0.66}, shrinkage=0.5).predict(view)
    assert half[1] - half[0] == pytest.approx((plain[1] - plain[0]) / 2, rel=1e-4)
    assert half[:2].mean() == pytest.approx(plain[:2].mean(), rel=1e-4)
    assert NetworkQuality(values, {"known": 0.66}).average(view) == pytest.approx([0.66, 0.8, 0.5])


def test_what_jax_serves_is_what_numpy_computes_from_the_heads() -> None:
    policy = learned(7, pessimism=1.5, shrinkage=0.6)
    view = observation(
        [candidate("a", 0.001, 0.4), candidate("b", 0.01, 0.7), candidate("c", 0.03, 0.9)],
        lambda_per_usd=3.0,
        remaining_usd=0.5,
    )
    encoded = encode(view)
    heads = jax.jit(network.heads)(
        numpy_params(7),
        encoded.state,
        encoded.candidates,
        np.float32(0.5),
        np.float32(1.0),
        np.float32(4.0),
        np.float32(3.0),
        encoded.cost_quantiles_usd,
        encoded.mask,
    )
    expected = planning.lower_confidence_scores(
        np.asarray(heads.q_quality), np.asarray(heads.q_cost_usd), encoded.mask, 3.0, 1.5, 0.6
    )
    values = policy.network.values(view, encoded, encoded.mask, 1.5, 0.6)
    assert values.scores == pytest.approx(expected, abs=1e-4)
    assert values.q_cost_usd == pytest.approx(np.asarray(heads.q_cost_usd).mean(axis=0), rel=1e-4)
    assert policy.decide(view, 0.0).action == int(np.argmax(expected))
