"""Whom the gateway calls: the configured providers, and nobody that a client names. Shown in a sealed network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.harness.gateway import config, serving
from tests.harness.sealed import run_sealed
from tests.harness.upstream import FaultUpstream

TEMPTING = (
    "http://169.254.169.254/latest/meta-data", "http://[fd99::5]/x.png",
    "https://name.example@pictures.example/a.png#.png",
)  # fmt: skip
"""Addresses beyond the machine, as numbers and as names."""
PROVIDERS = {
    "openai": "openai/ok", "claude": "anthropic/claude-x", "gemini": "gemini/gemini-x",
    "ollama": "ollama/llava", "mistral": "mistral/pixtral",
}  # fmt: skip
"""By model name: LiteLLM downloads pictures for some providers, so each kind is tried."""


def bodies(model: str, url: str) -> list[tuple[str, dict[str, Any]]]:
    """(route, body) of requests that name an address where a picture or a file may stand."""
    text = {"type": "text", "text": "what is this?"}
    input_text = {"type": "input_text", "text": "what is this?"}
    chat = [{"type": "image_url", "image_url": {"url": url}},
            {"type": "file", "file": {"file_data": url, "file_id": url, "filename": "x.pdf"}}]  # fmt: skip
    claude = [{"type": kind, "source": {"type": "url", "url": url}} for kind in ("image", "document")]
    responses = [{"type": "input_image", "image_url": url}, {"type": "input_file", "file_url": url}]
    asked: list[tuple[str, dict[str, Any]]] = [
        *(("/v1/chat/completions", {"messages": [{"role": "user", "content": [text, part]}]}) for part in chat),
        *(
            ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [text, part]}]})
            for part in claude
        ),
        *(("/v1/responses", {"input": [{"role": "user", "content": [input_text, part]}]}) for part in responses),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": url}], "api_base": url, "base_url": url}),
    ]
    return [(route, {"model": model, **body}) for route, body in asked]


async def tempt(folder: Path) -> dict[str, int]:
    """Ask for everything with every tempting address; answers by status."""
    statuses: dict[str, int] = {}
    async with FaultUpstream() as provider:
        path = config(folder, provider.url, modes=dict.fromkeys(PROVIDERS, "ok"), model_info={"supports_vision": True})
        tree = yaml.safe_load(path.read_text())
        for entry in tree["model_list"]:
            entry["litellm_params"]["model"] = PROVIDERS.get(entry["model_name"], "openai/ok")
        path.write_text(yaml.safe_dump(tree))
        for lane in ("auto", "litellm"):
            tree["router_settings"]["lane"] = lane
            path.write_text(yaml.safe_dump(tree))
            async with serving(path) as gateway, gateway.http() as http:
                for model in PROVIDERS:
                    for url in TEMPTING:
                        for route, body in bodies(model, url):
                            answer = await http.post(route, json=body)
                            assert answer.status_code != 500, (route, model, url, answer.text)
                            statuses[str(answer.status_code)] = statuses.get(str(answer.status_code), 0) + 1
                for public in ("/metrics", "/readyz", "/openapi.json", "/ui", "/v1/models"):
                    assert (await http.get(public)).status_code == 200
    return statuses


def test_no_packet_leaves_for_an_address_that_a_client_names(tmp_path: Path) -> None:
    found = run_sealed("tests.e2e.test_outbound:tempt", tmp_path)
    assert found["left"] == []
    assert found["result"]["200"] >= 30, found["result"]
