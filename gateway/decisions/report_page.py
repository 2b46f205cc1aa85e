"""The report as one self-contained HTML page with plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.document import Cell, PlotBar, PlotLine, bars, heading, lines, page, paragraph, table
from gateway.wording import counted

Report = Mapping[str, Any]


def report_page(report: Report, *, tenant: str, at_ms: int) -> str:
    """Render what `gateway.decisions.report.report` returns."""
    made = _moment(at_ms)
    since = "the first turn" if report["since_ms"] is None else _moment(report["since_ms"])
    body = "\n".join(part for part in _parts(report, tenant, since, made) if part)
    return page(f"seqroute report: {tenant}", body)


def savings_words(share: float | None, low: float | None, high: float | None) -> str:
    """A signed saving as percentages with its interval."""
    if share is None:
        return "unknown"
    if low is None or high is None:
        return f"{share:+.1%} (too few sessions for an interval)"
    return f"{share:+.1%} (95 %: {low:+.1%} to {high:+.1%})"


def _parts(report: Report, tenant: str, since: str, made: str) -> Iterable[str]:
    yield paragraph(f"Tenant: {tenant}. Turns since {since}, as of {made}. Money in US dollars.")
    yield table(("", "", "what it is"), _totals(report))
    yield from _savings(report)
    yield from _front(report)
    yield from _spending(report)
    yield heading("Tenants, now")
    yield table(
        ("tenant", "budget, USD", "spent, USD", "reserved, USD", "remaining, USD"),
        [
            (row["tenant"], *(float(row[f"{name}_usd"]) for name in ("budget", "spent", "reserved", "remaining")))
            for row in report["tenants"]
        ],
    )


def _savings(report: Report) -> Iterable[str]:
    yield heading("What routing saved, against other ways to answer the same turns")
    rivals = report["rivals"]
    if rivals:
        yield bars("Saved in USD, 95 % intervals over sessions; left of zero: the rival would have cost less", [
            PlotBar(_rival_name(row), float(row["saved_usd"]), f"{float(row['saved_usd']):+,.4g} USD",
                _number(row["saved_low_usd"]), _number(row["saved_high_usd"]))
            for row in rivals
        ])  # fmt: skip
        yield table(
            ("rival", "estimated cost, USD", "saved, USD", "saved", "its expected quality, points of 100"),
            [
                (_rival_name(row), float(row["estimated_usd"]), f"{float(row['saved_usd']):+,.4g}", _saved(row),
                 _points(row["predicted_quality"]))
                for row in rivals
            ],
        )  # fmt: skip
        yield paragraph(
            f"Estimates over {counted(report['routed_turns'], 'turn')} that clients left to the gateway, of an "
            f"expected quality of {_points(report['predicted_quality'])} points. A rival's cost is its predicted cost, "
            "scaled by the ratio of bills to predictions. Exploration is in the bills, judge and second answers are "
            "taken from the savings. The tuned lambda is chosen with hindsight: the same expected quality at the least "
            "cost."
        )
        yield table(
            ("always this model", "estimated cost, USD", "saved", "expected quality, points", "turns not served by it"),
            [
                (row["always"], float(row["estimated_usd"]), _saved(row), _points(row["predicted_quality"]),
                 row["turns_not_comparable"])
                for row in report["baselines"]
            ],
        )  # fmt: skip
    else:
        yield paragraph("No turn of this period was left to the gateway and predicted, so there is nothing to compare.")


def _spending(report: Report) -> Iterable[str]:
    yield heading("Where the money went")
    yield bars("Spent by model, USD", [
        PlotBar(row["model"], float(row["spent_usd"]), f"{float(row['spent_usd']):,.4g} USD")
        for row in report["models"]
    ])  # fmt: skip
    spent = sum(row["spent_nano_usd"] for row in report["models"])
    yield table(
        ("model", "turns", "spent, USD", "share of spend", "graded turns", "mean score, points of 100"),
        [
            (row["model"], row["turns"], float(row["spent_usd"]),
             f"{row['spent_nano_usd'] / spent:.1%}" if spent else "-", row["scored_turns"], _points(row["mean_score"]))
            for row in report["models"]
        ],
    )  # fmt: skip
    days = report["days"]
    if len(days) > 1:
        yield bars("Spent by day (UTC), USD", [
            PlotBar(row["day"], float(row["spent_usd"]), f"{float(row['spent_usd']):,.4g} USD") for row in days[-62:]
        ])  # fmt: skip


def _totals(report: Report) -> Sequence[Sequence[Cell]]:
    sessions = report["sessions"]
    share = f" ({report['bankrupt_sessions'] / sessions:.1%})" if sessions else ""
    rows: list[Sequence[Cell]] = [
        ("spent", f"{report['spent_usd']} USD", "every bill: retries, exploration, judge and second answers included"),
        ("turns", f"{report['turns']:,}", f"{report['estimated_turns']:,} billed by an estimate of their usage"),
        ("sessions", f"{sessions:,}", f"{report['sessions_with_turns']:,} with a billed turn"),
        ("ran out of money", f"{counted(report['bankrupt_sessions'], 'session')}{share}",
         f"{counted(report['refused_turns'], 'turn')} refused because the budget was spent (402)"),
        ("answers limited by money", counted(report["turns_with_lowered_max_tokens"], "turn"),
         "their max_tokens was lowered to what the budget could pay"),
        ("pinned", counted(report["pinned_turns"], "turn"), "the client named the model: no routing, no saving"),
        ("judge", f"{report['judge_usd']} USD", "grading a sample of the answers"),
        ("second answers", f"{report['second_answers_usd']} USD", "answers that only the judge saw"),
        ("overage", f"{report['overage_usd']} USD", "billed by providers beyond what was reserved"),
    ]  # fmt: skip
    if "exploration_usd" in report:
        quality = f"{report['exploration_quality_given_up']:.4g} points of quality (0 to 1 a turn)"
        rows.append(
            ("exploration", f"{report['exploration_usd']} USD", f"expected extra cost, in the bills, and {quality}")
        )
    return rows


def _front(report: Report) -> Iterable[str]:
    front, today = report["front"], report["today"]
    if not front or today is None:
        return
    yield heading("Cost and quality over lambda")
    curve = sorted((point["cost_usd"] * 100, point["quality"] * 100) for point in front)
    band = sorted(
        (point["cost_usd"] * 100, point["quality_low"] * 100, point["quality_high"] * 100)
        for point in front
        if point["quality_low"] is not None
    )
    yield lines(
        "Off-policy estimates (doubly robust) for the rule quality - lambda * cost, and the turns as they were",
        [PlotLine("lambda swept", curve, band),
         PlotLine("as answered", [(today["cost_usd"] * 100, today["quality"] * 100)], marks=True)],
        across="US cents per turn", up="quality, points of 100",
    )  # fmt: skip


def _rival_name(row: Mapping[str, Any]) -> str:
    return row["rival"] if row["model"] is None else f"{row['rival']}: {row['model']}"


def _saved(row: Mapping[str, Any]) -> str:
    return savings_words(row["saved_share"], row["saved_share_low"], row["saved_share_high"])


def _points(quality: float | None) -> str:
    return "-" if quality is None else f"{quality * 100:.1f}"


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
