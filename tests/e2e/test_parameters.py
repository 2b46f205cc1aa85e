"""Parameters of a request that do not reach the provider are named, whole and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.gateway import config, serving
from tests.harness.scenario import playing, turn
from tests.harness.scripted import Line, ScriptedProvider

MESSAGES: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "q"}]}
SHAPE: dict[str, Any] = {"type": "json_schema", "schema": {"type": "object"}}


async def test_what_was_left_out_of_a_request_is_named_in_the_answer(tmp_path: Path, sqlite_url: str) -> None:
    """In the header of a whole answer; in a stream's header, and in the object at its end."""
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        extras: Any = {"top_k": 5, "provider": {"order": ["a"]}, "unheard_of": 1, "service_tier": "priority"}
        whole = await turn(http, **extras)
        assert whole.headers["x-seqroute-dropped"] == "service_tier, provider, unheard_of"
        assert play.provider.received[-1].body["top_k"] == 5
        streamed = await turn(http, stream=True, **extras)
        assert streamed.headers["x-seqroute-dropped"] == "service_tier, provider, unheard_of"
        [told] = [line for line in streamed.text.splitlines() if line.startswith(": seqroute ")]
        assert json.loads(told.removeprefix(": seqroute "))["dropped"] == ["service_tier", "provider", "unheard_of"]
        assert "x-seqroute-dropped" not in (await turn(http, temperature=0.5)).headers


@pytest.mark.parametrize(
    ("path", "fields", "dropped"),
    [
        ("/v1/messages", MESSAGES | {"stop": ["a"], "user": "u"}, "stop, user"),
        ("/v1/messages", MESSAGES | {"stop_sequences": ["a"], "metadata": {"user_id": "u"}},
         "stop_sequences, metadata.user_id"),
        ("/v1/messages", MESSAGES | {"output_config": {"effort": "low"}}, "output_config.effort"),
        ("/v1/messages", MESSAGES | {"thinking": {"type": "adaptive"}}, "thinking"),
        ("/v1/messages", MESSAGES | {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
         "thinking, output_config.effort"),
        ("/v1/messages", MESSAGES | {"output_format": SHAPE}, "output_format"),
        ("/v1/messages", MESSAGES | {"output_config": {"format": SHAPE}}, "output_config.format"),
        ("/v1/responses", {"input": "q", "max_tokens": 5, "verbosity": "low"}, "max_tokens, verbosity"),
        ("/v1/responses", {"input": "q", "reasoning": {"effort": "low"}, "user": "u"}, "user, reasoning.effort"),
        ("/v1/completions", {"prompt": "q", "top_logprobs": 3}, "top_logprobs"),
        ("/v1/completions", {"prompt": "q", "logprobs": 3}, "logprobs"),
    ],
)  # fmt: skip
async def test_the_names_are_those_that_the_client_wrote(
    tmp_path: Path, sqlite_url: str, path: str, fields: dict[str, Any], dropped: str
) -> None:
    refused = ["stop", "user", "reasoning_effort", "response_format", "verbosity", "logprobs", "top_logprobs"]
    async with ScriptedProvider([Line()]) as provider:
        written = config(tmp_path, provider.url, database_url=sqlite_url)
        tree = yaml.safe_load(written.read_text())
        for entry in tree["model_list"]:
            entry["litellm_params"]["additional_drop_params"] = refused
        written.write_text(yaml.safe_dump(tree))
        async with serving(written) as gateway, gateway.http() as http:
            answer = await http.post(path, json={"model": "small"} | fields)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-seqroute-dropped"] == dropped
