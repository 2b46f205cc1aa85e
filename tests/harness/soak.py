"""The long run: the figures of the money's promise, as many as one likes, from a seed.

    make soak SEED=1 SIZE=10            every part, a tenth of the release's size
    make soak SEED=7 SIZE=1 PARTS=vortex
    make soak SEEDS=0:10000             the simulators alone

SIZE=100 is the release: 1,000 kills of a gateway, 100 crashes of Postgres, 1,000 departures, 10,000 answers lost
around a commit, 50 crowds of 200 on three replicas, 10,000 budgets that reset at once, 10,000 seeds of each simulator,
half an hour of random harm. What fails says which seed, which commit and which command repeat it. Progress goes to
stderr: the part that runs, and the seeds that are done.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.providers.exchange import STALE_S
from migrations.upgrade import upgrade
from tests.harness.client_disconnects import departures
from tests.harness.cluster import Ground, ground
from tests.harness.concurrent_turns import crowd, crowd_of_a_tree
from tests.harness.crashes import crash_rounds, keep_asking
from tests.harness.faultproxy import FaultProxy
from tests.harness.lost_commits import ambiguous_commits
from tests.harness.postgres import PostgresServer, TestDatabases
from tests.harness.processes import ForkServer, Replica
from tests.harness.simulator import simulate, template
from tests.harness.turn_simulator import simulate_crowd, simulate_turns
from tests.harness.window_resets import reset_together

MODELS = {
    "words": "ok:tokens=30,delay=0.01",
    "slow": "ok:tokens=400,delay=0.01",
    "held": "ok:tokens=40,gate=1",
    "stream": "ok:tokens=60,delay=0.1",
}
TOLD_EVERY_S = 10.0
LONG_LEASES = {"SEQROUTE_HOLD_TTL_SECONDS": "60"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of; every part draws from the same seed."""

    seed: int
    size: int
    folder: Path
    nursery: ForkServer
    server: PostgresServer
    databases: TestDatabases
    seeds: range
    """Of the simulators."""

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        name, url = self.databases.create()
        try:
            yield url
        finally:
            self.databases.drop(name)

    def fresh_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))


def tell(progress: str) -> None:
    """Say how far a run is, beside its figures."""
    print(progress, file=sys.stderr, flush=True)


async def overshoot(plan: Plan) -> str:
    """200 turns at once in one session that affords 20, on three replicas."""
    repeats = max(2, plan.size // 2)
    overshoot_nanousd = 0
    with plan.database() as url:
        async with ground(plan.fresh_folder(), plan.nursery, url, modes=MODELS, environ=LONG_LEASES) as scene:
            for _ in range(3):
                await scene.fleet.start()
            client = await scene.client(budget_usd="100000")
            for number in range(repeats):
                figures = await crowd(scene, client, session=f"crowd-{number}", asking=200, affordable=20)
                assert (figures.dispatched, figures.refused) == (20, 180), figures
                overshoot_nanousd += figures.overshoot_nanousd
            await scene.judge()
    assert overshoot_nanousd == 0
    return f"{repeats} crowds of 200, exactly 20 dispatched in each, overshoot {overshoot_nanousd} nano-USD"


async def trees(plan: Plan) -> str:
    """200 turns at once in a tree of 26 sessions, three deep, on the money of its root; three replicas."""
    repeats = max(2, plan.size // 2)
    dispatched = overshoot_nanousd = 0
    with plan.database() as url:
        async with ground(plan.fresh_folder(), plan.nursery, url, modes=MODELS, environ=LONG_LEASES) as scene:
            for _ in range(3):
                await scene.fleet.start()
            client = await scene.client(budget_usd="100000")
            for number in range(repeats):
                figures = await crowd_of_a_tree(scene, client, root=f"tree-{number}", asking=200, budget_usd="0.004")
                assert figures.refused > 0 == figures.dispatched - 26 - figures.answered, figures
                dispatched += figures.answered
                overshoot_nanousd += figures.overshoot_nanousd
            await scene.judge()
    assert overshoot_nanousd == 0
    return f"{repeats} crowds of 200 in trees of 26, {dispatched} answered, overshoot {overshoot_nanousd} nano-USD"


async def kills_on_postgres(plan: Plan) -> str:
    with plan.database() as url:
        return await _kills(plan, url, 5 * plan.size)


async def kills_on_sqlite(plan: Plan) -> str:
    folder = plan.fresh_folder()
    url = f"sqlite:///{folder / 'soak.db'}"
    upgrade(url)
    return await _kills(plan, url, 5 * plan.size)


async def _kills(plan: Plan, url: str, kills: int) -> str:
    async with ground(plan.fresh_folder(), plan.nursery, url, modes=MODELS) as scene:
        figures = await crash_rounds(scene, seed=plan.seed, kills=kills, clients=8)
    return f"{figures.kills} kill -9, 0 acknowledged turns lost; {figures.verdict.as_line()}"


async def postgres_crashes(plan: Plan) -> str:
    """Immediate stops under load; the gateway must be ready within five seconds of the database."""
    server = PostgresServer()
    try:
        server.start()
        url = server.url("postgres")
        upgrade(url)
        draw = random.Random(plan.seed)
        slowest_s = 0.0
        async with ground(plan.fresh_folder(), plan.nursery, url, modes=MODELS) as scene:
            replica = await scene.fleet.start()
            stop, load = await _load(scene, draw, clients=8)
            for _ in range(plan.size):
                await asyncio.sleep(draw.uniform(0.2, 1.5))
                await asyncio.to_thread(server.stop, "immediate")
                await asyncio.sleep(draw.uniform(0.0, 0.5))
                await asyncio.to_thread(server.start)
                slowest_s = max(slowest_s, await replica.answering("/readyz", 200))
            await asyncio.sleep(1.0)
            stop.set()
            await asyncio.gather(*load)
            verdict = await scene.judge()
        assert slowest_s <= 5.0, slowest_s
        return f"{plan.size} immediate stops, ready again within {slowest_s:.1f} s; {verdict.as_line()}"
    finally:
        server.destroy()


async def leaving(plan: Plan) -> str:
    with plan.database() as url:
        async with ground(plan.fresh_folder(), plan.nursery, url, modes=MODELS, environ=LONG_LEASES) as scene:
            await scene.fleet.start()
            client = await scene.client(budget_usd="100000")
            await client.turn("small", session="warm")
            figures = await departures(scene, client, seed=plan.seed, count=max(30, 12 * plan.size))
    closed_s, settled_s = sorted(figures.closed_s), sorted(figures.settled_s)
    assert closed_s[-1] <= 1.0, closed_s[-5:]
    assert settled_s[-1] <= 2.0, settled_s[-5:]
    return (
        f"{figures.departures} of {figures.departures} clients that left: provider closed within {closed_s[-1]:.2f} s "
        f"(p99 {closed_s[int(0.99 * len(closed_s))]:.2f}), settled within {settled_s[-1]:.2f} s "
        f"(p99 {settled_s[int(0.99 * len(settled_s))]:.2f}); {figures.verdict.as_line()}"
    )


async def ambiguity(plan: Plan) -> str:
    with plan.database() as url:
        return (await ambiguous_commits(url, seed=plan.seed, wanted=100 * plan.size)).as_line()


async def drain(plan: Plan) -> str:
    with plan.database() as url:
        environ = LONG_LEASES | {"SEQROUTE_DRAIN_SECONDS": "30"}
        async with ground(plan.fresh_folder(), plan.nursery, url, modes=MODELS, environ=environ) as scene:
            replica = await scene.fleet.start()
            client = await scene.client()
            streams = [asyncio.create_task(client.turn("stream", stream=True, session=f"s{n}")) for n in range(100)]
            await scene.until(lambda: len(scene.provider.bill) == 100)
            started_s = time.monotonic()
            replica.terminate()
            code = await replica.ended()
            took_s = time.monotonic() - started_s
            fates = [turn.fate for turn in await asyncio.gather(*streams)]
            assert (code, fates.count("ok")) == (0, 100), (code, fates)
            await scene.judge()
    return f"{fates.count('ok')} of 100 streams finished after SIGTERM, exit {code} after {took_s:.1f} s"


async def rolling(plan: Plan) -> str:
    """Replicas restarted one after the other under load; a client that goes elsewhere loses nothing."""
    rounds = max(1, plan.size // 5)
    draw = random.Random(plan.seed)
    with plan.database() as url:
        async with ground(plan.fresh_folder(), plan.nursery, url, modes=MODELS, environ=LONG_LEASES) as scene:
            replicas = [await scene.fleet.start() for _ in range(3)]
            stop, load = await _load(scene, draw, clients=8, tries=10)
            for _ in range(rounds):
                for number, replica in enumerate(replicas):
                    await asyncio.sleep(0.5)
                    replica.terminate()
                    assert await replica.ended() == 0
                    replicas[number] = await scene.fleet.start(port=replica.port)
            stop.set()
            await asyncio.gather(*load)
            failed = [turn for turn in scene.history if turn.fate not in ("ok", "left")]
            assert failed == [], failed[:3]
            verdict = await scene.judge()
    return f"{3 * rounds} restarts, {len(failed)} failed turns; {verdict.as_line()}"


async def vortex(plan: Plan) -> str:
    """Everything at once: processes killed and frozen, the database crashed, its network cut, slowed and lossy."""
    server = PostgresServer()
    draw = random.Random(plan.seed)
    harm: dict[str, int] = {}
    try:
        server.start()
        url = server.url("postgres")
        upgrade(url)
        async with FaultProxy("127.0.0.1", server.port, seed=plan.seed) as proxy:
            served_url = url.replace(f":{server.port}/", f":{proxy.port}/")
            scenery = ground(
                plan.fresh_folder(), plan.nursery, url, served_url=served_url, provider_proxy=True, modes=MODELS
            )
            async with scenery as scene:
                replicas = [await scene.fleet.start() for _ in range(3)]
                stop, load = await _load(scene, draw, clients=10, tries=4)
                ends_s = time.monotonic() + 18.0 * plan.size
                while time.monotonic() < ends_s:
                    await asyncio.sleep(draw.uniform(0.2, 2.0))
                    name = await _harm(draw, scene, replicas, server, proxy)
                    harm[name] = harm.get(name, 0) + 1
                proxy.heal()
                scene.provider_proxy.heal()
                stop.set()
                await asyncio.gather(*load)
                verdict = await scene.judge()
    finally:
        server.destroy()
    told = ", ".join(f"{count} x {name}" for name, count in sorted(harm.items()))
    return f"{told}; {verdict.as_line()}"


async def _harm(
    draw: random.Random, scene: Ground, replicas: list[Replica], server: PostgresServer, proxy: FaultProxy
) -> str:
    number = draw.randrange(len(replicas))
    replica = replicas[number]
    name = draw.choice(("kill", "freeze", "postgres", "reset", "silence", "slow", "loss", "provider-reset"))
    if name == "kill":
        replica.kill()
        await replica.ended()
        scene.fleet.replicas.remove(replica)
        replicas[number] = await scene.fleet.start(port=replica.port, ready=False)
    elif name == "freeze":
        replica.freeze()
        await asyncio.sleep(draw.uniform(0.1, 4.0))
        replica.thaw()
    elif name == "postgres":
        await asyncio.to_thread(server.stop, "immediate")
        await asyncio.sleep(draw.uniform(0.0, 1.0))
        await asyncio.to_thread(server.start)
    elif name == "reset":
        proxy.reset()
    elif name == "silence":
        proxy.silent = True
        await asyncio.sleep(draw.uniform(0.1, 3.0))
        proxy.silent = False
    elif name == "slow":
        proxy.latency_s = draw.uniform(0.01, 0.2)
        await asyncio.sleep(1.0)
        proxy.latency_s = 0.0
    elif name == "loss":
        proxy.lose_answers = draw.uniform(0.01, 0.2)
        await asyncio.sleep(2.0)
        proxy.lose_answers = 0.0
    else:
        # A call that is cut at once on a kept connection is sent again: a server cuts what it had closed before.
        scene.provider_proxy.reset(after_s=STALE_S)
    return name


async def resets(plan: Plan) -> str:
    """Budgets whose windows end at the same moment, under two sweeping gateways and turns that go on."""
    with plan.database() as url:
        figures = await reset_together(url, budgets=100 * plan.size, turns=200)
    assert figures.resets == 100 * plan.size == sum(figures.by_each), figures
    calm_s, busy_s = (sorted(took)[int(0.99 * len(took))] for took in (figures.calm_s, figures.busy_s))
    return (
        f"{figures.resets} windows turned over once each by two gateways {tuple(figures.by_each)}; p99 of turns "
        f"{1000 * calm_s:.0f} ms before, {1000 * busy_s:.0f} ms meanwhile ({busy_s / calm_s:.1f} times)"
    )


async def seeds(plan: Plan) -> str:
    """The simulators of the ledger and of the request path."""
    empty, told_s = template(), time.monotonic()
    for done, seed in enumerate(plan.seeds):
        if time.monotonic() - told_s > TOLD_EVERY_S:
            told_s = time.monotonic()
            tell(f"  {done} of {len(plan.seeds)} seeds")
        try:
            await asyncio.to_thread(simulate, seed, empty)
            await asyncio.to_thread(simulate_turns, seed, empty)
            await asyncio.to_thread(simulate_crowd, seed, empty)
        except Exception as error:
            again = f"python -m tests.harness.simulator --seeds {seed}:{seed + 1}; the same of turn_simulator"
            raise AssertionError(f"seed {seed}: {error} ({again})") from error
    return f"{len(plan.seeds)} seeds of the ledger and as many of the request path clean, from {plan.seeds.start} on"


async def _load(
    scene: Ground, draw: random.Random, *, clients: int, tries: int = 1
) -> tuple[asyncio.Event, list[asyncio.Task[None]]]:
    stop = asyncio.Event()
    client = await scene.client(budget_usd="100000")
    return stop, [
        asyncio.create_task(keep_asking(client, draw.randrange(2**32), stop, tries=tries)) for _ in range(clients)
    ]


PARTS: dict[str, Callable[[Plan], Coroutine[Any, Any, str]]] = {
    "overshoot": overshoot,
    "trees": trees,
    "kills-sqlite": kills_on_sqlite,
    "kills-postgres": kills_on_postgres,
    "postgres-crashes": postgres_crashes,
    "leaving": leaving,
    "ambiguity": ambiguity,
    "drain": drain,
    "rolling": rolling,
    "resets": resets,
    "seeds": seeds,
    "vortex": vortex,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=1, help="100 is the release's size")
    parser.add_argument("--seeds", help="first:last: the simulators alone, with these")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    arguments = parser.parse_args()
    first, last = arguments.seed, arguments.seed + 100 * arguments.size
    if arguments.seeds:
        first, last = map(int, arguments.seeds.split(":"))
        arguments.parts = "seeds"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    # The simulators break the ledger thousands of times; that it says so is not what is read here.
    logging.disable(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="seqroute-soak-"))
    server = PostgresServer()
    failed = 0
    try:
        server.start()
        databases = TestDatabases(server.url("postgres"), upgrade)
        with ForkServer() as nursery:
            plan = Plan(arguments.seed, arguments.size, folder, nursery, server, databases, range(first, last))
            for name in arguments.parts.split(","):
                started_s = time.monotonic()
                tell(f"{name} ...")
                try:
                    found = asyncio.run(PARTS[name](plan))
                except Exception as error:  # noqa: BLE001 - one part's failure must not hide the others' figures
                    failed += 1
                    found = f"FAILED {type(error).__name__}: {error}\n  at {commit.strip()}: make soak "
                    found += f"SEED={arguments.seed} SIZE={arguments.size} PARTS={name}"
                print(f"{name} ({time.monotonic() - started_s:.0f} s): {found}", flush=True)
    finally:
        server.destroy()
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
