from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.config.settings import PolicySettings
from policy.reload import PRETRAINED
from policy.rules import LAMBDA_PRESETS, Random
from tests.train.log.test_episodes import a_log
from tests.train.synthetic import NOW_MS
from train.config import OpeConfig, TrainConfig
from train.errors import InputError
from train.evaluate.frontier import (
    Outcome,
    SessionResamples,
    SweepSetting,
    budget_for,
    budget_settings,
    lambda_settings,
    least_budget,
    presets_of,
)
from train.nightly.frontier import Wanted, describe, draw_sample, frontier_of, write
from train.nightly.nightly import Nightly, read_log

CONFIG = TrainConfig(ope=OpeConfig(bootstrap=100))
ALL = Wanted(None, None, 400, 0.8)


def point(budget_usd: float | None, scores: list[float], spent_usd: float = 1.0, price: float = 0.0) -> Outcome:
    zeros = np.zeros(len(scores))
    return Outcome("p", SweepSetting(price, budget_usd), np.array(scores), zeros + spent_usd, zeros)


def test_the_least_budget_lies_between_two_points_on_a_logarithmic_scale() -> None:
    """.8 is half way from .7 (2 USD) to .9 (4 USD): 2 * sqrt(2) USD."""
    budgets, quality = np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.7, 0.9])
    assert least_budget(budgets, quality, 0.8) == pytest.approx(2 * 2**0.5)
    assert least_budget(budgets, quality, 0.5) == least_budget(budgets, quality, 0.1) == 1.0
    assert least_budget(budgets, quality, 0.9) == pytest.approx(4.0)
    assert least_budget(budgets, quality, 0.91) == float("inf")


def test_more_money_never_hurts_so_a_dip_is_noise() -> None:
    budgets, quality = np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.8, 0.6, 0.9])
    assert least_budget(budgets, quality, 0.8) == pytest.approx(2.0)
    assert least_budget(budgets, quality, 0.85) == pytest.approx(4.0 * 2**0.5)


def test_quality_is_per_turn_however_long_the_sessions_are() -> None:
    """Two sessions of 1 and 3 turns with summed scores 1 and 1: .5 per turn, not (1 + 1/3) / 2."""
    resampled = SessionResamples(np.array([1.0, 3.0]), np.arange(2), seed=0, resamples=1)
    resampled.weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    assert resampled.per_turn(np.array([1.0, 1.0])) == pytest.approx([0.5, 1.0, 1 / 3])
    assert resampled.per_turn(np.array([[1.0, 0.0], [1.0, 3.0]])) == pytest.approx(
        np.array([[0.5, 0.75], [1.0, 0.0], [1 / 3, 1.0]])
    )
    assert resampled.per_session(np.array([1.0, 4.0])) == pytest.approx([2.5, 1.0, 4.0])


def test_sessions_of_one_tree_are_drawn_together() -> None:
    resampled = SessionResamples(np.ones(4), np.array([0, 1, 1, 0]), seed=0, resamples=50)
    assert (resampled.weights[:, 0] == resampled.weights[:, 3]).all()
    assert (resampled.weights[:, 1] == resampled.weights[:, 2]).all()
    assert set(resampled.weights[:, 0].tolist()) == {0.0, 1.0, 2.0}


def test_the_answer_has_an_interval_and_says_when_it_is_out_of_reach() -> None:
    resampled = SessionResamples(np.ones(40), np.arange(40), seed=1, resamples=200)
    sure = [point(1.0, [0.5] * 40), point(4.0, [0.9] * 40)]
    answer = budget_for(sure, 0.7, resampled)
    assert [answer["budget_usd"], answer["low"], answer["high"]] == pytest.approx([2.0, 2.0, 2.0])
    assert answer["reached_in"] == 1.0
    noisy = [point(1.0, [0.0] * 40), point(4.0, [1.0] * 20 + [0.0] * 20)]
    answer = budget_for(noisy, 0.45, resampled)
    assert answer["budget_usd"] == pytest.approx(4**0.9)
    assert answer["low"] < answer["budget_usd"]
    assert answer["high"] is None
    assert 0.5 < answer["reached_in"] < 0.975
    assert budget_for(noisy, 0.95, resampled)["budget_usd"] is None


def test_presets_stand_at_their_share_of_the_way_between_the_bills() -> None:
    """Bills 16, 8, 4, 1: half the way on a log scale is 4 (lambda 2), a tenth is 1.32, so 1 (lambda 3)."""
    swept = [point(None, [1.0], spent, price) for spent, price in ((16.0, 0.0), (8.0, 1.0), (4.0, 2.0), (1.0, 3.0))]
    assert presets_of(swept, {"cheap": 0.1, "balanced": 0.5, "best": 1.0}) == {"cheap": 3, "balanced": 2, "best": 0}


def test_a_tenants_log_becomes_a_front_with_pictures_and_an_answer(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=120, policy=Random())
    job = Nightly(url, PolicySettings(directory=tmp_path / "policies"), tmp_path / "runs", "", lambda: NOW_MS)
    seen: list[tuple[str, int, int]] = []
    report = frontier_of(replace(job, progress=lambda *at: seen.append(at)), CONFIG, replace(ALL, tenant_id="ten_a"))
    assert seen[-1][1] == seen[-1][2] > 0
    (policy,) = report["policies"]
    assert policy["policy"] == PRETRAINED
    assert set(policy["presets"]) == set(LAMBDA_PRESETS)
    bills = [p["cost_usd"]["mean"] for p in policy["lambda_sweep"]]
    assert bills[0] > 2 * bills[-1]
    budgets = policy["budget_sweep"]
    assert budgets[-1]["quality"]["mean"] > budgets[0]["quality"]["mean"] + 0.1
    assert budgets[-1]["starved_rate"]["mean"] == 0.0
    for point_ in [*policy["lambda_sweep"], *budgets, *report["models"]]:
        assert point_["quality"]["low"] <= point_["quality"]["mean"] <= point_["quality"]["high"]
    assert frontier_of(job, CONFIG, ALL) | {"meta": None} == report | {"meta": None}

    files = write(report, tmp_path / "out", None)
    assert sorted(path.name for path in files) == ["frontier.html", "frontier.json", "frontier.png", "frontier.svg"]
    assert json.loads((tmp_path / "out" / "frontier.json").read_text())["policies"][0]["answer"]["quality"] == 0.8
    page = (tmp_path / "out" / "frontier.html").read_text()
    assert page.count("<svg") == 1
    assert "<?xml" not in page
    assert "quality 0.8" in page
    assert (tmp_path / "out" / "frontier.svg").read_text().startswith("<?xml")
    told = describe(report)
    assert any("quality 0.8 needs" in line for line in told)
    assert not any(line.startswith("while ") for line in told)  # the shipped network brings presets of its own


def test_too_few_sessions_are_no_front(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=30, policy=Random())
    job = Nightly(url, PolicySettings(directory=tmp_path / "policies"), tmp_path / "runs", "", lambda: NOW_MS)
    with pytest.raises(InputError, match="expected at least 20 sessions held out"):
        frontier_of(job, CONFIG, ALL)
    (tmp_path / "more").mkdir()
    url = a_log(tmp_path / "more", sessions=80, policy=Random())
    with pytest.raises(InputError, match="found 0"):
        frontier_of(replace(job, database_url=url), CONFIG, replace(ALL, tenant_id="ten_other"))


def test_sweeps_span_what_the_log_offers_and_known_grades_stay(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=60, policy=Random())
    job = Nightly(url, PolicySettings(directory=tmp_path / "policies"), tmp_path / "runs", "", lambda: NOW_MS)
    episodes, _ = read_log(job, CONFIG)
    prices = [s.lambda_per_usd for s in lambda_settings(episodes)]
    assert prices[0] == 0.0
    assert prices == sorted(prices)
    budgets = [s.budget_usd or 0.0 for s in budget_settings(episodes)]
    assert budgets == sorted(budgets)
    assert budgets[-1] / budgets[0] > 20
    episodes.scores[0, 0] = 0.123
    sample = draw_sample(episodes, episodes, CONFIG, 10)
    assert sample.episodes.sessions == 10
    assert sample.grades[0, 0] == pytest.approx(0.123)
