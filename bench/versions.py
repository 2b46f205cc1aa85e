"""CPU of a turn by version: `python -m bench.versions before=../before now=.`.

Each argument names a folder with the code of one version (`git worktree add ../before COMMIT`), optionally with the
interpreter that runs it (`3.13=.:/opt/venv/bin/python`). All are started `--copies` times, since two processes of the
same code differ by some per cent for as long as they live, and measured in turn, in short rounds: with other work on
the machine only ratios within a round mean anything.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import uvloop

from bench.rig.gateways import Contender, Recipe, Stage, seqroute
from bench.rig.load import closed
from bench.rig.side_by_side import Arena
from bench.rig.tables import print_table


def version(named: str, database: str) -> Contender:
    """The gateway of `bench.peers` from another folder, by another interpreter."""
    folder, _, python = named.partition(":")

    def recipe(stage: Stage) -> Recipe:
        plain = seqroute(database)(stage)
        # Run outside of this folder, or `python -m gateway` finds this version's package first.
        command = (python or plain.command[0], "-c", f"import sys; sys.path[:1] = [{str(Path(folder).resolve())!r}]; "
                   "from gateway.__main__ import main; main()", *plain.command[3:])  # fmt: skip
        return replace(
            plain, command=command, environment={**plain.environment, "PYTHONPATH": str(Path(folder).resolve())}
        )

    return recipe


async def measure(
    versions: dict[str, str], database: str, clients: int, rounds: int, copies: int, window_s: float
) -> dict[str, list[list[float]]]:
    """CPU milliseconds of a turn: for each version and round those of all its copies."""
    found: dict[str, list[list[float]]] = {name: [[] for _ in range(rounds)] for name in versions}
    with tempfile.TemporaryDirectory() as folder:
        async with Arena(Path(folder)) as arena:
            entries = [
                (name, await arena.enter(f"{name}-{copy}", version(path, database)))
                for copy in range(copies)
                for name, path in versions.items()
            ]
            for number in range(rounds):
                for name, entry in entries if number % 2 else reversed(entries):
                    async with arena.turn_of(entry):
                        sample = await closed(
                            entry.target,
                            clients=clients,
                            window_s=window_s,
                            meter=arena.meter(entry),
                            label=f"r{number}",
                        )
                    found[name][number].append(1e3 * sample.cpu_s["server"] / len(sample.latencies_ms))
    return found


def main() -> None:
    """Print one row per version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="NAME=FOLDER or NAME=FOLDER:PYTHON; the first is compared with")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--window", type=float, default=0.8, help="seconds of one measurement")
    options = parser.parse_args()
    versions = dict(each.split("=", 1) for each in options.versions)
    found = uvloop.run(
        measure(versions, options.database, options.clients, options.rounds, options.copies, options.window)
    )
    first = [sum(each) for each in found[next(iter(versions))]]
    rows = []
    for name, by_round in found.items():
        copies = ["/".join(f"{median(each):.2f}" for each in zip(*by_round, strict=True))]
        ratios = [sum(each) / base for each, base in zip(by_round, first, strict=True)]
        rows.append([name, *copies, f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"])
    print_table("CPU of a turn", ["version", "ms, each copy's median", f"over {next(iter(versions))}"], rows)


if __name__ == "__main__":
    main()
