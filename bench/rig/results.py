"""What a run found, as it is written to JSON and read again, and the machine it was found on."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.rig.environments import ROOT
from bench.rig.load import Sample
from bench.rig.statistics import percentile


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured. `kind`: `unary`, `rate` (requests per second at random moments) or `stream`."""

    kind: str
    clients: int
    delay_ms: float
    gap_ms: float = 0.0
    per_s: float = 0.0

    @property
    def name(self) -> str:
        if self.kind == "rate":
            return f"{self.per_s:.0f} requests/s, provider {self.delay_ms:.0f} ms"
        if self.kind == "unary":
            return f"{self.clients} client{'s' * (self.clients > 1)}, provider {self.delay_ms:.0f} ms"
        paced = f"an event every {self.gap_ms:.0f} ms" if self.gap_ms else "unpaced"
        return f"{self.clients} stream{'s' * (self.clients > 1)}, {paced}"


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's figures in one case and round. CPU is in seconds within `elapsed_s`, by who used it."""

    contender: str
    case: Case
    round: int
    requests: int
    events: int
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    first_p99_ms: float
    cpu_s: Mapping[str, float]

    @classmethod
    def of(cls, contender: str, case: Case, number: int, sample: Sample) -> Run:
        p50, p99 = _two(sample.latencies_ms)
        first_p50, first_p99 = _two(sample.first_ms)
        return cls(contender, case, number, len(sample.latencies_ms), sample.events, sample.elapsed_s, p50, p99,
                   first_p50, first_p99, dict(sample.cpu_s))  # fmt: skip

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.elapsed_s

    @property
    def events_per_s(self) -> float:
        return self.events / self.elapsed_s

    def cpu_per_request_ms(self, who: str = "server") -> float:
        return 1e3 * self.cpu_s.get(who, 0.0) / max(self.requests, 1)

    def busy_percent(self, *who: str) -> float:
        """Share of one core that these used; a server that was limited by nothing else is near 100."""
        return 100 * sum(self.cpu_s.get(name, 0.0) for name in who) / self.elapsed_s

    @property
    def cpu_per_event_us(self) -> float:
        return 1e6 * self.cpu_s.get("server", 0.0) / max(self.events, 1)


def _two(ascending: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile; zeros when nothing of the kind was measured."""
    return (percentile(ascending, 0.5), percentile(ascending, 0.99)) if ascending else (0.0, 0.0)


def machine() -> dict[str, object]:
    """What belongs beside every figure: when, on what, of which commit, with which command."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "command": " ".join(["python", "-m", "bench." + Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "cpu": cpu,
        "cores": len(_cores()),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def _cores() -> Sequence[str]:
    return [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")]


def write(path: Path, runs: Iterable[Run], servers: Mapping[str, Mapping[str, object]]) -> None:
    """One JSON file: the machine, the servers (start, memory, why one is missing), every run."""
    told = {"machine": machine(), "servers": dict(servers), "runs": [asdict(run) for run in runs]}
    path.write_text(json.dumps(told, indent=1))


def read(path: Path) -> list[Run]:
    """The runs of such a file. Raises ValueError when it is none."""
    try:
        told = json.loads(path.read_text())["runs"]
        return [Run(**(run | {"case": Case(**run["case"])})) for run in told]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected the JSON of a measurement, got {error!r}") from error
