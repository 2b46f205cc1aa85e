"""Table by catalogue of several replays: `python -m bench.catalogues OUT.json ...`.

The files are outputs of `seqroute-train replay`, of any folders and seeds; rows of `live` inputs count. A catalogue's
figures are means over its cells and seeds, in points of quality per turn (a right answer is 100); the last table has
the means over all cells, and the smallest and the largest of the seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.rig.tables import print_table
from train.replay.summary import Row, group_rows, in_whole
from train.replay.targets import CALIBRATED, NETWORK, OURS, PLANNER, USUAL, gain, mean

SAFE, TUNED = "safe-tuned", "tuned"
HEADS = (
    *("catalogue", "seeds", "`ours`, starved", "by a network", "network", "planner", "usual", "blind"),
    *("`ours` - tuned", "network - tuned", "`ours`, network certainly below / above tuned"),
)
DIFFERENCES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("network - planner", NETWORK, (PLANNER,)),
    ("network - tuned", NETWORK, (TUNED,)),
    ("`ours` - tuned", OURS, (TUNED,)),
    ("network - `ours`", NETWORK, (OURS,)),
    ("planner - blind", PLANNER, ("ours-blind",)),
    ("`ours` - usual", OURS, USUAL),
    ("network - usual", NETWORK, USUAL),
    ("`ours` - published", OURS, ("published-safe",)),
    ("network - published", NETWORK, ("published-safe",)),
    ("`ours` - strongest", OURS, ("strongest",)),
    ("network - strongest", NETWORK, ("strongest",)),
    ("calibrated - safe", CALIBRATED, (SAFE,)),
    ("shipped - default rule", "ours-pretrained", ("gateway-default",)),
)


def main() -> None:
    """Print the tables of the given files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    rows = rows_of([json.loads(file.read_text(encoding="utf-8")) for file in parser.parse_args().files])
    print_table(
        "By catalogue",
        HEADS,
        list(by_catalogue(rows)),
    )
    print_table(
        "At most 1 % starved",
        ["catalogue", "calibrated, starved", "rule, starved", "calibrated - rule"],
        list(at_equal_starvation(rows)),
    )
    print_table("Over all cells", ["", "budget", "cache"], list(over_all(rows)))


def rows_of(outputs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of live inputs with their seed: all orderings together, without newcomers."""
    return [
        {**row, "seed": output["meta"]["seed"]}
        for output in outputs
        for row in in_whole(output["rows"])
        if row["inputs"] == "live"
    ]


def by_catalogue(rows: Sequence[Row]) -> Iterator[list[str]]:
    """One line for each catalogue and kind of cell."""
    for name, mine in named_parts(rows):
        each = {policy: _of(mine, policy) for policy in (OURS, NETWORK, PLANNER, "ours-blind")}
        ours = each[OURS]
        certain = ", ".join(f"{_certain(each[policy], -1)} / {_certain(each[policy], 1)}" for policy in (OURS, NETWORK))
        usual = None if (over := difference(mine, OURS, USUAL)) is None else _points(ours) - over
        yield [
            name,
            str(len({row["seed"] for row in mine})),
            f"{_points(ours):.2f}, {100 * _mean(ours, 'starved_rate'):.1f} %",
            f"{sum(row['served'] == 'network' for row in ours)} of {len(ours)}",
            f"{_points(each[NETWORK]):.2f}",
            f"{_points(each[PLANNER]):.2f}",
            "" if usual is None else f"{usual:.2f}",
            f"{_points(each['ours-blind']):.2f}" if each["ours-blind"] else "",
            f"{difference(mine, OURS, (TUNED,)):+.2f}",
            f"{difference(mine, NETWORK, (TUNED,)):+.2f}",
            certain,
        ]


def at_equal_starvation(rows: Sequence[Row]) -> Iterator[list[str]]:
    """One line for each catalogue's budget cells: both held to 1 % starved in training."""
    for name, mine in named_parts([row for row in rows if row["budget"] == "phi"]):
        calibrated, rule = _of(mine, CALIBRATED), _of(mine, SAFE)
        found = [f"{_points(one):.2f}, {100 * _mean(one, 'starved_rate'):.1f} %" for one in (calibrated, rule)]
        yield [name, *found, f"{difference(mine, CALIBRATED, (SAFE,)):+.2f}"]


def over_all(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Each difference over all cells, with the range over seeds."""
    for words, policy, others in DIFFERENCES:
        line = [words]
        for kind in ("budget", "cache"):
            mine = [row for row in rows if (row["budget"] == "phi") == (kind == "budget")]
            found = difference(mine, policy, others)
            seeds = [difference(of_seed, policy, others) for _, of_seed in group_rows(mine, "seed")]
            known = [each for each in seeds if each is not None]
            spread = f" ({min(known):+.2f} to {max(known):+.2f})" if len(known) > 1 else ""
            line.append("" if found is None else f"{found:+.2f}{spread}")
        yield line


def named_parts(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows by catalogue and kind of cell, with a name."""
    for (source, models), mine in group_rows(rows, "source", "models"):
        for kind, part in group_rows(
            [{**row, "kind": "budget" if row["budget"] == "phi" else "cache"} for row in mine], "kind"
        ):
            yield f"{source}, {len(models.split(','))} models, {kind}", part


def difference(rows: Sequence[Row], policy: str, others: Sequence[str]) -> float | None:
    """Mean gain in points over the tuned rule, or the best of the others in training."""
    if others == (TUNED,):
        found = mean(row["diff_vs_best_tuned"] for row in _of(rows, policy))
    else:
        gains = [(gain(mine, policy, *others), len(_of(mine, policy))) for _, mine in group_rows(rows, "seed")]
        known = [(each, cells) for each, cells in gains if each is not None]
        cells = sum(count for _, count in known)
        found = sum(each * count for each, count in known) / cells if cells else None
    return None if found is None else 100.0 * found


def _of(rows: Sequence[Row], policy: str) -> list[Row]:
    return [row for row in rows if row["policy"] == policy]


def _points(rows: Sequence[Row]) -> float:
    return 100.0 * _mean(rows, "quality")


def _mean(rows: Sequence[Row], column: str) -> float:
    return mean(row[column] for row in rows) or 0.0


def _certain(rows: Sequence[Row], sign: int) -> int:
    """Cells whose whole interval of the difference to the tuned rule has this sign."""
    return sum(float(row["diff_hi"]) < 0.0 if sign < 0 else float(row["diff_lo"]) > 0.0 for row in rows)


if __name__ == "__main__":
    main()
