"""The log as episodes: what is read, what is left out and counted, and how sessions are divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import sqlalchemy as sa

from gateway.database import tables
from gateway.database.database import transaction
from policy.exploration import Exploration
from policy.mdp import Policy
from policy.rules import ReSolving
from policy.text import TEXT_DIM, space_number
from tests.train.synthetic import NOW_MS, write_log
from train.config import LogConfig, RewardConfig, TrainConfig
from train.fit.network import grade, tenant_weights
from train.log.episodes import Episodes, split_by_tree
from train.log.read import LogReport, encoded_turn, observed_turn, read_episodes
from train.log.source import DatabaseLog

EXPLORING = ReSolving(exploration=Exploration(floor=0.2, tolerance=0.5))


def a_log(folder: Path, sessions: int = 12, policy: Policy = EXPLORING, **options: object) -> str:
    url = f"sqlite:///{folder}/log.db"
    with transaction(url) as connection:
        tables.metadata.create_all(connection)
        write_log(connection, policy, sessions, seed=1, **options)  # type: ignore[arg-type]
    return url


def read(url: str, config: TrainConfig = TrainConfig(), **more: int) -> tuple[Episodes, LogReport]:  # noqa: B008
    with transaction(url, read_only=True) as connection:
        return read_episodes(DatabaseLog(connection), config, now_ms=NOW_MS, **more)


def test_every_graded_turn_is_read_with_its_bill_score_and_probability(tmp_path: Path) -> None:
    url = a_log(tmp_path)
    episodes, report = read(url)
    with transaction(url, read_only=True) as connection:
        rows = connection.execute(sa.select(tables.decisions).order_by(tables.decisions.c.decision_id)).mappings().all()
        query = sa.select(tables.feedback.c.decision_id, tables.feedback.c.score)
        scores = {row[0]: row[1] for row in connection.execute(query)}
    assert (episodes.sessions, episodes.turns) == (12, len(rows))
    assert report.labels == {"turn": len(rows)}
    place = {session: i for i, session in enumerate(episodes.session_ids)}
    rows = sorted(rows, key=lambda row: (place[row["session_id"]], row["turn"]))
    assert episodes.cost_usd[episodes.valid] * 1e9 == pytest.approx([row["cost_nanousd"] for row in rows])
    assert episodes.reward[episodes.valid].tolist() == [scores[row["decision_id"]] for row in rows]
    assert episodes.propensity[episodes.valid] == pytest.approx([row["propensity"] for row in rows])
    assert episodes.probabilities[episodes.valid].sum(axis=-1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "failed"}, "failed"),
        ({"status": "truncated"}, "truncated"),
        ({"status": "orphaned"}, "orphaned"),
        ({"reason": "pinned"}, "pinned"),
        ({"reason": "fallback"}, "fallback"),
        ({"status": "pending"}, "pending"),
        ({"status": "cancelled"}, "cancelled"),
        ({"origin": "judge"}, "judge"),
        ({"origin": "admin", "status": "failed"}, "admin"),
        ({"feature_version": 99}, "log of version 99"),
        ({"features": b"", "action": 9}, "malformed"),
    ],
)
def test_turns_that_teach_nothing_are_left_out_and_counted(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    url = a_log(tmp_path)
    before = read(url)[0].turns
    with transaction(url) as connection:
        connection.execute(sa.update(tables.decisions).where(tables.decisions.c.turn == 1).values(change))
    episodes, report = read(url)
    assert report.excluded == {reason: 12}
    assert episodes.turns == before - 12


def test_text_of_another_space_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    """A replica with another `policy_settings.text` wrote every other turn; a layout without spaces was hashed."""
    url = a_log(tmp_path)
    whole, _ = read(url)
    d = tables.decisions
    with transaction(url) as connection:
        for number, row in enumerate(connection.execute(sa.select(d).order_by(d.c.decision_id)).mappings().all()):
            words, around = row["features"][:-16], np.array([space_number("static-1"), 9], "<f8").tobytes()
            changed = {"features": words + around} if number % 2 else {"features": words, "feature_version": 2}
            connection.execute(sa.update(d).where(d.c.decision_id == row["decision_id"]).values(changed))
    hashed, report = read(url)
    assert report.excluded == {}
    static, _ = read(url, text_space=space_number("static-1"))
    valid = whole.valid
    assert (hashed.valid == valid).all()
    mine, theirs = (found.state[valid][:, :TEXT_DIM].any(axis=1) for found in (hashed, static))
    assert (mine ^ theirs).all()
    assert min(mine.sum(), theirs.sum()) > 20
    assert (hashed.route[valid] == np.where(mine, 0, 9)).all()
    for found, has in ((hashed, mine), (static, theirs)):
        np.testing.assert_array_equal(found.state[valid][has], whole.state[valid][has])
        np.testing.assert_array_equal(found.state[valid][:, TEXT_DIM:], whole.state[valid][:, TEXT_DIM:])
        np.testing.assert_array_equal(found.reward, whole.reward)
        model, grades = grade(found, TrainConfig())
        assert np.isfinite(grades).all()
        assert model.rows.sum() == len(grades)


def test_a_log_of_the_version_before_trains_like_todays(tmp_path: Path) -> None:
    """Version 1 held features: what it logged of the same turns reads as the same episodes."""
    url = a_log(tmp_path)
    today, _ = read(url)
    d = tables.decisions
    with transaction(url) as connection:
        for row in connection.execute(sa.select(d)).mappings().all():
            seen = observed_turn(dict(row), orjson.loads(row["candidates"]))
            encoded = None if seen is None else encoded_turn(seen)
            assert encoded is not None
            connection.execute(
                sa.update(d)
                .where(d.c.decision_id == row["decision_id"])
                .values(
                    feature_version=1,
                    features=encoded.state.astype("<f4").tobytes(),
                    candidate_features=encoded.candidates.astype("<f4").tobytes(),
                )
            )
    before, report = read(url)
    assert report.excluded == {}
    for name in Episodes.__dataclass_fields__:
        old, new = getattr(before, name), getattr(today, name)
        if name in ("state", "candidates"):
            np.testing.assert_allclose(old, new, atol=2e-6)
        elif isinstance(old, np.ndarray):
            np.testing.assert_array_equal(old, new)
        else:
            assert old == new


@pytest.mark.parametrize("limits", [LogConfig(max_turns=2), LogConfig(memory_mb=0.06)])
def test_a_very_long_session_does_not_pad_the_others_to_its_length(tmp_path: Path, limits: LogConfig) -> None:
    """A turn of three candidates takes 2.0 kB: in .06 MB there is room for two of each of twelve sessions."""
    whole, _ = read(a_log(tmp_path))
    cut, report = read(f"sqlite:///{tmp_path}/log.db", TrainConfig(log=limits))
    assert cut.valid.shape == (12, 2)
    assert report.excluded == {"beyond turn 2": whole.turns - cut.turns}
    assert sum(report.labels.values()) == report.turns == cut.turns
    assert cut.cost_usd.tolist() == whole.cost_usd[:, :2].tolist()


def test_any_first_so_many_sessions_are_a_fair_sample_of_the_tenants(tmp_path: Path) -> None:
    """By name, the first half of these sessions would be one tenant's."""
    episodes, _ = read(a_log(tmp_path, sessions=60, tenant_of=lambda i: "ten_a" if i < 30 else "ten_b"))
    assert 8 <= sum(tenant == "ten_a" for tenant in episodes.tenant_ids[:30]) <= 22


def test_the_report_says_what_share_of_each_models_turns_was_graded(tmp_path: Path) -> None:
    _, report = read(a_log(tmp_path, graded=0.5))
    assert set(report.graded) == set(report.models)
    shares = {name: share * report.models[name] for name, share in report.graded.items()}
    assert sum(shares.values()) == pytest.approx(report.labels["turn"])
    assert all(0.0 <= share <= 1.0 for share in report.graded.values())


def test_ungraded_turns_have_no_score(tmp_path: Path) -> None:
    episodes, report = read(a_log(tmp_path, graded=0.5))
    assert np.isnan(episodes.reward[episodes.valid]).sum() == report.labels["none"] > 0


def test_a_session_is_wholly_on_one_side_and_always_on_the_same(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, sessions=40))
    training, untouched = split_by_tree(episodes, 0.4, seed=7)
    assert set(training.session_ids).isdisjoint(untouched.session_ids)
    assert set(training.session_ids) | set(untouched.session_ids) == set(episodes.session_ids)
    assert 8 <= untouched.sessions <= 24
    grown, _ = split_by_tree(episodes.take(np.arange(20)), 0.4, seed=7)
    assert set(grown.session_ids) <= set(training.session_ids)


def test_sessions_of_one_tree_are_on_one_side(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=40)
    d = tables.decisions
    with transaction(url) as connection:
        names = sorted(connection.execute(sa.select(d.c.session_id).distinct()).scalars())
        for place, name in enumerate(names):
            if place % 4:
                later = sa.update(d).where(d.c.session_id == name, d.c.turn > 0)  # the first turn: an older gateway's
                connection.execute(later.values(root_session_id=names[place - place % 4]))
    episodes, _ = read(url)
    assert set(episodes.root_ids) == set(names[::4])
    assert len(set(episodes.trees.tolist())) == 10
    training, untouched = split_by_tree(episodes, 0.4, seed=7)
    assert set(training.root_ids).isdisjoint(untouched.root_ids)
    assert training.sessions + untouched.sessions == 40
    assert untouched.sessions % 4 == 0 < untouched.sessions


def test_the_digest_names_the_data(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path))
    assert episodes.digest() == read(f"sqlite:///{tmp_path}/log.db")[0].digest()
    assert episodes.digest() != episodes.take(np.arange(11)).digest()


def test_one_tenant_cannot_outweigh_its_cap(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, tenant_of=lambda i: "ten_a" if i else "ten_b"))
    weights = tenant_weights(episodes, cap=0.5)
    loud = np.array([tenant == "ten_a" for tenant in episodes.tenant_ids])
    share = episodes.lengths[loud].sum() / episodes.turns
    assert weights[loud] == pytest.approx(0.5 / share)
    assert weights[~loud] == pytest.approx(1.0)


def test_an_empty_log_is_read_as_no_sessions(tmp_path: Path) -> None:
    episodes, report = read(a_log(tmp_path, sessions=0))
    assert (episodes.sessions, report.turns) == (0, 0)


@pytest.mark.parametrize(("signal", "score"), [("regenerates", 0.2), ("edits", 0.35)])
def test_a_regeneration_or_an_edit_speaks_of_the_turn_before_it(tmp_path: Path, signal: str, score: float) -> None:
    url = a_log(tmp_path, sessions=1)
    with transaction(url) as connection:
        d = tables.decisions
        ids = connection.execute(sa.select(d.c.decision_id).order_by(d.c.turn)).scalars().all()
        connection.execute(sa.delete(tables.feedback))
        connection.execute(
            sa.update(d)
            .where(d.c.decision_id == ids[1])
            .values(signals=f'{{"{signal}": true}}', previous_decision_id=ids[0])
        )
    episodes, report = read(url)
    assert report.labels["implicit"] == 1
    assert episodes.reward[0, 0] == pytest.approx(score)
    assert np.argwhere(episodes.implied).tolist() == [[0, 0]]
    assert episodes.graded_share == 0.0


def test_rewards_are_recomputed_for_an_old_log_under_another_setting(tmp_path: Path) -> None:
    """Signals are stored, not scores: what they are worth may be decided later."""
    url = a_log(tmp_path, sessions=1)
    with transaction(url) as connection:
        connection.execute(sa.delete(tables.feedback))
        connection.execute(sa.update(tables.decisions).values(signals='{"truncated": true}'))
    for worth in (0.3, 0.9):
        config = TrainConfig(reward=RewardConfig(implicit={"truncated": worth}))
        episodes, report = read(url, config)
        assert report.labels == {"implicit": episodes.turns}
        assert episodes.reward[episodes.valid] == pytest.approx(worth)


def test_where_every_turn_has_an_implicit_signal_nothing_is_graded_by_chance(tmp_path: Path) -> None:
    """By hand: no turn is left that could have been silent, so the graded share of the others is 0, not 1."""
    episodes, _ = read(a_log(tmp_path, sessions=4))
    signalled = replace(episodes, implied=episodes.valid, reward=np.where(episodes.valid, 0.2, np.nan))
    assert (signalled.turns > 0, signalled.graded_share) == (True, 0.0)
