"""Self-contained HTML pages with tables and plots, for reports that are sent on or kept.

Everything is escaped, readable without scripts, in light and dark, and loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --shade: #f6f8fa; --mark: #0b6e99; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24;
  background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .25rem .75rem; text-align: left; } thead th { border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } tr:nth-child(even) { background: var(--shade); }
.verdict { padding: .75rem 1rem; border-left: .4rem solid #8c959f; background: var(--shade); }
.promote { border-color: #1a7f37; } .keep { border-color: #9a6700; }
pre { overflow-x: auto; background: var(--shade); padding: 1rem; } svg { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } .plot { background: #fff; }
figcaption { font-size: .85rem; } svg text { fill: currentColor; font: 12px system-ui; }
@media (prefers-color-scheme: dark) {
body { background: #0d1117; color: #e6edf3; } :root { --line: #30363d; --shade: #161b22; --mark: #58b6e0; } }
"""
Cell = str | int | float | None
_WIDTH, _LABEL, _ROW, _VALUE = 720, 190, 24, 130


def page(title: str, body: str) -> str:
    """A whole document around the body's HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def heading(text: str) -> str:
    """A heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table; numbers are on the right. Nothing without rows."""
    if not rows:
        return ""
    top = "".join(
        f'<th scope="col"{_numeric(rows[0][place] if place < len(rows[0]) else None)}>{escape(name)}</th>'
        for place, name in enumerate(head)
    )
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


@dataclass(frozen=True, slots=True)
class PlotBar:
    """A bar with its value in words, and perhaps an interval."""

    name: str
    value: float
    shown: str
    low: float | None = None
    high: float | None = None


def bars(caption: str, rows: Sequence[PlotBar]) -> str:
    """Horizontal bars to either side of zero, with intervals as lines. Nothing without rows."""
    if not rows:
        return ""
    ends = [0.0] + [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    least, most = min(ends), max(ends)
    span = (most - least) or 1.0
    room = _WIDTH - _LABEL - _VALUE

    def across(value: float) -> float:
        return round(_LABEL + (value - least) / span * room, 1)

    zero, drawn = across(0.0), []
    for place, row in enumerate(rows):
        top, middle = place * _ROW + 4, place * _ROW + 12
        start, end = sorted((zero, across(row.value)))
        drawn.append(
            f'<text x="{_LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(row.name[:28])}</text>'
            f'<rect x="{start}" y="{top}" width="{max(end - start, 1):.1f}" height="16" fill="var(--mark)"/>'
            f'<text x="{_WIDTH - _VALUE + 8}" y="{middle + 4}">{escape(row.shown)}</text>'
        )
        if row.low is not None and row.high is not None:
            drawn.append(
                f'<path d="M{across(row.low)} {middle}H{across(row.high)}M{across(row.low)} {top + 3}v10'
                f'M{across(row.high)} {top + 3}v10" stroke="currentColor" fill="none"/>'
            )
    height = len(rows) * _ROW + 4
    axis = f'<path d="M{zero} 0V{height}" stroke="currentColor" opacity=".4"/>'
    return _figure(caption, height, axis + "".join(drawn))


@dataclass(frozen=True, slots=True)
class PlotLine:
    """A series of points, with the band of its intervals where there are some."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high)"""
    marks: bool = False
    """Points alone, without the line between them."""


def lines(caption: str, series: Sequence[PlotLine], *, across: str, up: str) -> str:
    """Lines over two axes with their names and units. Nothing without points."""
    xs = [x for line in series for x, _ in line.points] + [x for line in series for x, *_ in line.band]
    ys = [y for line in series for _, y in line.points] + [y for line in series for _, *ends in line.band for y in ends]
    if not xs:
        return ""
    height, left, bottom = 300, 90, 60
    least_x, most_x, least_y, most_y = min(xs), max(xs), min(ys), max(ys)

    def place(x: float, y: float) -> str:
        right = (x - least_x) / ((most_x - least_x) or 1.0) * (_WIDTH - left - 20)
        above = (y - least_y) / ((most_y - least_y) or 1.0) * (height - bottom - 20)
        return f"{left + right:.1f} {height - bottom - above:.1f}"

    drawn, colours = [], ("#0b6e99", "#b3541e", "#4b7f52", "#7d3c98", "#8a6d1f")
    for number, line in enumerate(series):
        colour = colours[number % len(colours)]
        if line.band:
            edge = [place(x, high) for x, _, high in line.band] + [place(x, low) for x, low, _ in reversed(line.band)]
            drawn.append(f'<path d="M{"L".join(edge)}Z" fill="{colour}" opacity=".15"/>')
        spots = [place(x, y) for x, y in line.points]
        if spots and not line.marks:
            drawn.append(f'<path d="M{"L".join(spots)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for spot in spots:
            x, y = spot.split()
            drawn.append(f'<circle cx="{x}" cy="{y}" r="{6 if line.marks else 2.5}" fill="{colour}"/>')
        drawn.append(
            f'<rect x="{left + number * 200}" y="{height - 14}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{left + 16 + number * 200}" y="{height - 5}">{escape(line.name[:30])}</text>'
        )
    low, high = height - bottom, 20
    axes = (
        f'<path d="M{left} {high}V{low}H{_WIDTH - 20}" fill="none" stroke="currentColor" opacity=".4"/>'
        f'<text x="{left - 6}" y="{low}" text-anchor="end">{least_y:.4g}</text>'
        f'<text x="{left - 6}" y="{high + 8}" text-anchor="end">{most_y:.4g}</text>'
        f'<text x="{left}" y="{low + 16}">{least_x:.4g}</text>'
        f'<text x="{_WIDTH - 20}" y="{low + 16}" text-anchor="end">{most_x:.4g}</text>'
        f'<text x="{(_WIDTH + left) / 2}" y="{low + 32}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="{left}" y="{high - 6}">{escape(up)}</text>'
    )
    return _figure(caption, height, axes + "".join(drawn))


def drawings(files: Sequence[Path]) -> str:
    """The SVG files among these, drawn into the page."""
    svgs = [file.read_text(encoding="utf-8") for file in files if file.suffix == ".svg"]
    # What stands before the element itself (a declaration, a document type) has no place inside a page.
    return "".join(f'<figure class="plot">{text[text.index("<svg") :]}</figure>' for text in svgs)


def _figure(caption: str, height: float, drawing: str) -> str:
    title = escape(caption)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">{drawing}</svg>'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _cell(value: Cell) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return f"<td>{escape('' if value is None else str(value))}</td>"
    return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{value:,.4g}</td>'


def _numeric(value: Cell) -> str:
    return ' class="n"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
