"""The monitor: it sees what changed, by hand-worked sizes, and does not cry wolf on ordinary weeks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from gateway.database import tables
from gateway.database.database import transaction
from tests.train.log.test_episodes import a_log
from tests.train.synthetic import NOW_MS
from train.log.source import DatabaseLog
from train.nightly.drift import (
    MS_PER_DAY,
    STATE_NAMES,
    SessionSeen,
    TurnSeen,
    calibration,
    feature_shifts,
    findings,
    health,
    standard_error,
)
from train.nightly.text_report import describe

PRICES = {"small": {"input": 0.2, "output": 0.8}, "large": {"input": 5.0, "output": 20.0}}
FEATURES = 300


def a_session(rng: np.random.Generator, day: int = 0, *, shift: float = 0.0, slower: float = 1.0) -> SessionSeen:
    """Ordinary traffic: heavy-tailed features that sessions share, log-normal bills and latencies, graded one time in
    three; every day has a mood of its own, small beside what sessions differ by."""
    mood = 0.1 * np.random.default_rng(day).standard_normal(FEATURES)
    features = rng.standard_t(4, FEATURES) + mood
    features[7] += shift * np.sqrt(2.0)  # the standard deviation of a t of 4 degrees is the root of 2
    turns = []
    for _ in range(rng.integers(1, 7)):
        predicted = 0.001 * float(rng.lognormal(0.0, 0.5))
        quality = float(rng.uniform(0.4, 0.9))
        turns.append(
            TurnSeen(
                "small", predicted, predicted * float(rng.lognormal(-0.5 * 0.36, 0.6)),
                slower * float(rng.lognormal(0.0, 0.7)), quality,
                float(rng.random() < quality) if rng.random() < 0.3 else None,
            )
        )  # fmt: skip
    return SessionSeen(day * MS_PER_DAY, features, tuple(turns), PRICES)


def days(seed: int, first: int, count: int, sessions: int = 60, **changes: float) -> list[SessionSeen]:
    rng = np.random.default_rng(seed)
    return [a_session(rng, day, **changes) for day in range(first, first + count) for _ in range(sessions)]


BASELINE = days(0, 0, 7)
TODAY = days(1, 7, 1)


def kinds(recent: Sequence[SessionSeen], baseline: Sequence[SessionSeen] = BASELINE) -> set[tuple[str, str]]:
    return {(item.kind, item.what) for item in findings(recent, baseline)}


def test_an_ordinary_day_finds_nothing_and_at_most_one_false_alarm_comes_in_a_week() -> None:
    """Four weeks of ordinary days, each against the week before it: 300 features, latencies, two calibrations."""
    month = [days(100 + day, day, 1) for day in range(35)]
    alarms = [
        item
        for day in range(7, 35)
        for item in findings(month[day], [s for before in month[day - 7 : day] for s in before])
    ]
    assert len(alarms) <= 4, [item.text for item in alarms]


def test_a_mean_shift_of_three_standard_deviations_is_found_by_its_size() -> None:
    [found] = findings(days(1, 7, 1, shift=3.0), BASELINE)
    assert (found.kind, found.what) == ("feature", "feature 7")
    assert found.size == pytest.approx(3.0, abs=1.0)


def test_a_new_model_and_one_that_is_gone_are_found_at_once() -> None:
    changed = [replace(s, prices={"small": PRICES["small"], "newest": PRICES["large"]}) for s in TODAY[:1]]
    assert kinds(changed) == {("catalogue", "newest"), ("catalogue", "large")}


def test_a_price_change_is_found_at_once_and_a_costlier_tier_is_none() -> None:
    cut = [replace(s, prices=PRICES | {"large": {"input": 2.5, "output": 20.0}}) for s in TODAY]
    [found] = findings(cut, BASELINE)
    assert (found.kind, found.what) == ("price", "large")
    assert found.size == pytest.approx(0.5)
    tier = replace(TODAY[0], prices=PRICES | {"large": {"input": 10.0, "output": 30.0}})
    assert kinds([tier, *TODAY[1:]]) == set()


def test_three_times_the_latency_is_found_by_its_ratio() -> None:
    [found] = findings(days(1, 7, 1, slower=3.0), BASELINE)
    assert (found.kind, found.what) == ("latency", "small")
    assert found.size == pytest.approx(3.0, rel=0.35)


def test_bills_and_scores_that_are_not_what_was_predicted_are_found() -> None:
    def turned(session: SessionSeen, bill: float, score: float | None) -> SessionSeen:
        turns = tuple(
            replace(turn, billed_usd=turn.predicted_usd * bill, score=turn.score if score is None else score)
            for turn in session.turns
        )
        return replace(session, turns=turns)

    assert kinds([turned(s, 1.5, None) for s in TODAY]) == {("cost", "calibration")}
    assert kinds([turned(s, 1.0, 0.0) for s in TODAY]) == {("quality", "calibration")}


def test_a_handful_of_sessions_is_news_and_no_drift() -> None:
    assert kinds(days(1, 7, 1, sessions=10, shift=5.0, slower=9.0)) == set()
    assert kinds([]) == set()


def test_calibration_by_hand() -> None:
    def seen(predicted: float, billed: float, score: float | None) -> SessionSeen:
        return SessionSeen(0, np.zeros(1), (TurnSeen("m", predicted, billed, None, 0.5, score),))

    found = calibration([seen(1.0, 1.0, 1.0), seen(1.0, 2.0, 0.5), seen(2.0, 3.0, None)])
    assert found["cost_ratio"] == pytest.approx(6 / 4)
    # residuals -.5, .5, 0: sqrt(.5 * 3 / 2) / 4
    assert found["cost_ratio_error"] == pytest.approx(np.sqrt(0.75) / 4)
    assert found["quality_bias"] == pytest.approx(0.25)
    assert found["scored_turns"] == 2.0
    assert calibration([])["cost_ratio"] is None
    assert standard_error(np.array([0.0, 2.0]), np.array([1.0, 1.0])) == pytest.approx(1.0)


def test_another_text_space_is_no_change_of_topics() -> None:
    def day(sessions: int, text: float, space: int) -> list[SessionSeen]:
        spread = np.random.default_rng(space).standard_normal((sessions, len(STATE_NAMES))) * 0.1
        spread[:, 0] += text
        return [SessionSeen(0, each, (), text_spaces=frozenset({space})) for each in spread]

    before = day(200, 0.0, 1)
    assert [found.what for found in feature_shifts(day(60, 2.0, 1), before)] == ["text"]
    assert list(feature_shifts(day(60, 2.0, 2), before)) == []


def test_too_few_sessions_are_not_called_steady(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=7)
    with transaction(url) as connection:
        connection.execute(sa.update(tables.decisions).values(created_at_ms=NOW_MS - 1))
    with transaction(url, read_only=True) as connection:
        found = health(DatabaseLog(connection), NOW_MS)
    assert found["compared"] is False
    assert found["notes"] == [
        "too few sessions to tell what drifted: 7 in the last day (at least 20 needed), "
        "0 in the week before (at least 50 needed)"
    ]


def test_the_log_is_compared_by_day_without_what_teaches_nothing(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=90)
    d = tables.decisions
    now_ms = NOW_MS + MS_PER_DAY
    with transaction(url) as connection:
        connection.execute(sa.update(d).values(latency_ms=800))
        connection.execute(
            sa.update(d).where(d.c.session_id < "s1-000060").values(created_at_ms=d.c.created_at_ms - 2 * MS_PER_DAY)
        )
        late = d.c.session_id >= "s1-000060"
        connection.execute(sa.update(d).where(late).values(created_at_ms=now_ms - 1, latency_ms=2_400))
        connection.execute(sa.update(d).where(d.c.session_id == "s1-000089").values(origin="judge"))
    with transaction(url, read_only=True) as connection:
        found = health(DatabaseLog(connection), now_ms)
    assert (found["recent_sessions"], found["baseline_sessions"], found["compared"]) == (29, 60, True)
    slower = [item for item in found["findings"] if item["kind"] == "latency"]
    assert slower
    assert {round(item["size"], 6) for item in slower} == {3.0}
    assert {item["kind"] for item in found["findings"]} == {"latency"}
    assert found["calibration"]["cost_ratio"] == pytest.approx(1.0, abs=0.1)
    assert "health: large answers in 3.00 times the time it took the week before" in describe({"health": found})
