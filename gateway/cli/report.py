"""The command `seqroute report`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.account_options import find_tenant
from gateway.cli.console import (
    DEFAULT_CONFIG,
    CommandError,
    ConfigOption,
    JsonOption,
    moment,
    now_ms,
    opened,
    say,
    show,
    show_one,
)
from gateway.wording import counted


def report(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    since: Annotated[str | None, typer.Option(help='Start of the period: "7d", "24h", or a date 2026-11-01.')] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write one self-contained page with plots.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Report spend, savings against other ways to answer, and sessions that ran out of money."""
    from gateway.decisions.report import report as make_report
    from gateway.decisions.report_page import report_page

    since_ms = _since_ms(since)
    with opened(config, read_only=True) as connection:
        paying = None if tenant is None else find_tenant(connection, tenant)
        found = make_report(connection, tenant_id=None if paying is None else paying.tenant_id, since_ms=since_ms)
    name = "all tenants" if paying is None else paying.name
    if html is not None:
        html.write_text(report_page(found, tenant=name, at_ms=now_ms()), encoding="utf-8")
        say(f"written: {html}")
    if as_json:
        show_one(found, as_json=True)
        return
    _show_report(found, name)


def _show_report(found: dict[str, Any], tenant: str) -> None:
    """Print the report's totals with their units, then its tables."""
    since = "the first turn" if found["since_ms"] is None else moment(found["since_ms"])
    sessions = found["sessions"]
    out = f" ({found['bankrupt_sessions'] / sessions:.1%})" if sessions else ""
    totals: dict[str, Any] = {
        "tenant": tenant,
        "since": since,
        "spent": f"{found['spent_usd']} USD (retries, exploration, judge and second answers included)",
        "turns": f"{found['turns']:,} ({found['estimated_turns']:,} billed by an estimate of their usage)",
        "sessions": f"{sessions:,} ({found['sessions_with_turns']:,} with a billed turn)",
        "ran_out_of_money": f"{counted(found['bankrupt_sessions'], 'session')}{out}, "
        f"{counted(found['refused_turns'], 'turn')} refused",
        "limited_by_money": f"{counted(found['turns_with_lowered_max_tokens'], 'turn')} with a lowered max_tokens",
        "pinned": f"{counted(found['pinned_turns'], 'turn')} (the client named the model: no saving is counted)",
        "judge": f"{found['judge_usd']} USD",
        "second_answers": f"{found['second_answers_usd']} USD",
        "overage": f"{found['overage_usd']} USD",
    }
    if "exploration_usd" in found:
        totals["exploration"] = (
            f"{found['exploration_usd']} USD expected extra cost, "
            f"{found['exploration_quality_given_up']:.4g} points of quality (0 to 1 a turn)"
        )
    show_one(totals, as_json=False)
    for key, title in _REPORT_TITLES.items():
        rows = [_for_people(row) for row in found[key]]
        print(f"\n{title}")
        show(rows, list(rows[0]) if rows else [], as_json=False, empty="nothing yet")


_REPORT_TITLES = {
    "tenants": "Tenants, now",
    "models": "Models that answered",
    "rivals": "Estimated savings against other ways to answer the same turns (negative: the other costs less)",
    "baselines": "Estimated cost of always using one model",
}
_IN_OTHER_WORDS = ("_nano_usd", "tenant_id", "_low", "_high", "_low_usd", "_high_usd", "lambda_per_usd")


def _for_people(row: Mapping[str, Any]) -> dict[str, Any]:
    """A report row without integer amounts and ids, with shares and qualities as percentages and points."""
    from gateway.decisions.report_page import savings_words

    shown: dict[str, Any] = {}
    for name, value in row.items():
        if name == "saved_share":
            shown["saved"] = savings_words(value, row["saved_share_low"], row["saved_share_high"])
        elif name in ("predicted_quality", "mean_score"):
            shown[f"{name}_points_of_100"] = None if value is None else f"{value * 100:.1f}"
        elif not name.endswith(_IN_OTHER_WORDS):
            shown[name] = value
    return shown


def _since_ms(text: str | None) -> int | None:
    from datetime import UTC, datetime

    from gateway.config.values import parse_duration_s

    if text is None:
        return None
    seconds = parse_duration_s(text)
    if seconds is not None:
        return int((time.time() - seconds) * 1000)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f'--since: expected "7d", "24h" or a date like 2026-11-01, got "{text[:40]}"') from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
