"""LiteLLM proxy configurations of the wild, imported and served: an answer whole and one streamed from each."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.__main__ import run
from tests.gateway.config.test_litellm_files import FILES, FOLDER, NOT_IMPORTED
from tests.harness.dialects import TEXT, DialectProvider
from tests.harness.gateway import serving
from tests.harness.provider_cases import CASES, call_of

# LiteLLM's wrapper reads attributes that pydantic wants to give up.
pytestmark = pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}")
HELLO: list[Any] = [{"role": "user", "content": "hi"}]


def local(value: Any) -> Any:
    """The value with something for each variable of the environment."""
    if isinstance(value, dict):
        return {name: local(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [local(inner) for inner in value]
    return "x" if isinstance(value, str) and value.startswith("os.environ/") else value


def at_provider(entry: dict[str, Any], provider: DialectProvider) -> dict[str, Any]:
    """An entry of `model_list` whose calls end at the local provider."""
    prefix, separator, _ = entry["litellm_params"]["model"].partition("/")
    name = prefix if separator and prefix in CASES else "openai"
    call = call_of(name, provider, stream=False)
    params = entry["litellm_params"] | {"api_base": provider.address + (CASES[name].base or ""), "api_key": "k"}
    return entry | {"litellm_params": params | dict(call.options)}


@pytest.mark.parametrize("name", [name for name in FILES if name not in NOT_IMPORTED])
async def test_an_imported_file_answers_whole_and_streamed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    assert run(["import-litellm", str(FOLDER / f"{name}.yaml"), "--out", str(path)]) == 0
    tree = local(yaml.safe_load(path.read_text()))
    async with DialectProvider() as provider:
        tree["model_list"] = [at_provider(entry, provider) for entry in tree["model_list"]]
        tree["general_settings"] = tree.get("general_settings", {}) | {
            "master_key": "sk-" + secrets.token_urlsafe(32), "database_url": f"sqlite:///{tmp_path / 'seqroute.db'}",
        }  # fmt: skip
        path.write_text(yaml.safe_dump(tree))
        async with serving(path) as gateway:
            client = gateway.client()
            whole = await client.chat.completions.create(model="auto", messages=HELLO)
            assert whole.choices[0].message.content == "".join(TEXT)
            stream = await client.chat.completions.create(model="auto", messages=HELLO, stream=True)
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "".join(TEXT)
            await gateway.settled()
            await gateway.audit()
