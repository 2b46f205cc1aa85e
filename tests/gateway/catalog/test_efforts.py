"""Efforts of a model: candidates of their own, one model to clients, learned by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.build import load
from gateway.catalog.efforts import nearest, quality_prior
from gateway.catalog.models import Catalog, Model
from gateway.config.model_entry import EFFORTS
from gateway.config.reader import SettingsError
from gateway.dialects.messages_request import to_chat
from policy.mdp import COST_LEVELS, effort_of
from tests.harness.models import chat

MEDIAN = COST_LEVELS.index(0.5)


def catalog_of(folder: Path, *infos: dict[str, Any], names: tuple[str, ...] = ("think", "plain")) -> Catalog:
    path = folder / "gateway.yaml"
    entries = [
        {
            "model_name": name,
            "litellm_params": {"model": "openai/gpt-5-mini", "api_key": "sk-a"},
            "model_info": {"quality_prior": 0.6, **info},
        }
        for name, info in zip(names, infos, strict=True)
    ]
    path.write_text(yaml.safe_dump({"model_list": entries}))
    return load(path, {})[1]


def levels(catalog: Catalog) -> list[Model]:
    return [level for model in catalog.chat_models for level in model.efforts or (model,)]


def test_a_model_is_one_candidate_per_effort_and_one_name_to_clients(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, {"efforts": ["high", "low"]}, {})
    assert [model.action for model in levels(catalog)] == ["think#low", "think#high", "plain"]
    assert [model.name for model in catalog.served] == ["think", "plain"]
    low, high, plain = levels(catalog)
    assert low.quality_prior == pytest.approx(0.54)
    assert high.quality_prior == pytest.approx(0.64)
    assert plain.quality_prior == 0.6
    assert low.deployments == high.deployments == catalog.models["think"].deployments


def test_stated_priors_of_efforts_are_taken(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, {"efforts": {"low": 0.3, "medium": None, "high": 0.9}}, {})
    assert [model.quality_prior for model in levels(catalog)] == [0.3, 0.6, 0.9, 0.6]


def test_a_group_has_the_efforts_that_all_its_deployments_have(tmp_path: Path) -> None:
    infos = ({"efforts": {"low": 0.5, "high": 0.8}}, {"efforts": {"medium": 0.5, "high": 0.7}})
    (only,) = catalog_of(tmp_path, *infos, names=("think", "think")).chat_models[0].efforts
    assert (only.action, only.quality_prior, len(only.deployments)) == ("think#high", 0.7, 2)


def test_the_policy_knows_the_efforts_that_end_a_candidate_s_name(tmp_path: Path) -> None:
    (model,) = catalog_of(tmp_path, {"efforts": list(EFFORTS)}, names=("team#deep",)).chat_models
    assert [effort_of(level.action) for level in model.efforts] == [level.effort for level in model.efforts]
    assert effort_of(model.name) == ""


@pytest.mark.parametrize(
    ("efforts", "where"),
    [
        ("low", "efforts:"),
        (["low", "extreme"], "efforts:"),
        ([1], "efforts:"),
        ({"low": 2}, "efforts.low:"),
        ({"low": True}, "efforts.low:"),
        ({"low": "good"}, "efforts.low:"),
    ],
)
def test_malformed_efforts_stop_the_start_with_their_key(tmp_path: Path, efforts: Any, where: str) -> None:
    with pytest.raises(SettingsError) as refused:
        catalog_of(tmp_path, {"efforts": efforts}, {})
    assert f"model_list[0].model_info.{where}" in str(refused.value)


def test_a_model_cannot_have_the_name_of_another_s_effort(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r'model_list\[1\].model_name: "think#low"'):
        catalog_of(tmp_path, {"efforts": ["low"]}, {}, names=("think", "think#low"))
    assert catalog_of(tmp_path, {"efforts": ["low"]}, {}, names=("think", "other#low")).resolve("other#low")


@pytest.mark.parametrize(
    ("asked", "levels", "found"),
    [
        ("medium", ("low", "medium", "high"), "medium"),
        ("none", ("low", "medium", "high"), "low"),
        ("minimal", ("medium", "high"), "medium"),
        ("max", ("low", "medium", "high"), "high"),
        ("", ("low", "medium", "high"), "medium"),
        ("unheard-of", ("low", "high"), "high"),
    ],
)
def test_the_level_next_to_what_a_client_asked_for(asked: str, levels: tuple[str, ...], found: str) -> None:
    assert nearest(asked, levels) == found


def test_priors_stay_within_their_scale() -> None:
    for prior in (0.0, 0.5, 1.0):
        assert 0.0 <= quality_prior(prior, "low") <= quality_prior(prior, "medium") == prior
        assert prior <= quality_prior(prior, "high") <= 1.0


def test_lengths_are_learned_for_every_effort_by_itself() -> None:
    forecast = OutputForecast()
    before = [forecast.quantiles(f"think#{level}", 10**6, level)[MEDIAN] for level in ("low", "medium", "high")]
    assert before == sorted(before)
    assert before[1] == pytest.approx(forecast.quantiles("plain", 10**6)[MEDIAN])
    for _ in range(400):
        forecast.observe("think#low", 90, effort="low")
        forecast.observe("think#high", 2_000, effort="high")
    low, high = (forecast.quantiles(f"think#{level}", 10**6, level)[MEDIAN] for level in ("low", "high"))
    assert low == pytest.approx(90, rel=0.1)
    assert high == pytest.approx(2_000, rel=0.1)
    # A level without answers is expected to lie between those of the others.
    assert low < forecast.quantiles("think#medium", 10**6, "medium")[MEDIAN] < high


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"temperature": 0.5}, None),
        ({"reasoning_effort": "low"}, "low"),
        ({"reasoning_effort": None}, None),
        ({"reasoning": {"effort": "high"}}, "high"),
        ({"reasoning": {"max_tokens": 2_000}}, ""),
        ({"thinking": {"type": "enabled", "budget_tokens": 2_048}}, ""),
        ({"enable_thinking": False}, ""),
        ({"extra_body": {"reasoning_effort": "medium"}}, "medium"),
    ],
)
def test_a_client_s_own_effort_is_read_in_every_wording(fields: dict[str, Any], effort: str | None) -> None:
    assert chat(**fields).effort == effort


def test_an_anthropic_client_that_turns_thinking_off_is_heard() -> None:
    body = {"model": "think", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    assert to_chat(body).thinks
    assert to_chat(body | {"thinking": {"type": "enabled", "budget_tokens": 1_024}}).thinks
    assert not to_chat(body | {"thinking": {"type": "disabled"}}).thinks
