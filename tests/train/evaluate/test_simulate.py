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
from train.evaluate.simulate import play, probabilities_as_logged, turnwise, unseen_terms
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


def with_unseen_answers(episodes: Episodes, truth: np.ndarray, sample: float, seed: int) -> Episodes:
    """The log with second answers drawn as the gateway draws them, graded by `truth` (S, T, K)."""
    rng = np.random.default_rng(seed)
    offered, p = episodes.offered, episodes.probabilities.astype(np.float64)
    count = offered.sum(axis=-1)
    per_other = np.where(count > 1, sample / np.maximum(count - 1, 1), 0.0)[..., None]
    shadow = np.where(offered, (p.sum(axis=-1, keepdims=True) - p) * per_other, 0.0)
    scores = np.full(shadow.shape, np.nan)
    for i, j in np.argwhere(episodes.valid & (count > 1)):
        others = [k for k in np.flatnonzero(offered[i, j]) if k != episodes.action[i, j]]
        if rng.random() < sample:
            k = rng.choice(others)
            scores[i, j, k] = truth[i, j, k]
    return replace(episodes, shadow=shadow.astype(np.float32), scores=scores.astype(np.float32))


def test_unseen_answers_correct_a_wrong_model_of_quality_without_bias(tmp_path: Path) -> None:
    """A certain log of the cheapest model says nothing of another; a half of its turns answered unseen says all."""
    episodes = read(a_log(tmp_path, sessions=400, policy=ReSolving(exploration=Exploration(0.02))))[0]
    truth = np.broadcast_to(np.array([0.2, 0.5, 0.8])[: episodes.mask.shape[-1]], episodes.mask.shape)
    served = np.take_along_axis(truth, episodes.action[..., None], axis=-1)[..., 0]
    episodes = replace(episodes, reward=np.where(episodes.valid, served, np.nan).astype(np.float32))
    wrong = np.full(episodes.mask.shape, 0.5)
    target = episodes.offered / np.maximum(episodes.offered.sum(axis=-1, keepdims=True), 1)
    expected = (target * truth).sum(axis=-1)[episodes.valid].mean()

    def estimated(log: Episodes) -> tuple[float, float]:
        everyone = np.ones(log.valid.shape, bool)
        logged = turnwise(log, target, everyone, wrong, 1_000.0)
        terms = logged.v + logged.ratio * (logged.reward - logged.q) + unseen_terms(log, target, wrong, 1_000.0)
        return float(terms[log.valid].mean()), float(terms[log.valid].std())

    without, noise = estimated(episodes)
    runs = [estimated(with_unseen_answers(episodes, truth, 0.5, seed)) for seed in range(30)]
    means = np.array([mean for mean, _ in runs])
    assert float(means.mean()) == pytest.approx(expected, abs=0.02)
    assert np.median([sd for _, sd in runs]) < 0.6 * noise
    assert abs(float(means.mean()) - expected) <= abs(without - expected) + 0.01


def test_one_unseen_grade_by_hand(tmp_path: Path) -> None:
    """It serves with .1 and answers unseen with .05: 1 / .15 times the surprise of .3, unless the cap is lower."""
    episodes = read(a_log(tmp_path, sessions=2))[0]
    turn = episodes.take(np.array([0]))
    k = next(k for k in np.flatnonzero(turn.offered[0, 0]) if k != turn.action[0, 0])
    chances, shadow = turn.probabilities.copy(), np.zeros_like(turn.shadow)
    chances[0, 0, k], shadow[0, 0, k] = 0.1, 0.05
    scores = np.full_like(turn.scores, np.nan)
    scores[0, 0, k] = 0.8
    turn = replace(turn, probabilities=chances, shadow=shadow, scores=scores)
    target = np.zeros(turn.mask.shape)
    target[0, 0, k] = 1.0
    found = unseen_terms(turn, target, np.full(turn.mask.shape, 0.5), 100.0)
    assert found[0, 0] == pytest.approx(0.3 / 0.15, rel=1e-5)
    assert found[0, 1:].tolist() == [0.0] * (found.shape[1] - 1)
    assert unseen_terms(turn, target, np.full(turn.mask.shape, 0.5), 2.0)[0, 0] == pytest.approx(0.6)
