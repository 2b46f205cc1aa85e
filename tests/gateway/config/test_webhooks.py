"""Webhook targets: the operator's alone, checked at the start with the path of the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway.config.load import load_settings
from gateway.config.reader import SettingsError

MODEL = {
    "model_name": "m",
    "litellm_params": {"model": "openai/m", "api_base": "http://127.0.0.1:1/v1"},
    "model_info": {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6},
}


def written(folder: Path, *targets: object) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump({"model_list": [MODEL], "general_settings": {"webhooks": list(targets)}}))
    return path


def test_targets_are_read_with_their_secrets_from_the_environment(tmp_path: Path) -> None:
    path = written(tmp_path, {"url": "https://hooks.example.com/a?b=c", "secret": "os.environ/HOOK"})
    (target,) = load_settings(path, {"HOOK": "whsec-0123456789abcdef"}).general.webhooks
    assert target.url == "https://hooks.example.com/a?b=c"
    assert "0123" not in repr(target)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ({"url": "ftp://x/y", "secret": "s" * 16}, "[0].url: expected http(s)://host[:port][/path]"),
        ({"url": "https://user:pw@x/y", "secret": "s" * 16}, "[0].url: expected http(s)://host[:port][/path]"),
        ({"url": "https://x/y", "secret": "short"}, "[0].secret: expected a secret of at least 16 characters"),
        ({"url": "https://x/y"}, "[0].secret: expected a secret of at least 16 characters"),
        ("https://x/y", '[0]: expected a mapping, got "https://x/y"'),
    ],
)
def test_a_target_that_cannot_be_used_stops_the_start(tmp_path: Path, target: object, problem: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(written(tmp_path, target), {})
    assert f"gateway.yaml: general_settings.webhooks{problem}" in refused.value.problems
