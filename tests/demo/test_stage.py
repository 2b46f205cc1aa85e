"""The demo's stage: its configuration is one that the gateway accepts, and its folder is never anybody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.models import MODELS
from demo.stage import MARKER, ROOT, StageError, gateway_config, prepare_folder
from gateway.catalog.build import load
from gateway.catalog.models import Catalog


def catalogue_facts(catalog: Catalog) -> dict[str, tuple[float | None, ...]]:
    return {
        model.name: (
            model.prices.input_femtousd, model.prices.output_femtousd, model.prices.cached_input_femtousd,
            model.max_input_tokens, model.max_output_tokens, model.quality_prior,
        )
        for model in catalog.models.values()
    }  # fmt: skip


def test_the_gateway_accepts_the_generated_configuration_and_reads_the_models_list_prices(tmp_path: Path) -> None:
    """1 USD per million tokens is 10**9 femto-USD per token."""
    config = tmp_path / "gateway.yaml"
    config.write_text(gateway_config("http://127.0.0.1:1/v1", 0.3))
    settings, catalog = load(config, {})
    assert settings.policy.exploration_floor == 0.3
    assert catalogue_facts(catalog) == {
        m.name: (
            round(m.input_usd_per_mtok * 10**9), round(m.output_usd_per_mtok * 10**9),
            round(m.cached_input_usd_per_mtok * 10**9), m.max_input_tokens, m.max_output_tokens, m.quality_prior,
        )
        for m in MODELS
    }  # fmt: skip


def test_the_shipped_configuration_names_the_simulated_models_as_the_provider_does(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(gateway_config("http://127.0.0.1:4010/v1", 0.02))
    _, shipped = load(ROOT / "gateway.yaml", {})
    _, generated = load(config, {})
    assert catalogue_facts(shipped) == catalogue_facts(generated)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StageError, match="expected an empty folder"):
        prepare_folder(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_of_an_earlier_demo_is_cleared(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path / "demo")
    (folder / "seqroute.db").write_text("old")
    assert {p.name for p in prepare_folder(folder).iterdir()} == {MARKER}
