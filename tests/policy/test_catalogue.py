"""One checkpoint for any catalogue: the objects that a gateway makes of published folders, the catalogue changing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from policy.checkpoint import load, save
from policy.exploration import Exploration
from policy.fallback import check_decision
from policy.learned import policy_from
from policy.mdp import COST_LEVELS, CandidateView, Decision, Policy
from tests.policy.networks import SMALL, part
from tests.policy.observations import candidate, observation
from tests.policy.test_checkpoint import PLANNED, recipe, tables

Build = Callable[[Path], Policy]
EXPLORING = Exploration(floor=0.1)

BOTH = (candidate("small", 0.001, 0.5), candidate("large", 0.01, 0.8))
"""The tables of tests/policy/test_checkpoint.py know these two by name, with means .5 and .8."""


def planner(folder: Path) -> Policy:
    save(folder / "p1", recipe(**PLANNED), tables())
    return policy_from(load(folder / "p1"), EXPLORING)


def network(folder: Path) -> Policy:
    save(folder / "p1", recipe(sizes=SMALL), part())  # it believes the priors
    return policy_from(load(folder / "p1"), EXPLORING)


@pytest.fixture(params=[planner, network], ids=["planner", "network"], scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    build: Build = request.param
    return build(tmp_path_factory.mktemp("policies"))


def decided(policy: Policy, candidates: Sequence[CandidateView], lambda_per_usd: float = 1.0) -> Decision:
    """On the last turn, so that a turn is worth its quality less its price."""
    seen = observation(candidates, lambda_per_usd=lambda_per_usd, turn=3, expected_turns=4)
    decision = policy.decide(seen, 0.0)
    check_decision(seen, decision)
    return decision


def best(decision: Decision) -> int:
    return int(np.argmax(decision.probabilities))


def test_the_better_model_serves_while_it_is_worth_its_price(served: Policy) -> None:
    assert best(decided(served, BOTH)) == 1  # .8 - .01 against .5 - .001


def test_a_new_price_counts_at_once(served: Policy) -> None:
    """The large model at fifty times its price: .8 - .5 is less than .5 - .001."""
    costly = replace(
        BOTH[1], input_usd_per_mtok=50.0, output_usd_per_mtok=200.0, cost_quantiles_usd=(0.5,) * len(COST_LEVELS)
    )
    assert best(decided(served, (BOTH[0], costly))) == 0


def test_a_new_model_is_weighed_by_its_price_and_prior(served: Policy) -> None:
    """Better and cheaper than the large one it is taken; worse and costlier it is not."""
    fine, poor = candidate("brand-new", 0.002, 0.95), candidate("brand-new", 0.05, 0.2)
    assert best(decided(served, (*BOTH, fine))) == 2
    assert best(decided(served, (*BOTH, poor))) == 1


def test_a_model_that_left_the_catalogue_is_missed_by_no_one(served: Policy) -> None:
    assert best(decided(served, BOTH[:1])) == 0
    assert best(decided(served, BOTH[1:])) == 0
    strangers = (candidate("x", 0.001, 0.5), candidate("y", 0.01, 0.8))
    assert best(decided(served, strangers)) == 1


def test_a_model_that_is_masked_by_name_is_never_drawn_and_the_best_of_the_others_stays(served: Policy) -> None:
    """Its log still tells how far priors are right, so a newcomer's score may differ a little."""
    fine = candidate("brand-new", 0.002, 0.95)
    masked = decided(served, (BOTH[0], replace(BOTH[1], feasible=False, why_not="not allowed"), fine))
    assert masked.probabilities[1] == 0.0
    assert best(masked) == 2
    assert best(decided(served, (BOTH[0], fine))) == 1
