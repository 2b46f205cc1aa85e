"""Variation of a replay over seeds: `python -m bench.seeds OUT0.json OUT1.json ...`.

The files are outputs of `seqroute-train replay` that differ only in `--seed`: another split of the prompts, other
sessions, other fits. Prints a table of the targets by seed, with mean and standard deviation.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.replay.summary import ALL

Output = Mapping[str, Any]


def main() -> None:
    """Print the table of the given files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--source", default=ALL)
    args = parser.parse_args()
    outputs = [json.loads(file.read_text(encoding="utf-8")) for file in args.files]
    for line in table(outputs, args.source):
        print(line)


def table(outputs: Sequence[Output], source: str = ALL) -> Iterator[str]:
    """Markdown lines. Raises ValueError for outputs that differ otherwise or lack the source."""
    for name in ("grid", "preset", "catalogue", "policies", "inputs", "versions", "sources"):
        if any(output["meta"][name] != outputs[0]["meta"][name] for output in outputs):
            raise ValueError(f"expected outputs that differ only in their seed, found other values of meta.{name}")
    seeds = [str(output["meta"]["seed"]) for output in outputs]
    found = [{line["figure"]: line for line in of_source(output, source)} for output in outputs]
    yield "| figure | aim | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | sd |"
    yield "|---|--:|" + "--:|" * (len(seeds) + 2)
    for figure, line in found[0].items():
        values = [seed[figure]["found"] for seed in found]
        known = [value for value in values if value is not None]
        spread = statistics.stdev(known) if len(known) > 1 else None
        cells = [*values, statistics.fmean(known) if known else None, spread]
        yield f"| {line['words']} | {line['aim']} | " + " | ".join(shown(value) for value in cells) + " |"


def of_source(output: Output, source: str) -> list[Mapping[str, Any]]:
    """The target lines of one source, with the first of the run's inputs.

    Raises ValueError for an unknown source.
    """
    inputs = output["meta"]["inputs"][0]
    lines = [line for line in output["summary"] if line["kind"] == "aim" and line["inputs"] == inputs]
    chosen = [line for line in lines if line["source"] == source]
    if not chosen:
        there = ", ".join(dict.fromkeys(line["source"] for line in lines))
        raise ValueError(f"expected a source of the outputs, one of {there}; found {source!r}")
    return chosen


def shown(value: float | None) -> str:
    """A figure with at most four decimals, empty for None."""
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    main()
