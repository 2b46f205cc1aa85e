"""Second answers in the log: a grade more for the turn that they answered, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import sqlalchemy as sa

from gateway.accounts.tenants import SECOND_TENANT
from gateway.database import tables
from gateway.database.database import transaction
from policy.exploration import Exploration
from policy.mdp import Policy
from policy.rules import Cheapest, ReSolving
from tests.train.log.test_episodes import a_log, read
from tests.train.synthetic import MODELS, NOW_MS
from train.config import LogConfig, RewardConfig, TrainConfig
from train.fit.network import grade
from train.fit.tune import grades_by_turn, predictions_by_turn
from train.log.episodes import Episodes
from train.log.export import Export, export
from train.log.read import read_episodes
from train.log.reward import Label, Signal, second_score
from train.log.source import ParquetLog


def test_a_second_answer_grades_its_turn_and_is_no_session_of_its_own(tmp_path: Path) -> None:
    url = a_log(tmp_path, second=0.5)
    episodes, report = read(url)
    with transaction(url, read_only=True) as connection:
        d, f = tables.decisions, tables.feedback
        seconds = connection.execute(sa.select(d).where(d.c.tenant_id == SECOND_TENANT)).mappings().all()
        firsts = connection.execute(sa.select(d).where(d.c.origin.is_(None))).mappings().all()
        scores = {row.decision_id: row.score for row in connection.execute(sa.select(f.c.decision_id, f.c.score))}
    assert episodes.sessions == 12
    assert set(episodes.tenant_ids) == {"ten_a"}
    assert report.excluded == {}
    assert sum(report.second_answers.values()) == len(seconds) == np.isfinite(episodes.scores).sum()
    by_id = {row["decision_id"]: row for row in firsts}
    place = {session: i for i, session in enumerate(episodes.session_ids)}
    for row in seconds:
        first = by_id[row["session_id"].removeprefix("second:")]
        i, j, k = place[first["session_id"]], first["turn"], row["action"]
        assert episodes.scores[i, j, k] == scores[row["decision_id"]]
        assert episodes.reward[i, j] == scores[first["decision_id"]]
        assert np.isnan(np.delete(episodes.scores[i, j], k)).all()
        assert np.isnan(episodes.bills_usd[i, j]).all()
        chance = orjson.loads(first["candidates"])[k]["second"]
        assert chance == pytest.approx((1.0 - episodes.probabilities[i, j, k]) * row["propensity"], abs=1e-6)


def test_second_answers_leave_every_first_answer_and_the_newest_sessions_as_they_were(tmp_path: Path) -> None:
    config = TrainConfig(log=LogConfig(max_sessions=5))
    (tmp_path / "with").mkdir()
    plain, _ = read(a_log(tmp_path), config)
    more, _ = read(a_log(tmp_path / "with", second=0.9), config)
    same = replace(more, scores=plain.scores)
    assert (plain.sessions, plain.digest()) == (5, same.digest())


def test_an_export_reads_as_the_database_does(tmp_path: Path) -> None:
    url = a_log(tmp_path, second=0.5)
    export(Export(url, tmp_path / "out", NOW_MS))
    config = TrainConfig(log=LogConfig(max_sessions=7))
    exported, counted = read_episodes(ParquetLog(tmp_path / "out"), config, now_ms=NOW_MS)
    episodes, report = read(url, config)
    assert np.isfinite(episodes.scores).any()
    assert (exported.digest(), counted) == (episodes.digest(), report)


def test_ungraded_failed_and_foreign_second_answers_grade_nothing(tmp_path: Path) -> None:
    url, d, f = a_log(tmp_path, second=0.9), tables.decisions, tables.feedback
    with transaction(url) as connection:
        ids = connection.execute(sa.select(d.c.decision_id).where(d.c.origin == "second")).scalars().all()
        third = len(ids) // 3
        connection.execute(sa.delete(f).where(f.c.decision_id.in_(ids[:third])))
        connection.execute(sa.update(d).where(d.c.decision_id.in_(ids[third : 2 * third])).values(status="failed"))
        connection.execute(sa.update(d).where(d.c.decision_id.in_(ids[2 * third :])).values(model="retired"))
    episodes, report = read(url)
    assert (report.second_answers, np.isfinite(episodes.scores).sum()) == ({}, 0)


@pytest.mark.parametrize(
    ("first", "of_first", "of_second", "score"),
    [
        (Label(0.4, "turn"), [0.4], [0.9], 0.9),  # the judge alone
        (Label(0.7, "turn"), [0.4], [0.5], 0.8),  # others too: the judge's difference counts
        (Label(0.9, "turn"), [0.2], [0.9], 1.0),
        (Label(math.nan, "none"), [], [0.9], 0.9),
        (Label(0.7, "session"), [], [0.9], None),  # of another scale
        (Label(0.4, "turn"), [0.4], [], None),
    ],
)
def test_a_second_answers_score_is_on_the_scale_of_its_turns_first(
    first: Label, of_first: list[float], of_second: list[float], score: float | None
) -> None:
    spoken, again = ([Signal("judge", "m", x) for x in scores] for scores in (of_first, of_second))
    found = second_score(first, spoken, again, RewardConfig())
    assert found == pytest.approx(score) if score is not None else math.isnan(found)


def test_a_second_answers_grade_corrects_its_prediction_and_does_not_replace_it(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, second=0.9))
    flat = np.random.default_rng(0).random((episodes.turns, len(MODELS)))
    assert np.isfinite(episodes.scores).any()
    assert grades_by_turn(episodes, flat).tolist() == predictions_by_turn(episodes, flat).tolist()
    episodes.scores[0, 0] = 0.25  # every candidate's grade is known
    assert grades_by_turn(episodes, flat)[0, 0].tolist() == [0.25] * len(MODELS)


def error_of(episodes: Episodes) -> float:
    """Root mean squared error of the out-of-fold predictions of every model, against the world's truth."""
    _, predicted = grade(episodes, TrainConfig())
    hard = episodes.output_tokens[episodes.valid] > 200
    truth = np.array([np.where(hard, model.hard, model.easy) for model in MODELS]).T
    return float(np.sqrt(np.mean(np.square(predicted - truth))))


@pytest.mark.parametrize(("policy", "left"), [(Cheapest(), 0.3), (ReSolving(exploration=Exploration(floor=0.02)), 0.8)])
def test_the_reward_model_knows_models_that_hardly_served_by_their_second_answers(
    tmp_path: Path, policy: Policy, left: float
) -> None:
    """Measured: .36 without and .06 with them where one model serves, .15 and .10 where exploration tries two."""
    episodes, report = read(a_log(tmp_path, sessions=150, policy=policy, second=0.1))
    without = replace(episodes, scores=np.full_like(episodes.scores, np.nan))
    assert sum(report.second_answers.values()) < 0.15 * episodes.turns
    assert error_of(episodes) < left * error_of(without)
