"""Plain text tables that are valid Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column left-aligned, the others right. Raises ValueError for uneven rows."""
    for row in rows:
        if len(row) != len(heads):
            raise ValueError(f"table: expected {len(heads)} cells, got {len(row)}: {row}")
    widths = [max(len(line[at]) for line in (heads, *rows)) for at in range(len(heads))]
    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    lines = [_line(heads, widths), f"|{'|'.join(rule)}|", *(_line(row, widths) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a titled table."""
    print(f"\n{title}\n\n{table(heads, rows)}")
