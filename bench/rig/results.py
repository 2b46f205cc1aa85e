"""Results of runs, as written to and read from JSON, and the machine they ran on."""

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
    """One case: `kind` is `unary`, `rate` (random arrivals) or `stream`."""

    kind: str
    clients: int
    delay_ms: float
    gap_ms: float = 0.0
    per_s: float = 0.0

    @property
    def name(self) -> str:
        """The case in words, for tables."""
        if self.kind == "rate":
            return f"{self.per_s:.0f} requests/s, provider {self.delay_ms:.0f} ms"
        if self.kind == "unary":
            return f"{self.clients} client{'s' * (self.clients > 1)}, provider {self.delay_ms:.0f} ms"
        paced = f"an event every {self.gap_ms:.0f} ms" if self.gap_ms else "unpaced"
        return f"{self.clients} stream{'s' * (self.clients > 1)}, {paced}"


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's figures in one case and round; CPU seconds by process."""

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
        """Summarise a sample."""
        p50, p99 = _two(sample.latencies_ms)
        first_p50, first_p99 = _two(sample.first_ms)
        return cls(contender, case, number, len(sample.latencies_ms), sample.events, sample.elapsed_s, p50, p99,
                   first_p50, first_p99, dict(sample.cpu_s))  # fmt: skip

    @property
    def requests_per_s(self) -> float:
        """Throughput of requests."""
        return self.requests / self.elapsed_s

    @property
    def events_per_s(self) -> float:
        """Throughput of stream events."""
        return self.events / self.elapsed_s

    def cpu_per_request_ms(self, who: str = "server") -> float:
        """CPU milliseconds per request of one process."""
        return 1e3 * self.cpu_s.get(who, 0.0) / max(self.requests, 1)

    def busy_percent(self, *who: str) -> float:
        """Share of one core used by these processes; near 100 for a saturated server."""
        return 100 * sum(self.cpu_s.get(name, 0.0) for name in who) / self.elapsed_s

    @property
    def cpu_per_event_us(self) -> float:
        """CPU microseconds of the server per stream event."""
        return 1e6 * self.cpu_s.get("server", 0.0) / max(self.events, 1)


def _two(ascending: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile; zeros without values."""
    return (percentile(ascending, 0.5), percentile(ascending, 0.99)) if ascending else (0.0, 0.0)


def machine() -> dict[str, object]:
    """Time, command, commit, hardware and versions, to accompany every figure."""
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
    """Write machine, servers (start, memory, reason if missing) and runs as JSON."""
    content = {"machine": machine(), "servers": dict(servers), "runs": [asdict(run) for run in runs]}
    path.write_text(json.dumps(content, indent=1))


def read(path: Path) -> list[Run]:
    """Read the runs of a file. Raises ValueError for another file."""
    try:
        content = json.loads(path.read_text())["runs"]
        return [Run(**(run | {"case": Case(**run["case"])})) for run in content]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected the JSON of a measurement, got {error!r}") from error
