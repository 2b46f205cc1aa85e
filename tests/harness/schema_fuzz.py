"""Schemathesis over the generated OpenAPI description, in all its phases, against a real gateway.

    make fuzz SEED=1 SIZE=1        or        python -m tests.harness.schema_fuzz --seed 1 --size 1

SIZE 1 is EXAMPLES of every operation in the generating phases, beside a fixed number of cases at every boundary:
11,241 requests on 30 November 2026, in 116 s on two cores.

What is looked for needs no opinion about a route: an answer of status 5xx, a connection without an answer, a success
without a key, an answer that takes more than two seconds. The provider is healthy and money ample, so that whatever is
found, input caused.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import Interaction

from tests.harness.gateway import Served, config, serving
from tests.harness.upstream import FaultUpstream

SLOW_S = 2.0
EXAMPLES = 110
PHASES = ("examples", "coverage", "fuzzing", "stateful")
MODELS = {"vectors": "embedding", "watch": "moderation"}
NAMES = ("auto", "auto@cheap", "small", "big", *MODELS)


@dataclass(slots=True)
class FuzzReport:
    """What a run sent and what it found; each finding names the request that repeats it."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """5xx, dropped connections, and successes without a key."""
    slow: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """What kept Schemathesis itself from trying an operation."""
    phases: Counter[str] = field(default_factory=Counter)

    def take(self, phase: str, interaction: Interaction) -> None:
        """Judge one exchange."""
        self.requests += 1
        self.phases[phase] += 1
        request, response = interaction.request, interaction.response
        body = request.body[:2_000] if request.body else b""
        what = f"{request.method} {request.uri} {dict(request.headers)} {body!r}"
        if response is None:
            self.failures.append(f"no answer: {what}")
            return
        self.statuses[response.status_code] += 1
        if response.status_code >= 500:
            self.failures.append(f"{response.status_code} {response.content[:300]!r}: {what}")
        if response.elapsed > SLOW_S:
            self.slow.append(f"{response.elapsed:.1f} s: {what}")


def fuzz(served: Served, document: Mapping[str, Any], *, key: str, seed: int, examples: int) -> FuzzReport:
    """Run every phase against a gateway; blocks until the end."""
    settings = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "base-url": served.url,
            "headers": {"Authorization": f"Bearer {key}"},
            "request-timeout": 30,
            "continue-on-failure": True,
            "suppress-health-check": ["all"],
            "generation": {"max-examples": examples, "no-shrink": True, "database": "none"},
            "checks": {"enabled": False, "ignored_auth": {"enabled": True}},
            "phases": {"stateful": {"max-steps": 4}},
        }
    )
    report = FuzzReport()
    for event in from_schema(schemathesis.openapi.from_dict(dict(document), config=settings)).execute():
        if isinstance(event, events.ScenarioFinished):
            for interaction in event.recorder.interactions.values():
                report.take(event.phase.value, interaction)
            for checks in event.recorder.checks.values():
                report.failures += [f"{event.label}: {check.name}" for check in checks if check.failure_info]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            error = event.value if isinstance(event, events.NonFatalError) else event.exception
            report.errors.append(f"{type(error).__name__}: {error}"[:500])
    return report


def with_real_models(document: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """The description with the served models' names, so that valid requests are answered by a model.

    `prefix` keeps only the paths that begin with it.
    """
    made = copy.deepcopy(dict(document))
    made["paths"] = {path: found for path, found in made["paths"].items() if path.startswith(prefix)}
    for operations in made["paths"].values():
        for operation in operations.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if "model" in body.get("properties", {}):
                body["properties"]["model"] = {"enum": list(NAMES)}
    return made


def fuzzed_config(folder: Path, provider_url: str, database_url: str) -> Path:
    """A gateway with every kind of model and ample money."""
    return config(
        folder, provider_url, database_url=database_url, modes={name: name for name in MODELS},
        infos={name: {"mode": mode} for name, mode in MODELS.items()}, session={"default_budget_usd": 1000},
    )  # fmt: skip


class FuzzedUpstream(FaultUpstream):
    """The provider, healthy whatever it is asked for."""

    def mode_of(self, model: str) -> tuple[str, dict[str, str]]:
        return FaultUpstream.mode_of(self, MODELS.get(model, "ok"))


async def play(folder: Path, database_url: str, *, seed: int, examples: int, prefix: str = "") -> FuzzReport:
    """Serve a gateway and fuzz it as its admin; afterwards the ledger must be whole."""
    async with FuzzedUpstream() as provider, serving(fuzzed_config(folder, provider.url, database_url)) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url) as stranger:
            document = (await stranger.get("/openapi.json")).json()
        report = await asyncio.to_thread(
            fuzz, gateway, with_real_models(document, prefix=prefix), key=gateway.master_key, seed=seed,
            examples=examples,
        )  # fmt: skip
        await gateway.settled()
        await gateway.audit()
    return report


def main() -> int:
    """Fuzz and print what was found; exit status 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=float, default=1.0, help=f"of {EXAMPLES} examples of every operation")
    parser.add_argument("--prefix", default="", help="only paths that begin with this")
    options = parser.parse_args()
    began_s = time.monotonic()
    examples = max(1, round(EXAMPLES * options.size))
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/fuzz.db"
        report = asyncio.run(play(Path(folder), url, seed=options.seed, examples=examples, prefix=options.prefix))
    print(f"{report.requests} requests in {time.monotonic() - began_s:.0f} s: {dict(sorted(report.statuses.items()))}")
    print("by phase:", dict(report.phases))
    for title, found in (("failed", report.failures), (f"over {SLOW_S:g} s", report.slow), ("errors", report.errors)):
        print(f"{title}: {len(found)}")
        for line in found[:40]:
            print("  ", line)
    return 1 if report.failures or report.slow or report.errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
