"""Prices with dates: in force by themselves from their instant on, announced before, refused when malformed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.catalog.build import draft, load
from gateway.catalog.live import Configuration, LiveConfiguration
from gateway.config.reader import SettingsError

JANUARY_MS = 1_768_435_200_000  # 2026-01-15T00:00:00Z
BASE = "input_cost_per_token: 1e-6, output_cost_per_token: 2e-6"
STEPS = "{valid_from: 2026-01-15, output_cost_per_token: 3e-6}, {valid_from: '2026-02-01T02:00:00+02:00', input_cost_per_token: 5e-6}"  # noqa: E501


def written(folder: Path, steps: str, base: str = BASE, model: str = "openai/own") -> Path:
    path = folder / "gateway.yaml"
    info = f"{{{base}, prices: [{steps}]}}"
    path.write_text(f"model_list: [{{model_name: a, litellm_params: {{model: {model}}}, model_info: {info}}}]")
    return path


@pytest.mark.parametrize(
    ("at_ms", "expected"),
    [
        (0, (1, 2)),
        (JANUARY_MS - 1, (1, 2)),
        (JANUARY_MS, (1, 3)),
        (JANUARY_MS + 17 * 86_400_000 - 1, (1, 3)),
        (JANUARY_MS + 17 * 86_400_000, (5, 3)),  # midnight UTC is 02:00 there
    ],
)
def test_prices_are_those_of_the_moment(tmp_path: Path, at_ms: int, expected: tuple[int, int]) -> None:
    path = written(tmp_path, STEPS)
    for catalog in (load(path, {}, lambda: at_ms / 1000)[1], load(path, {}, lambda: 0.0)[1].at(at_ms)):
        prices = catalog.models["a"].prices
        assert (prices.input_femtousd, prices.output_femtousd) == (expected[0] * 10**9, expected[1] * 10**9)


def test_a_running_gateway_changes_its_prices_by_itself(tmp_path: Path) -> None:
    now = [0.0]
    live = LiveConfiguration(Configuration(*load(written(tmp_path, STEPS), {}, lambda: now[0])), {}, lambda: now[0])
    before = live.current
    assert live.current is before
    now[0] = JANUARY_MS / 1000
    assert live.current.catalog.models["a"].prices.output_femtousd == 3 * 10**9
    assert live.current.catalog.digest != before.catalog.digest
    assert live.current.settings is before.settings
    # What was decided before the change is settled at the prices that it was held at.
    assert before.catalog.models["a"].deployments[0].prices.output_femtousd == 2 * 10**9


def test_a_coming_change_is_a_warning_and_a_past_one_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, STEPS)
    coming = 'gateway.yaml: model_list[0].model_info.prices[1]: other prices of "a" apply from 2026-02-01T00:00:00Z'
    before, after = draft(path, {}, lambda: JANUARY_MS / 1000).warnings, draft(path, {}, lambda: 2e9).warnings
    assert set(before) - set(after) == {coming}
    assert set(after) <= set(before)


def test_a_change_amends_the_map_s_prices_too(tmp_path: Path) -> None:
    path = written(
        tmp_path, "{valid_from: 2026-01-15, cache_read_input_token_cost: 1e-9}", "mode: chat", "openai/gpt-4o"
    )
    rates = load(path, {}, lambda: 2e9)[1].models["a"].prices.at(0)
    assert (rates.cached_input_femtousd, rates.input_femtousd) == (10**6, 2_500_000_000)


@pytest.mark.parametrize(
    ("steps", "where"),
    [
        ("{output_cost_per_token: 3e-6}", "prices[0].valid_from: expected a date or a time"),
        ("{valid_from: soon, output_cost_per_token: 3e-6}", "prices[0].valid_from: expected a date like"),
        (
            "{valid_from: '2026-01-15T10:00:00', output_cost_per_token: 3e-6}",
            "prices[0].valid_from: expected a time with",
        ),
        ("{valid_from: 2026-13-45, output_cost_per_token: 3e-6}", "prices[0].valid_from: expected a date like"),
        ("{valid_from: 2026-01-15}", "prices[0]: expected a price beside valid_from"),
        ("{valid_from: 2026-01-15, output_cost_per_token: -1}", "prices[0].output_cost_per_token: expected a number"),
        (
            "{valid_from: 2026-01-15, output_cost_per_token: 3}",
            "prices[0].output_cost_per_token: expected USD per token",
        ),
        ("{valid_from: 2026-01-15, output_cost_per_tokn: 3e-6}", "prices[0].output_cost_per_tokn: unknown key"),
        ("7", "prices[0]: expected a mapping"),
        (f"{STEPS}, {{valid_from: 2026-01-20, output_cost_per_token: 3e-6}}", "prices[2].valid_from: expected a later"),
    ],
)
def test_a_malformed_change_stops_the_start_with_its_place(tmp_path: Path, steps: str, where: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(written(tmp_path, steps), {})
    assert f"model_list[0].model_info.{where}" in refused.value.problems[0]
