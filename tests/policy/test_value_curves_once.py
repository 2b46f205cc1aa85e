"""The one-turn form of the served network's equations: equal to the reference, and by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import network_policy, value_backup, value_curves, value_network
from policy.batch import score_batch
from policy.budgeting import CACHE_MIN_TOKENS
from policy.mdp import COST_LEVELS, PolicyOfMany
from policy.network_policy import NetworkPolicy
from policy.reload import pretrained
from policy.value_curves import Catalogue, Later
from policy.value_curves_once import curves_of_turn, inputs_of_turn, q_values_of_turn, read_of_turn, turn_of
from policy.value_layers import forward_of
from policy.value_network_shapes import CURVES, KNOTS
from tests.policy.networks import layers
from tests.policy.observations import candidate, observation, random_observation, stack_observations

F32 = np.float32
L = len(COST_LEVELS)


def plain(numbers: Any) -> Any:
    """Columns as lists and scalars as numbers, as decisions have them."""
    return type(numbers)(*(x.tolist() for x in numbers))


def random_turn(rng: np.random.Generator, k: int = 0) -> tuple[Catalogue, Any, Any, float, Later]:
    """Any catalogue (or one of k) with candidates that later turns may not use, any conversation, any money."""
    k = k or int(rng.integers(1, 13))
    mean, price = 10 ** rng.uniform(-6, -1, k), 10 ** rng.uniform(-8, -5, k)
    mask = rng.random(k) < 0.8
    mask[rng.integers(k)] = True
    columns = (rng.random(k), 0.2 * rng.random(k), mean, mean * (1 + 3 * rng.random(k)), 0.5 + rng.random(k),
               price, price * rng.choice([0.1, 0.5, 1.0], k))  # fmt: skip
    catalogue = Catalogue._make([*(np.asarray(x, F32) for x in columns), mask])
    bills = np.sort(mean[:, None] * rng.lognormal(0.0, 1.0, (k, L)), axis=1).astype(F32)
    later = Later(
        turns=rng.choice([0.0, 0.5, 1.0, 3.0, 7.3, 16.0, 40.0]),
        context_tokens=rng.choice([0.0, 100.0, CACHE_MIN_TOKENS - 1.0, CACHE_MIN_TOKENS, 1e5]),
        grown_tokens=rng.choice([0.0, 250.0, 2000.0]),
        last=0,
        lambda_per_usd=rng.choice([0.0, 1.0, 30.0, 1e4]),
        penalty=rng.choice([0.0, 0.5, 5.0]),
    )
    terms = Later(*(np.asarray(x, F32) for x in later))
    return catalogue, rng.random((k, L)).astype(F32), bills, float(F32(10 ** rng.uniform(-6, 1))), terms


def test_one_turn_has_the_values_of_the_reference() -> None:
    policy, rng = pretrained().policy, np.random.default_rng(0)
    assert isinstance(policy, NetworkPolicy)
    for _ in range(300):
        catalogue, answers, bills, money, later = random_turn(rng)
        served = q_values_of_turn(policy.forward, plain(catalogue), answers, bills, money, plain(later))
        known = value_backup.q_values(policy.forward, catalogue, answers, bills, np.asarray(money, F32), later)
        assert served.quality == pytest.approx(known.quality, abs=2e-4)
        assert served.spend_usd == pytest.approx(known.spend_usd, rel=2e-4)
        assert served.starved == pytest.approx(known.starved, abs=2e-4)


def test_one_turn_has_the_values_that_training_compiles() -> None:
    params, rng = layers(2), np.random.default_rng(1)
    traced = jax.jit(value_network.q_values)
    for _ in range(20):
        catalogue, answers, bills, money, later = random_turn(rng, k=5)  # each size would be compiled
        served = q_values_of_turn(forward_of(params), plain(catalogue), answers, bills, money, plain(later))
        known = traced(jax.tree.map(jnp.asarray, params), catalogue, answers, bills, np.asarray(money, F32), later)
        for mine, theirs in zip(served, known, strict=True):
            assert mine == pytest.approx(np.asarray(theirs), rel=1e-3, abs=1e-3)


def test_decisions_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, rng = pretrained().policy, np.random.default_rng(2)
    assert isinstance(policy, NetworkPolicy)
    views = [random_observation(rng) for _ in range(200)]
    served = [policy.decide(view, 0.5) for view in views]

    def reference(forward: Any, catalogue: Any, answers: Any, bills: Any, money: float, later: Later) -> Any:
        numbers = Later(*(np.asarray(x, F32) for x in later._replace(last=0.0)))
        columns = Catalogue._make([*(np.asarray(x, F32) for x in catalogue[:7]), np.array(catalogue.mask)])
        return value_backup.q_values(forward, columns, answers, bills, np.asarray(money, F32), numbers)

    monkeypatch.setattr(network_policy, "q_values_of_turn", reference)
    for view, mine in zip(views, served, strict=True):
        theirs = policy.decide(view, 0.5)
        assert mine.action == theirs.action
        assert mine.probabilities == pytest.approx(theirs.probabilities, abs=1e-4)


@pytest.mark.parametrize("candidates", [1, 2, 5])
def test_turns_decided_together_are_decided_as_alone(candidates: int) -> None:
    policy, rng = pretrained().policy, np.random.default_rng(4)
    assert isinstance(policy, NetworkPolicy)
    assert isinstance(policy, PolicyOfMany)
    views = [view for view in (random_observation(rng) for _ in range(400)) if len(view.candidates) == candidates]
    assert len(views) > 20
    for view, mine in zip(views, policy.decide_together([(view, 0.5) for view in views]), strict=True):
        alone = policy.decide(view, 0.5)
        assert (mine.action, mine.best, mine.reason, mine.info) == (alone.action, alone.best, alone.reason, alone.info)
        for together, apart in zip((mine.probabilities, mine.q_quality, mine.q_cost_usd),
                                   (alone.probabilities, alone.q_quality, alone.q_cost_usd), strict=True):  # fmt: skip
            assert together == pytest.approx(apart, rel=1e-4, abs=1e-6)


def test_decisions_are_those_of_many_turns_at_once() -> None:
    policy, rng = pretrained().policy, np.random.default_rng(3)
    assert isinstance(policy, NetworkPolicy)
    views = [random_observation(rng, 6) for _ in range(100)]
    scored = score_batch(policy, stack_observations(views))
    for view, scores in zip(views, scored.scores, strict=True):
        allowed = np.where(view.mask, scores[: len(view.candidates)], -np.inf)
        assert policy.decide(view, 0.5).action == int(np.argmax(allowed))


@pytest.mark.parametrize(
    ("turn", "context_tokens", "expected_tokens"),
    [(0, 0, 250.0), (0, 600, 250.0), (3, 0, 0.0), (3, 600, 200.0), (3, 6000, 250.0)],
)
def test_a_conversation_is_expected_to_grow_no_faster_than_it_has(
    monkeypatch: pytest.MonkeyPatch, turn: int, context_tokens: int, expected_tokens: float
) -> None:
    seen: list[float] = []

    def told(forward: Any, rows: Any, answers: Any, bills: Any, money: float, later: Later) -> Any:
        seen.append(later.grown_tokens)
        return q_values_of_turn(forward, rows, answers, bills, money, later)

    monkeypatch.setattr(network_policy, "q_values_of_turn", told)
    words = "x" * 400  # a hundred tokens
    pretrained().policy.decide(observation([candidate(input_tokens=100 + context_tokens)], words=words, turn=turn), 0.5)
    assert seen == pytest.approx([expected_tokens], abs=1.0)


def catalogue(**changes: Any) -> Catalogue:
    columns = {
        "quality": [0.4, 0.9], "spread": [0.1, 0.2], "mean_usd": [1.0, 3.0], "q95_usd": [2.0, 6.0], "tail": [1.0, 0.8],
        "input_usd": [1e-3, 1e-3], "cached_usd": [1e-4, 1e-4],
    } | changes  # fmt: skip
    return Catalogue._make([*(np.array(x, F32) for x in columns.values()), np.ones(2, bool)])


def test_the_money_axis_by_hand() -> None:
    # 4 turns over 2,000 tokens that grow by 100: 2,200 halfway, cached. small: 4 + 2 + 3 * .22; large: 12 + 2.66.
    turn = turn_of(plain(catalogue()), Later(4.0, 2000.0, 100.0, 0, 0.0, 0.0))
    assert turn.cold_usd == pytest.approx([6.66, 14.66])
    assert turn.low_usd == pytest.approx(0.15 * (4.0 + 4 * 0.22))
    assert np.exp(turn.width) == pytest.approx(3.0 * 14.66 / (0.15 * 4.88))


def test_after_each_candidate_its_own_cache_is_warm() -> None:
    turn = turn_of(plain(catalogue()), Later(4.0, 2000.0, 100.0, 0, 0.5, 0.0))
    rows, state = inputs_of_turn(plain(catalogue()), turn)
    assert rows.shape[:2] == (2, 2)
    assert rows[:, :, 5].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    # Reading 2,000 tokens: 2 USD cold, .2 warm, against bills of 1 and 3.
    assert rows[0, :, 6] == pytest.approx(np.log1p([0.2, 2 / 3]) / 2)
    # After `large` the cheapest is still `small`, cold: 6.66 / 4 a turn; after `small` 1.8 less, all turns together.
    assert rows[1, 1, 4] == pytest.approx(np.log((14.66 - 1.8) / 6.66) / 3, abs=1e-6)
    assert rows[0, 1, 4] == pytest.approx(np.log(14.66 / (6.66 - 1.8)) / 3, abs=1e-6)
    assert rows[0, 1, 11] == pytest.approx(np.log1p(100 * 0.5 * (14.66 - 4.86) / 4) / 5, abs=1e-6)
    assert state[:, -rows.shape[-1] :] == pytest.approx(rows[[0, 1], [0, 1]])


def test_curves_by_hand() -> None:
    axis = np.geomspace(1.0, 2.0 ** (KNOTS - 1), KNOTS, dtype=F32)
    quality, spend, starved = curves_of_turn(
        np.zeros((1, CURVES, KNOTS + 1), F32), 0.82, axis[0] / 2.0, np.log(axis[1] / axis[0])
    )[:, 0]
    assert quality[[0, 1, -1]] == pytest.approx([0.0, 0.82 / 41, 0.82 * 40 / 41])
    assert spend[:4] == pytest.approx([0.0, 0.25, 0.25 * 2**0.5, 0.5])
    assert starved[:3] == pytest.approx([1.0, 0.5, 0.25])


def test_reading_by_hand() -> None:
    axis = np.geomspace(1.0, 2.0 ** (KNOTS - 1), KNOTS, dtype=F32)
    straight = np.concatenate([[0.0], axis]) / 10.0
    values = np.stack([straight, straight, 1.0 - straight])[:, None].astype(F32)
    quality, _, starved = read_of_turn(values, axis, np.array([[0.0, 0.5, 1.0, 3.0, 1e15]], F32))
    assert quality[0] == pytest.approx([0.0, 0.05, 0.1, 0.3, axis[-1] / 10.0])
    assert starved[0, :2] == pytest.approx([1.0, 0.95])


def test_a_conversation_that_outgrows_the_bills_keeps_the_axis_in_order() -> None:
    grows = catalogue(input_usd=[1.0, 1.0], cached_usd=[1.0, 1.0])
    later = Later(*(np.asarray(x, F32) for x in (1.0, 0.0, 2000.0, 0.0, 0.0, 0.0)))
    axis = value_curves.money_axis(grows, later)
    assert (np.diff(axis) > 0).all()
    assert turn_of(plain(grows), plain(later)).width == pytest.approx(np.log(axis[-1] / axis[0]), rel=1e-5)


def test_a_candidate_that_later_turns_may_not_use_has_an_empty_row() -> None:
    only = plain(catalogue()._replace(mask=np.array([True, False])))
    rows, state = inputs_of_turn(only, turn_of(only, Later(4.0, 2000.0, 100.0, 0, 0.5, 0.0)))
    assert not rows[:, 1].any()
    assert not state[1, -rows.shape[-1] :].any()
