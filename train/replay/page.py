"""The replay benchmark's report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.document import Cell, drawings, heading, page, paragraph, table
from gateway.wording import counted
from train.replay.summary import ALL

_TITLES = {
    "cells": "Every policy against the best tuned baseline, quality per turn (0 to 1), over all sources",
    "against": "Mean gain of our policy in quality per turn, over the cells that both played",
    "front": "Fronts: area under quality over cost, and the saving at the strongest's quality (share of its bill)",
    "newcomer": "A model that was unknown at training",
}


def replay_page(report: Mapping[str, Any], plots: Sequence[Path]) -> str:
    """Render what the replay command writes as JSON, with its plots drawn into the page."""
    meta = report["meta"]
    said = ", ".join(f"{name} {meta[name]}" for name in ("preset", "seed") if name in meta)
    head = paragraph(f"{said}; {counted(len(report['rows']), 'row')}")
    return page("seqroute replay", "\n".join([head, *_parts(report, plots)]))


def _parts(report: Mapping[str, Any], plots: Sequence[Path]) -> Iterable[str]:
    summary = report["summary"]
    aims = [row for row in summary if row["kind"] == "aim" and row["source"] == ALL]
    if aims:
        yield heading("Aims")
        verdicts = {None: "-", True: "met", False: "missed"}
        yield table(
            ("", "inputs", "aim", "found", "what it is"),
            [(verdicts[row["met"]], row["inputs"], str(row["aim"]), row["found"], row["words"]) for row in aims],
        )
    yield drawings(plots)
    for kind, title in _TITLES.items():
        rows = [row for row in summary if row["kind"] == kind and (kind != "cells" or row["source"] == ALL)]
        if rows:
            names = [name for name in rows[0] if name != "kind"]
            yield heading(title)
            yield table(
                [name.replace("_", " ") for name in names],
                [tuple(_cell(row.get(name)) for name in names) for row in rows],
            )


def _cell(value: object) -> Cell:
    return value if isinstance(value, str | int | float) or value is None else str(value)
