"""Behaviour under more load than a process can serve: goodput, refusals, recovery, fairness.

    make soak-overload         or         python -m bench.overload [--only seqroute-sqlite,litellm-proxy] [--new]

Each gateway runs with one worker on one core; the provider takes 100 ms. Its capacity is what 64 busy clients get.
Requests have the headers of OpenAI's SDK.
Then requests come at random at 1, 2 and 10 times that rate, whatever became of the earlier ones, and after the last a
calm load of a tenth of the capacity shows how soon answers are as quick as before. Last, three tenants ask quietly,
alone and then beside a fourth with fifty times the load of one of them (gateways with tenants only).

`--new` opens a connection for every request instead of keeping them. Targets: goodput at 10x at least 90 % of the
capacity, refusals within 50 ms at p99, recovery within 10 s, the quiet tenants' p99 within 1.5 times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import httpx
import uvloop
from openai import BadRequestError, OpenAI

from bench.rig import results
from bench.rig.environments import NotBuilt
from bench.rig.gateways import CONTENDERS
from bench.rig.load import HOST, RunFailed, Target, closed
from bench.rig.open_load import Arrivals, Outcomes, offered
from bench.rig.processes import NotStarted
from bench.rig.side_by_side import Arena, Entry
from bench.rig.tables import print_table

PROVIDER_MS = 100
FACTORS = (1, 2, 10)
CLIENTS = 64
QUIET = ("quiet-a", "quiet-b", "quiet-c")
LOUD_FACTOR = 50
QUIET_SHARE = 0.05
"""Of the capacity, for each quiet tenant; the loud one offers 2.5 times the capacity."""
CALM_SHARE = 0.1
RECOVERED = 1.5
"""Answers are as quick as before when a second's median is within this factor of the calm load's."""


@dataclass(frozen=True, slots=True)
class LoadedFigures:
    """One gateway at one factor of its capacity; times in milliseconds."""

    contender: str
    factor: float
    offered_per_s: float
    goodput: float
    answer_p50_ms: float
    answer_p99_ms: float
    refused: int
    refusal_p50_ms: float
    refusal_p99_ms: float
    lost: int
    other: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Overloaded:
    """All figures of one gateway."""

    contender: str
    capacity_per_s: float
    loaded: tuple[LoadedFigures, ...]
    recovery_s: float | None
    quiet_p99_ms: tuple[float, float] | None
    """The quiet tenants alone, and beside the loud one."""
    quiet_refused: int = 0


async def measure(arena: Arena, entry: Entry, seconds: float, *, kept: bool, rng: Random) -> Overloaded:
    """Measure one gateway that runs."""
    entry = replace(entry, target=replace(entry.target, headers={**sdk_headers(), **entry.target.headers}))
    await arena.pace(delay_ms=PROVIDER_MS)
    sample = await closed(entry.target, clients=CLIENTS, window_s=seconds, meter=arena.meter(entry), label="capacity")
    capacity = sample.per_s
    calm = Arrivals("calm", entry.target, capacity * CALM_SHARE)
    before = (await offered([calm], seconds=seconds, rng=rng, kept=kept, label="before"))["calm"]
    loaded = []
    for factor in FACTORS:
        arrivals = Arrivals("all", entry.target, capacity * factor)
        found = (await offered([arrivals], seconds=seconds, rng=rng, kept=kept, label=f"x{factor}"))["all"]
        loaded.append(_figures(entry.name, factor, capacity, found, seconds))
    after = (await offered([calm], seconds=10.0, rng=rng, kept=kept, label="after"))["calm"]
    recovery_s = _recovery_s(after, 10.0, RECOVERED * before.answer_ms(0.5))
    fairness = await _fairness(entry, capacity, seconds, kept=kept, rng=rng) if entry.target.sessions else None
    return Overloaded(entry.name, capacity, tuple(loaded), recovery_s, *(fairness or (None, 0)))


def _figures(name: str, factor: float, capacity: float, found: Outcomes, seconds: float) -> LoadedFigures:
    # The first second fills the queue: goodput is that of the rest.
    return LoadedFigures(
        name, factor, capacity * factor, found.answered_per_s(1.0, seconds) / capacity,
        found.answer_ms(0.5), found.answer_ms(0.99),
        len(found.refused), found.refusal_ms(0.5), found.refusal_ms(0.99), found.lost, found.other,
    )  # fmt: skip


def _recovery_s(found: Outcomes, seconds: float, within_ms: float) -> float | None:
    """Seconds after which no second is slow or has refusals; None when that is not reached."""
    last_bad = -1
    for second in range(int(seconds)):
        took = sorted(ms for at_s, ms in found.answered if second <= at_s < second + 1)
        refused = any(second <= at_s < second + 1 for at_s, _ in found.refused)
        if refused or not took or took[len(took) // 2] > within_ms:
            last_bad = second
    return None if last_bad == int(seconds) - 1 else float(last_bad + 1)


async def _fairness(
    entry: Entry, capacity: float, seconds: float, *, kept: bool, rng: Random
) -> tuple[tuple[float, float], int]:
    targets = {name: await _tenant(entry.target, f"{name}-{rng.randrange(10**9)}") for name in (*QUIET, "loud")}
    quiet = [Arrivals(name, targets[name], capacity * QUIET_SHARE) for name in QUIET]
    alone = await offered(quiet, seconds=seconds, rng=rng, kept=kept, label="alone")
    loud = Arrivals("loud", targets["loud"], capacity * QUIET_SHARE * LOUD_FACTOR)
    crowded = await offered([*quiet, loud], seconds=seconds, rng=rng, kept=kept, label="crowded")
    p99 = tuple(
        Outcomes([ended for name in QUIET for ended in found[name].answered]).answer_ms(0.99)
        for found in (alone, crowded)
    )
    return (p99[0], p99[1]), sum(len(crowded[name].refused) + crowded[name].lost for name in QUIET)


async def _tenant(target: Target, name: str) -> Target:
    """The same requests as a new tenant, made with the master key."""
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{target.port}", headers=dict(target.headers)) as http:
        made = (await http.post("/admin/tenants", json={"name": name, "budget_usd": "1000"})).raise_for_status()
        key = (await http.post("/admin/keys", json={"tenant_id": made.json()["id"]})).raise_for_status()
    return replace(target, headers={**target.headers, "authorization": f"Bearer {key.json()['key']}"})


def sdk_headers() -> dict[str, str]:
    """The headers that OpenAI's SDK sends, without those of `Target`.

    A head without them is parsed, and refused, faster.
    """
    sent: dict[str, str] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        sent.update(request.headers)
        return httpx.Response(400)

    http = httpx.Client(transport=httpx.MockTransport(answer))
    with OpenAI(api_key="none", max_retries=0, http_client=http) as sdk, suppress(BadRequestError):
        sdk.chat.completions.create(model="auto", messages=[{"role": "user", "content": ""}])
    own = ("host", "content-type", "content-length", "authorization")
    return {name: value for name, value in sent.items() if name not in own}


async def _measure_all(names: Sequence[str], seconds: float, *, kept: bool, rng: Random) -> list[Overloaded]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        async with Arena(Path(folder)) as arena:
            for name in names:
                try:
                    entry = await arena.enter(name, CONTENDERS[name])
                    async with arena.turn_of(entry):
                        found.append(await measure(arena, entry, seconds, kept=kept, rng=rng))
                except (NotBuilt, NotStarted, RunFailed) as error:
                    print(f"{name}: {type(error).__name__}: {str(error)[-300:]}")
    return found


def report(found: Sequence[Overloaded]) -> None:
    """Print one table of loads and one of recovery and fairness."""
    rows = [
        [
            figures.contender, f"{figures.factor:g}x", f"{figures.offered_per_s:,.0f}", f"{figures.goodput:.2f}",
            f"{figures.answer_p50_ms:,.0f}", f"{figures.answer_p99_ms:,.0f}", f"{figures.refused:,}",
            f"{figures.refusal_p50_ms:,.1f}", f"{figures.refusal_p99_ms:,.1f}", str(figures.lost),
            " ".join(f"{status}: {count}" for status, count in figures.other.items()),
        ]
        for one in found
        for figures in one.loaded
    ]  # fmt: skip
    heads = ["", "load", "offered/s", "goodput of capacity", "answer p50 ms", "p99 ms", "refused", "refusal p50 ms",
             "p99 ms", "lost", "others"]  # fmt: skip
    print_table(f"overload, provider {PROVIDER_MS} ms", heads, rows)
    rows = []
    for one in found:
        fairness = [""] * 4
        if one.quiet_p99_ms is not None:
            alone, crowded = one.quiet_p99_ms
            fairness = [f"{alone:,.0f}", f"{crowded:,.0f}", f"{crowded / alone:.2f}", str(one.quiet_refused)]
        recovery = "not within 10" if one.recovery_s is None else f"{one.recovery_s:.0f}"
        rows.append([one.contender, f"{one.capacity_per_s:,.0f}", recovery, *fairness])
    heads = ["", "capacity/s", "recovered after s", "quiet tenants' p99 ms alone", f"beside one at {LOUD_FACTOR}x",
             "ratio", "of them refused"]  # fmt: skip
    print_table("recovery and fairness", heads, rows)


def main() -> None:
    """Measure the gateways one after the other and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="seqroute-sqlite,seqroute-postgres,litellm-proxy")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each load")
    parser.add_argument("--new", action="store_true", help="a new connection for every request")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown:
        parser.error(f"--only: expected some of {', '.join(CONTENDERS)}, got {', '.join(unknown)}")
    found = uvloop.run(_measure_all(names, options.seconds, kept=not options.new, rng=Random(options.seed)))
    for key, value in results.machine().items():
        print(f"{key:>8}: {value}")
    report(found)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1))


if __name__ == "__main__":
    main()
