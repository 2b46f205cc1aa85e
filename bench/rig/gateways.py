"""The measured gateways and how to start them, with recommended production settings.

Only errors are logged. A contender is a recipe: given a stage (ports, folders, databases) it returns the command to run
and the requests to send. `direct` is the provider itself, the upper limit of the load generator.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from bench.rig.environments import ROOT, portkey_server, python_environment
from bench.rig.load import Target

MODELS = (("small", 1), ("middle", 4), ("large", 16))
"""Deployments of the measured gateway, with their price relative to the first."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Resources of a recipe: provider's port, work folder, environments, Postgres databases.

    `database_url` names an existing database to use instead of a fresh one.
    """

    provider_port: int
    folder: Path
    cache: Path
    postgres: Callable[[], str]
    workers: int = 1
    database_url: str = ""

    @property
    def provider_url(self) -> str:
        """Base URL of the provider."""
        return f"http://127.0.0.1:{self.provider_port}/v1"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A server to start and its target; `command` is empty when the target already runs."""

    target: Target
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/ready"
    ready_headers: Mapping[str, str] = field(default_factory=dict)


Contender = Callable[[Stage], Recipe]


def direct(stage: Stage) -> Recipe:
    """The provider itself."""
    return Recipe(Target(stage.provider_port, "ok"))


def yardstick(factory: str) -> Contender:
    """One of the bare relays of `bench.rig.relay`, on uvicorn with uvloop and httptools."""

    def recipe(stage: Stage) -> Recipe:
        port = free_port()
        python = python_environment(stage.cache) / "python"
        command = (str(python), "-m", "uvicorn", f"bench.rig.relay:{factory}", "--factory", "--port", str(port),
                   "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error")  # fmt: skip
        environment = plain_environment() | {"BENCH_PROVIDER": stage.provider_url, "PYTHONPATH": str(ROOT)}
        return Recipe(Target(port, "ok"), command, environment)

    return recipe


def litellm_proxy(stage: Stage) -> Recipe:
    """LiteLLM Proxy without database, cache and callbacks, with the required master key."""
    port, key = free_port(), "sk-" + secrets.token_hex(24)
    config = {
        "model_list": [
            {
                "model_name": "ok",
                "litellm_params": {"model": "openai/ok", "api_base": stage.provider_url, "api_key": "sk-none"},
            }
        ],
        "litellm_settings": {"set_verbose": False, "telemetry": False},
        "general_settings": {"master_key": key},
    }
    path = stage.folder / "litellm.yaml"
    path.write_text(yaml.safe_dump(config))
    program = python_environment(stage.cache) / "litellm"
    command = (str(program), "--config", str(path), "--host", "127.0.0.1", "--port", str(port),
               "--num_workers", "1", "--telemetry", "False")  # fmt: skip
    environment = plain_environment() | {"LITELLM_LOG": "ERROR"}
    return Recipe(Target(port, "ok", {"authorization": f"Bearer {key}"}), command, environment, "/health/liveliness")


def portkey(stage: Stage) -> Recipe:
    """Portkey's gateway on Node; each request's headers name the provider."""
    port = free_port()
    headers = {
        "authorization": "Bearer sk-none",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": stage.provider_url,
    }
    command = ("node", str(portkey_server(stage.cache)), "--headless", f"--port={port}")
    return Recipe(Target(port, "ok", headers), command, plain_environment() | {"NODE_ENV": "production"}, "/")


def seqroute(database: str, lane: str = "thin") -> Contender:
    """This gateway, complete: key, session, features, decision, hold, settlement, durable log.

    `database` is `sqlite` (one file) or `postgres` (a fresh database); `lane` is `thin` or `litellm`, how calls reach
    the provider.
    """

    def recipe(stage: Stage) -> Recipe:
        port, key = free_port(), "sk-" + secrets.token_urlsafe(32)
        fresh = stage.postgres if database == "postgres" else lambda: f"sqlite:///{stage.folder / f'{port}.db'}"
        url = stage.database_url or fresh()
        path = stage.folder / f"seqroute-{port}.yaml"
        path.write_text(yaml.safe_dump(gateway_config(stage, url, key, lane)))
        command = (sys.executable, "-m", "gateway", "serve", "--config", str(path), "--port", str(port),
                   "--workers", str(stage.workers), "--log-level", "error")  # fmt: skip
        environment = plain_environment() | {"PYTHONPATH": str(ROOT)}
        return Recipe(
            Target(port, "auto", {"authorization": f"Bearer {key}"}, sessions=True), command, environment, "/readyz"
        )

    return recipe


def gateway_config(stage: Stage, database_url: str, key: str, lane: str) -> dict[str, object]:
    """Three deployments of the fake provider at three prices, and ample session budgets."""
    return {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {"model": "openai/ok", "api_base": stage.provider_url, "api_key": "sk-none"},
                "model_info": {
                    "input_cost_per_token": 1e-8 * factor,
                    "output_cost_per_token": 4e-8 * factor,
                    "max_input_tokens": 100_000,
                    "max_output_tokens": 2_000,
                    "quality_prior": 0.6 + 0.02 * factor,
                },
            }
            for name, factor in MODELS
        ],
        "general_settings": {"master_key": key, "database_url": database_url},
        "router_settings": {"lane": lane},
        "session_settings": {"default_budget_usd": 1},
        "policy_settings": {"directory": str(stage.folder / "policies")},
    }


CONTENDERS: Mapping[str, Contender] = {
    "direct": direct,
    "relay": yardstick("relay"),
    "acompletion": yardstick("acompletion"),
    "litellm-proxy": litellm_proxy,
    "portkey": portkey,
    "seqroute-sqlite": seqroute("sqlite"),
    "seqroute-postgres": seqroute("postgres"),
    "seqroute-sqlite-litellm": seqroute("sqlite", "litellm"),
    "seqroute-postgres-litellm": seqroute("postgres", "litellm"),
}


def plain_environment() -> dict[str, str]:
    """The environment for every contender, without settings that slow it or use the network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SEQROUTE_"))}
    return kept | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        "LITELLM_LOCAL_BLOG_POSTS": "True",
        "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
        "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
        "LITELLM_MODE": "PRODUCTION",
        "HF_HUB_OFFLINE": "1",
    }


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
