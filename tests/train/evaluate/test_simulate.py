"""A policy sent through the log sees what the gateway would have shown it, and pays its own bills."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from policy.exploration import Exploration
from policy.features import encode
from policy.mdp import Decision, Observation, Policy
from policy.rules import Cheapest, Fixed, ReSolving
from tests.train.log.test_episodes import EXPLORING, a_log, read
from train.evaluate.logged_turns import recorded_observation
from train.evaluate.simulate import other_money_usd, play, probabilities_as_logged
from train.log.episodes import Episodes


@pytest.fixture
def episodes(tmp_path: Path) -> Episodes:
    return read(a_log(tmp_path, sessions=25))[0]


def test_the_observation_rebuilt_from_the_log_encodes_to_what_was_logged(episodes: Episodes) -> None:
    for i, j in ((0, 0), (3, 2), (24, 3)):
        seen = recorded_observation(
            episodes,
            i,
            j,
            remaining_usd=float(episodes.remaining_usd[i, j]),
            budget_usd=float(episodes.budget_usd[i, j]),
            as_logged=True,
        )
        encoded = encode(seen)
        assert encoded.state == pytest.approx(episodes.state[i, j], abs=1e-4)
        assert encoded.candidates == pytest.approx(episodes.candidates[i, j], abs=1e-3)
        assert encoded.mask.tolist() == episodes.offered[i, j].tolist()


def test_the_behaviour_policy_recomputes_to_its_logged_probabilities(episodes: Episodes) -> None:
    found = probabilities_as_logged({"same": EXPLORING}, episodes)["same"]
    assert found[episodes.valid] == pytest.approx(episodes.probabilities[episodes.valid], abs=1e-3)


@dataclass(frozen=True)
class Alone:
    """A policy that is asked one turn at a time, whatever it is."""

    policy: Policy

    @property
    def policy_id(self) -> str:
        return self.policy.policy_id

    def decide(self, observation: Observation, uniform: float) -> Decision:
        return self.policy.decide(observation, uniform)


@pytest.mark.parametrize("budget_multiple", [1.0, 0.1])
def test_many_turns_at_once_play_as_one_by_one(episodes: Episodes, budget_multiple: float) -> None:
    grades = np.full(episodes.mask.shape, 0.5)
    together, alone = (
        play(policy, episodes, grades, seed=0, weight_cap=100.0, budget_multiple=budget_multiple)
        for policy in (EXPLORING, Alone(EXPLORING))
    )
    assert together.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    assert together.cost_usd.tolist() == alone.cost_usd.tolist()
    assert together.starved.tolist() == alone.starved.tolist()
    logged = probabilities_as_logged({"together": EXPLORING, "alone": Alone(EXPLORING)}, episodes)
    assert logged["together"] == pytest.approx(logged["alone"], abs=1e-5)


def test_a_policy_that_does_what_the_log_did_pays_the_real_bills(episodes: Episodes) -> None:
    grades = np.full(episodes.mask.shape, 0.5)
    always = int(episodes.model[0, 0, episodes.action[0, 0]])
    played = play(Fixed(episodes.models[always]), episodes, grades, seed=0, weight_cap=1e9)
    same = (played.probabilities.argmax(-1) == episodes.action) & episodes.valid
    assert same.any()
    assert played.cost_usd[same] == pytest.approx(episodes.cost_usd[same], rel=1e-6)


def test_an_empty_budget_starves_the_rest_of_the_session(episodes: Episodes) -> None:
    grades = np.full(episodes.mask.shape, 0.5)
    rich = play(Cheapest(), episodes, grades, seed=0, weight_cap=100.0)
    poor = play(Cheapest(), episodes, grades, seed=0, weight_cap=100.0, budget_multiple=0.03)
    assert not rich.starved.any()
    assert poor.starved.all()
    assert poor.logged.v.sum() < rich.logged.v.sum()
    assert (poor.spent_usd <= episodes.budget_usd[:, 0] * 0.03 + 1e-12).all()


def test_money_that_came_or_went_between_the_logged_turns_is_met_by_every_policy(episodes: Episodes) -> None:
    """By hand: of 1.00, .10 was billed and a pinned turn took .30; then .20 was billed and the budget raised by 2."""
    assert not other_money_usd(episodes).any(), "the log has no such turns"
    first = episodes.take(np.arange(len(episodes.session_ids)) == int(episodes.lengths.argmax()))
    remaining, bills = np.full_like(first.remaining_usd, 2.4), np.zeros_like(first.cost_usd)
    remaining[0, :2], bills[0, :2] = (1.0, 0.6), (0.1, 0.2)
    log = replace(first, remaining_usd=remaining, cost_usd=bills, budget_usd=np.ones_like(remaining))
    assert other_money_usd(log)[0, :3] == pytest.approx([0.0, -0.3, 2.0], abs=1e-6)

    grades = np.full(first.mask.shape, 0.5)
    spent = np.full_like(remaining, 1e-9)
    spent[0, 0] = 1.0
    pinned = replace(log, remaining_usd=spent, cost_usd=np.zeros_like(bills))
    assert play(Cheapest(), pinned, grades, seed=0, weight_cap=100.0).starved.all()
    assert not play(Cheapest(), log, grades, seed=0, weight_cap=100.0).starved.any()


def test_the_same_seed_plays_the_same_and_ungraded_turns_are_not_zero(episodes: Episodes) -> None:
    grades = np.full(episodes.mask.shape, 0.5)
    half = replace(episodes, reward=np.where(np.arange(6)[: episodes.reward.shape[1]] % 2, np.nan, episodes.reward))
    policy = ReSolving(exploration=Exploration(floor=0.1))
    first, again = (play(policy, half, grades, seed=3, weight_cap=100.0) for _ in range(2))
    assert first.score.tolist() == again.score.tolist()
    assert np.isfinite(first.score).all()
    assert first.score.sum() > 0


def test_turns_that_no_one_graded_count_by_the_corrected_reward_model_not_as_zero(episodes: Episodes) -> None:
    """By hand: the model says .5 everywhere, a third of the turns is graded and scored .9. The graded turns' error of
    .4 speaks for all: .5 + .4 = .9. With silence as zero it would have been .3."""
    grades = np.full(episodes.mask.shape, 0.5)
    third = np.cumsum(episodes.valid).reshape(episodes.valid.shape) % 3 == 0
    cheapest = replace(  # a log of the very policy that is judged: every ratio is one
        episodes,
        action=np.zeros_like(episodes.action),
        propensity=np.ones_like(episodes.propensity),
        reward=np.where(third, 0.9, np.nan).astype(np.float32),
    )
    played = play(Cheapest(), cheapest, grades, seed=0, weight_cap=100.0)
    assert played.logged.ratio[episodes.valid].tolist() == [1.0] * episodes.turns
    assert played.score.sum() / episodes.turns == pytest.approx(0.9, abs=1e-6)


def test_poor_answers_that_only_signals_tell_of_count_once_and_graded_ones_for_the_silent(episodes: Episodes) -> None:
    """By hand: every fourth turn is edited (.35), and of the others every fifth is graded (.9); the model says .5. The
    mean is edited * .35 + (1 - edited) * .9. With one share for all it would be that of the graded turns: about .56."""
    place = np.cumsum(episodes.valid).reshape(episodes.valid.shape)
    edited = (place % 4 == 0) & episodes.valid
    quiet = np.cumsum(episodes.valid & ~edited).reshape(episodes.valid.shape)
    spoken = (quiet % 5 == 0) & ~edited & episodes.valid
    log = replace(
        episodes,
        action=np.zeros_like(episodes.action),
        propensity=np.ones_like(episodes.propensity),
        implied=edited,
        reward=np.select([edited, spoken], [0.35, 0.9], np.nan).astype(np.float32),
    )
    played = play(Cheapest(), log, np.full(episodes.mask.shape, 0.5), seed=0, weight_cap=100.0)
    share = edited.sum() / episodes.turns
    assert played.score.sum() / episodes.turns == pytest.approx(share * 0.35 + (1.0 - share) * 0.9, abs=1e-6)
