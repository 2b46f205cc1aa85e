"""Many turns at once decide as one by one."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from policy import batch
from policy.catalogue_statistics import CatalogueStatistics
from policy.exploration import Exploration, draw
from policy.features import STATE_DIM, Horizon
from policy.kernel import KernelQuality
from policy.mdp import COST_LEVELS, Observation, PolicyFault
from policy.network_policy import NetworkPolicy
from policy.planned import Planner
from policy.quality import PriorQuality, QualityModel
from policy.rules import Cheapest, Fixed, Pacing, Random, ReSolving, Strongest, Threshold, TunedLambda
from policy.value_layers import forward_of
from policy.valuetable import ValueTable
from tests.policy.networks import layers
from tests.policy.observations import candidate, observation, random_observation, stack_observations

MODELS = ("model-0", "model-2", "model-3")
"""The others of `random_observation` are newcomers."""
HORIZON = Horizon((0.1, 0.2, 0.3))
EXPLORING = Exploration(floor=0.2)


def learned_quality(rng: np.random.Generator) -> KernelQuality:
    rows, m = 20, len(MODELS)
    f32 = np.float32
    return KernelQuality(
        models=MODELS,
        centre=rng.normal(size=STATE_DIM).astype(f32) * f32(0.1),
        scale=np.full(STATE_DIM, 0.1, f32),
        landmarks=rng.normal(size=(rows, STATE_DIM)).astype(f32),
        width=np.full(2, 300.0, f32),
        means=rng.uniform(0.3, 0.9, m).astype(f32),
        weights=rng.normal(size=(rows, m + 1)).astype(f32) * f32(0.2),
        offset=np.zeros(m + 1, f32),
    )


def learned_table(rng: np.random.Generator) -> ValueTable:
    """Every axis has several entries; later money is worth what chance says."""
    lambdas, contexts, turns, budgets = 3, 3, 6, 12
    steps = rng.random((lambdas, contexts, len(MODELS) + 1, turns + 1, budgets)).astype(np.float32)
    return ValueTable(
        models=MODELS,
        list_usd=np.array([1.0, 5.0, 20.0], np.float32),
        lambdas_per_usd=np.array([0.0, 5.0, 100.0], np.float32),
        contexts_tokens=np.array([0.0, 500.0, 9000.0], np.float32),
        budgets_usd=np.append(0.0, np.geomspace(1e-5, 10.0, budgets - 1)).astype(np.float32),
        values=np.cumsum(steps, axis=-1),
        answers=rng.uniform(0.2, 1.8, (len(MODELS) + 1, len(COST_LEVELS))).astype(np.float32),
    )


def learned_statistics(rng: np.random.Generator) -> CatalogueStatistics:
    """It knows the models of the table."""
    m = len(MODELS)
    numbers = {name: rng.uniform(0.01, 1.0, m) for name in ("quality", "spread", "mean_usd", "q95_usd", "list_usd")}
    numbers |= {"answers": rng.uniform(0.5, 1.5, (m + 1, len(COST_LEVELS))), "margin": rng.uniform(0.0, 0.1, m + 1)}
    numbers["grown_tokens"] = np.array([120.0])
    return CatalogueStatistics(MODELS, **{name: x.astype(np.float32) for name, x in numbers.items()})


def policies() -> list[batch.BatchedPolicy]:
    rng = np.random.default_rng(1)
    learned, table = learned_quality(rng), learned_table(rng)
    priors: QualityModel = PriorQuality()
    return [
        Planner("planned", learned, table, 0.0, 1.0, HORIZON),
        Planner("planned-careful", learned, table, 2.0, 1.7, HORIZON, EXPLORING),
        Planner("planned-priors", priors, table, 0.3),
        ReSolving(horizon=HORIZON),
        ReSolving(learned, reserve=0.0, horizon=HORIZON, exploration=EXPLORING),
        ReSolving(learned, margin=0.8, cache_aware=False),
        NetworkPolicy(
            "network", forward_of(layers()), learned, learned_statistics(rng), starved_penalty=1.0, horizon=HORIZON
        ),
        NetworkPolicy("network-priors", forward_of(layers(1)), exploration=EXPLORING),
        Cheapest(exploration=EXPLORING),
        Fixed("model-2"),
        Random(),
        Strongest(learned),
        Strongest(model="model-3", policy_id="strongest-named"),
        Threshold(0.05, learned, reserve=1.0, horizon=HORIZON),
        Threshold(0.05, pair=("model-2", "model-3"), policy_id="threshold-pair"),
        TunedLambda(3.0, learned, reserve=1.0, horizon=HORIZON, exploration=EXPLORING),
        Pacing(1.5, learned, reserve=0.5, horizon=HORIZON),
    ]


def some_observations(count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [random_observation(rng, most_candidates=8) for _ in range(count)]


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: f"{policy.policy_id}")
def test_every_row_has_the_probabilities_of_its_turn_asked_alone(policy: batch.BatchedPolicy) -> None:
    seen = some_observations(600)  # more than two chunks
    found = batch.probabilities(policy, stack_observations(seen))
    for row, one in zip(found, seen, strict=True):
        alone = policy.decide(one, 0.5).probabilities
        assert row[: len(alone)] == pytest.approx(alone, abs=5e-5)
        assert not row[len(alone) :].any()


def test_efforts_of_one_model_share_a_cache_in_either_form() -> None:
    policy, rng = ReSolving(horizon=HORIZON, exploration=EXPLORING), np.random.default_rng(5)
    seen = []
    for _ in range(60):
        view = random_observation(rng, 5)
        named = []
        for k, c in enumerate(view.candidates):
            effort = ("low", "high")[k % 2]
            named.append(replace(c, name=f"model-{k // 2}#{effort}", effort=effort, input_tokens=5_000))
        seen.append(replace(view, candidates=tuple(named)))
    found = batch.probabilities(policy, stack_observations(seen))
    apart = 0
    for row, one in zip(found, seen, strict=True):
        alone = policy.decide(one, 0.5).probabilities
        assert row[: len(alone)] == pytest.approx(alone, abs=1e-5)
        others = tuple(replace(c, effort="") for c in one.candidates)
        apart += bool(np.abs(policy.decide(replace(one, candidates=others), 0.5).probabilities - alone).max() > 1e-3)
    assert apart > 0


def test_every_row_is_drawn_as_its_turn_alone() -> None:
    rng = np.random.default_rng(2)
    shares = np.where(rng.random((300, 6)) < 0.4, rng.random((300, 6)), 0.0)
    shares[:, 2] += 0.1
    shares = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    uniform = np.append(rng.random(298), [0.0, np.nextafter(1.0, 0.0)])
    found = batch.draw_rows(shares.astype(np.float64), uniform)
    assert found.tolist() == [draw(row, float(u)) for row, u in zip(shares, uniform, strict=True)]


def test_who_is_not_told_of_the_cache_sees_list_prices_and_cold_bills() -> None:
    """400 of 500 tokens are warm: at 2 USD a million instead of .5 they cost 400 * 1.5e-6 = .0006 more."""
    warm = candidate("a", 0.001, input_usd_per_mtok=2.0, cached_input_usd_per_mtok=0.5, warm_tokens=400)
    cold = stack_observations([observation([warm])]).without_cache()
    assert cold.cost_quantiles_usd[0, 0] == pytest.approx(0.0016)
    assert (cold.warm_tokens[0, 0], cold.usd_cached[0, 0]) == (0.0, 2.0)


def test_a_policy_without_a_batched_form_is_asked_one_by_one() -> None:
    class Unknown:
        def predict(self, observation: Observation) -> np.ndarray:
            return np.zeros(len(observation.candidates), np.float32)

        average = predict

    assert batch.has_batched_form(Pacing())
    assert not batch.has_batched_form(ReSolving(Unknown()))
    assert batch.has_batched_form(ReSolving())


def test_a_turn_without_a_candidate_is_a_fault_as_it_is_alone() -> None:
    no_one = replace(candidate(), feasible=False)
    with pytest.raises(PolicyFault, match="feasible"):
        batch.probabilities(ReSolving(), stack_observations([observation([no_one])]))
