"""Processes of the demo: simulated provider, gateway, and commands on its files.

All files are in one work folder (`var/demo` by default): the generated gateway.yaml, the SQLite file, the policies, the
logs. A marker file in it ensures that a new run only clears the folder of an earlier run.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from demo.models import MODELS, SimulatedModel

ROOT = Path(__file__).resolve().parents[1]
MARKER = ".seqroute-demo"
START_TIMEOUT_S = 120.0


class StageError(Exception):
    """A part of the demo failed; the message names it and its log."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A running provider and the address of the gateway; URLs without trailing slash and `/v1`."""

    folder: Path
    gateway_url: str
    provider_url: str

    @property
    def config(self) -> Path:
        """The generated configuration."""
        return self.folder / "gateway.yaml"

    @property
    def database(self) -> Path:
        """The gateway's SQLite file."""
        return self.folder / "seqroute.db"

    def master_key(self) -> str:
        """The key that the gateway generated at its first start."""
        return (self.folder / "seqroute.master-key").read_text().strip()

    @contextmanager
    def gateway(self, exploration_floor: float) -> Iterator[None]:
        """Run `seqroute serve` with this exploration floor; ready when the block begins."""
        self.config.write_text(gateway_config(f"{self.provider_url}/v1", exploration_floor))
        port = self.gateway_url.rsplit(":", 1)[1]
        arguments = ["gateway", "serve", "--config", str(self.config), "--port", port, "--log-level", "warning"]
        with running("gateway", arguments, self.folder, f"{self.gateway_url}/readyz"):
            yield


@dataclass(frozen=True, slots=True)
class StageSettings:
    """Settings of the processes; `port` is the gateway's, 0 takes a free one."""

    folder: Path
    port: int
    seed: int
    latency_scale: float


@contextmanager
def run_stage(settings: StageSettings) -> Iterator[Stage]:
    """Prepare the work folder and run the provider. Raises StageError."""
    folder = prepare_folder(settings.folder)
    provider_port, gateway_port = free_port(), settings.port or free_port()
    stage = Stage(folder, f"http://127.0.0.1:{gateway_port}", f"http://127.0.0.1:{provider_port}")
    arguments = ["demo.provider", "--port", str(provider_port), "--seed", str(settings.seed)]
    arguments += ["--latency-scale", str(settings.latency_scale)]
    with running("provider", arguments, folder, f"{stage.provider_url}/v1/models"):
        yield stage


def prepare_folder(folder: Path) -> Path:
    """Create or clear the work folder. Raises StageError for a folder with other files."""
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise StageError(f"{folder}: expected an empty folder or one of an earlier demo, found other files")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("Made by the demo of seqroute, which clears this folder when it runs again.\n")
    return folder


def gateway_config(provider_base: str, exploration_floor: float) -> str:
    """The configuration of the demo's gateway, as YAML."""
    return yaml.safe_dump(
        {
            "model_list": [_entry(model, provider_base) for model in MODELS],
            "general_settings": {"database_url": "sqlite:///seqroute.db"},
            "session_settings": {"default_budget_usd": 0.01, "max_budget_usd": 1.0},
            "policy_settings": {
                "directory": "policies",
                "mode": "on",
                "publish": "champion",
                "exploration_floor": exploration_floor,
            },
        },
        sort_keys=False,
    )


def _entry(model: SimulatedModel, provider_base: str) -> dict[str, object]:
    return {
        "model_name": model.name,
        "litellm_params": {"model": f"openai/{model.name}", "api_base": provider_base, "api_key": "sk-simulated"},
        "model_info": {
            "input_cost_per_token": _per_token(model.input_usd_per_mtok),
            "output_cost_per_token": _per_token(model.output_usd_per_mtok),
            "cache_read_input_token_cost": _per_token(model.cached_input_usd_per_mtok),
            "max_input_tokens": model.max_input_tokens,
            "max_output_tokens": model.max_output_tokens,
            "supports_function_calling": True,
            "supports_response_schema": True,
            "quality_prior": model.quality_prior,
        },
    }


def _per_token(usd_per_mtok: float) -> float:
    """USD per token, without floating-point noise."""
    return round(usd_per_mtok / 1e6, 12)


@contextmanager
def running(name: str, arguments: Sequence[str], folder: Path, ready_url: str) -> Iterator[None]:
    """Run a Python module as a process; ready when the block begins. Raises StageError."""
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_ready(name, ready_url, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(name: str, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StageError(f"the {name} ended with status {process.returncode}: {last_line(log)} (see {log})")
        try:
            if httpx.get(url, timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise StageError(f"the {name} did not answer at {url} within {START_TIMEOUT_S:.0f} s (see {log})")


@contextmanager
def command(stage: Stage, name: str, arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run one of the project's commands with stdout piped and stderr in a log."""
    with (stage.folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
        )
    with process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise


def last_line(log: Path) -> str:
    """The last line of a log, for error messages."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
