"""Every cell of the compatibility matrix, through a gateway before fakes in the providers' own wire formats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
import yaml
from pydantic.warnings import PydanticDeprecatedSince211

from tests.harness.compatibility import (
    ASK,
    DIALECTS,
    DOCS,
    EXPLAINED,
    FAMILIES,
    FEATURES,
    Clients,
    Shown,
    written,
    wrong,
)
from tests.harness.dialects import USAGE, Asked, DialectProvider, Spoken, as_events, as_json
from tests.harness.forwarded_answers import forwarded_events, forwarded_whole
from tests.harness.gateway import config, serving
from tests.harness.provider_cases import AWS
from tests.harness.wire_formats import FORMATS, Said

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # LiteLLM's wrapper reads attributes that pydantic wants to give up.
    pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}"),
]
MODELS = {
    "openai": ("openai/gpt-5-mini", "/v1", {}),
    "anthropic": ("anthropic/claude-sonnet-4-5", "", {}),
    "gemini": ("gemini/gemini-2.5-flash", "/v1beta", {}),
    "bedrock": ("bedrock/converse/us.anthropic.claude-sonnet-4-5-20250929-v1:0", "", AWS),
    "invoke": ("bedrock/invoke/us.anthropic.claude-sonnet-4-5-20250929-v1:0", "", AWS),
    "mistral": ("mistral/magistral-medium-latest", "/v1", {}),
}
INFO = {
    "input_cost_per_token": "0.000001", "output_cost_per_token": "0.000002", "max_input_tokens": 100_000,
    "max_output_tokens": 4_000, "supports_function_calling": True, "supports_parallel_function_calling": True,
    "supports_vision": True, "supports_response_schema": True, "supports_reasoning": True,
}  # fmt: skip


@dataclass(slots=True)
class Scene:
    """The gateway's clients, and the provider, told before each turn what to say and in which format."""

    clients: Clients
    provider: DialectProvider
    family: str = "openai"
    said: Said = field(default_factory=Said)
    hosted: bool = False

    def answer(self, asked: Asked) -> Spoken:
        route = asked.path.partition("?")[0].rpartition("/")[2]
        if self.hosted and asked.streamed:
            events = forwarded_events(route, "m", [self.said.text], lambda: USAGE, "stop")
            return as_events(*(event for event, _ in events))
        if self.hosted:
            return as_json(forwarded_whole(route, "m", [self.said.text], USAGE, "stop"))
        return FORMATS[self.family](self.said, asked)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder: Path = tmp_path_factory.mktemp("matrix")
    async with DialectProvider() as provider:
        path = config(folder, provider.address, session={"max_budget_usd": 1000, "default_budget_usd": 1000})
        tree: dict[str, Any] = yaml.safe_load(path.read_text())
        tree["model_list"] = [
            {
                "model_name": family,
                "litellm_params": {"model": model, "api_base": provider.address + base, "api_key": "sk-x", **options},
                "model_info": INFO,
            }
            for family, (model, base, options) in MODELS.items()
        ]
        path.write_text(yaml.safe_dump(tree))
        async with serving(path) as gateway:
            chat = openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=gateway.master_key, max_retries=0)
            messages = anthropic.AsyncAnthropic(base_url=gateway.url, api_key=gateway.master_key, max_retries=0)
            made = Scene(Clients(chat, messages), provider)
            provider.answering = made.answer
            yield made
            await chat.close()
            await messages.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_what_is_translated_is_what_the_page_says(scene: Scene, dialect: str, family: str) -> None:
    found = {}
    for feature, row in FEATURES.items():
        if dialect not in row.dialects:
            continue
        scene.family, scene.said, scene.hosted = family, row.said, row.hosted
        for stream in row.streams:
            scene.provider.asked.clear()
            try:
                shown = await ASK[dialect](scene.clients, family, feature, stream)
            except (openai.APIError, anthropic.APIError) as error:
                found[feature] = f"{'streamed' if stream else 'whole'}: {error}"
                continue
            arrived = b"".join(asked.raw for asked in scene.provider.asked).decode()
            if problem := wrong(feature, shown, arrived):
                found[feature] = f"{'streamed' if stream else 'whole'}: {problem}"
    explained = {feature for of, by, feature in EXPLAINED if (of, by) == (dialect, family)}
    assert found.keys() == explained, [f"{feature}: {why}" for feature, why in found.items()]


async def test_a_feature_that_is_lost_is_found() -> None:
    """A client that was given nothing, and a provider that nothing reached, fail every row."""
    assert all(wrong(feature, Shown(), "") for feature in FEATURES)


async def test_the_page_is_the_matrix_and_every_gap_has_a_reason() -> None:
    assert written(DOCS.read_text()) == DOCS.read_text(), "run: python -m tests.harness.compatibility"
    assert all(len(reason) > 20 for reason in EXPLAINED.values())
