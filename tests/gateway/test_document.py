"""Pages that load nothing and escape everything, and plots whose marks stand where their numbers are."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from gateway.document import PlotBar, PlotLine, bars, lines, page, table

EVIL = '<script>alert("x")</script>'


def test_a_page_escapes_what_it_shows_and_loads_nothing() -> None:
    shown = page(EVIL, table(("name", "n"), [(EVIL, 1_234)]) + bars(EVIL, [PlotBar(EVIL, 1.0, EVIL)]))
    assert "<script" not in shown
    assert re.search(r"(src|href)=|@import|url\(", shown) is None
    assert '<td class="n">1,234</td>' in shown


def test_bars_reach_to_both_sides_of_zero_with_their_intervals() -> None:
    drawn = ET.fromstring(bars("saved", [PlotBar("up", 2.0, "2", 1.0, 3.0), PlotBar("down", -1.0, "-1", -2.0, 0.0)]))
    up, down = [rect.attrib for rect in drawn.iter("rect")]
    assert float(up["x"]) == float(down["x"]) + float(down["width"])
    assert float(up["width"]) == 2 * float(down["width"])
    axis, *whiskers = [path.attrib["d"] for path in drawn.iter("path")]
    assert axis.startswith(f"M{up['x']} ")
    assert len(whiskers) == 2


def test_lines_keep_inside_the_figure() -> None:
    drawn = lines("front", [PlotLine("swept", [(0.0, 1.0), (2.0, 3.0)], [(0.0, 0.5, 1.5), (2.0, 2.0, 4.0)])],
                  across="cents", up="points")  # fmt: skip
    circles = list(ET.fromstring(drawn).iter("circle"))
    assert len(circles) == 2
    assert all(0 <= float(c.attrib["cx"]) <= 720 and 0 <= float(c.attrib["cy"]) <= 300 for c in circles)


def test_nothing_to_show_draws_nothing() -> None:
    assert (bars("x", []), lines("x", [], across="", up=""), table(("a",), [])) == ("", "", "")
    assert "NaN" not in bars("x", [PlotBar("zero", 0.0, "0")]) + lines(
        "x", [PlotLine("one", [(1.0, 1.0)])], across="", up=""
    )
