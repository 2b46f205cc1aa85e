"""The residual of the served quality: nothing where there is nothing to learn, kept where a fold aside agrees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sqlalchemy as sa

from gateway.database import tables
from gateway.database.database import transaction
from policy.network_policy import NetworkPolicy, Shown
from policy.residual import INPUT_DIM
from policy.value_layers import forward_of
from tests.policy.networks import layers
from tests.train.log.test_episodes import a_log, read
from train.config import FitConfig, PlanConfig, RelabelConfig
from train.fit.residual import ResidualTurns, as_residual, errors, loss, train, turns_of
from train.fit.value_table import draw_samples
from train.fit.value_targets import catalogue_statistics_of

FIT = FitConfig(residual_steps=150, residual_hidden=4, residual_rate=3e-2)


def turns(shift: float, count: int = 400) -> ResidualTurns:
    """Two candidates predicted at .5; `shift` better wherever an input is positive. One is graded."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 2, INPUT_DIM)).astype(np.float32)
    x[:, 1, 1] += 3.0
    scores = 0.5 + shift * (x[..., 0] > 0) + 0.1 * rng.standard_normal((count, 2))
    action = rng.integers(0, 2, count).astype(np.int32)
    scores[np.arange(count), 1 - action] = np.nan
    half = np.full((count, 2), 0.5, np.float32)
    return ResidualTurns(x, half, scores.astype(np.float32), half, np.ones((count, 2), bool), action)


def test_the_loss_by_hand() -> None:
    # One turn, .5 predicted: the logged action scored .9, so its square is .16; alpha log 2 for the rest.
    one = ResidualTurns(*(x[:1] for x in turns(0.0)))
    one = one._replace(scores=np.array([[0.9, np.nan]], np.float32), action=np.zeros(1, np.int32))
    zero = {
        "kernel": jnp.zeros((INPUT_DIM, 2)), "bias": jnp.zeros(2), "heads": jnp.zeros(2), "offset": jnp.zeros(1),
    }  # fmt: skip
    on_device = ResidualTurns(*(jnp.asarray(x) for x in one))
    assert float(loss(zero, on_device, 0.0)) == pytest.approx(0.16, abs=1e-6)
    # Half of the actions are not graded: the conservative term counts half.
    assert float(loss(zero, on_device, 0.2)) == pytest.approx(0.16 + 0.2 * 0.5 * np.log(2.0), abs=1e-6)
    graded = on_device._replace(scores=jnp.array([[0.9, 0.5]]))
    assert float(loss(zero, graded, 0.2)) == pytest.approx(0.08, abs=1e-6), "nothing unknown to be conservative about"


def test_what_the_inputs_tell_is_learned_and_held_out_turns_agree() -> None:
    found = as_residual(train(turns(0.4), replace(FIT, alpha=0.0), jax.random.key(0)))
    every = np.ones(400, bool)
    assert errors(turns(0.4), every, found).mean() < 0.6 * errors(turns(0.4), every, None).mean()


def test_conservatism_pushes_down_what_the_log_did_not_try() -> None:
    def gap(alpha: float) -> float:
        some = turns(0.0)
        first = ResidualTurns(*(x[some.action == 0] for x in some))
        found = as_residual(train(first, replace(FIT, alpha=alpha), jax.random.key(0))).of(first.x)
        return float((found[:, 0] - found[:, 1]).mean())

    assert gap(0.5) > gap(0.0) + 0.05


def test_a_turn_is_valued_at_its_place_in_the_session_not_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = a_log(tmp_path, sessions=10)
    with transaction(url) as connection:
        changed = sa.update(tables.decisions).where(tables.decisions.c.turn.in_((1, 2)))
        connection.execute(changed.values(reason="pinned"))
    episodes, _ = read(url)
    given: list[Any] = []
    values = NetworkPolicy.values

    def recorded(policy: NetworkPolicy, shown: Shown) -> tuple[Any, Any]:
        given.extend(shown.turn.tolist())
        return values(policy, shown)

    monkeypatch.setattr(NetworkPolicy, "values", recorded)
    grades = np.full(episodes.mask.shape, 0.5)
    samples = draw_samples(episodes, grades, PlanConfig(samples=20))
    statistics = catalogue_statistics_of(samples, np.zeros(len(episodes.models) + 1))
    policy = NetworkPolicy("p", forward_of(layers()), statistics=statistics)
    turns_of(policy, episodes, grades, np.zeros(episodes.valid.shape, np.int64), RelabelConfig(), seed=0)
    places = np.nonzero(episodes.valid)[1].tolist()
    assert given == [place + 2 if place else 0 for place in places]
    assert max(given) == 5
