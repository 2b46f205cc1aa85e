"""HTML page of a nightly report: self-contained, escaped, readable without scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #d0d7de; }
table { border-collapse: collapse; margin: .5rem 0; } th, td { padding: .25rem .75rem; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } tr:nth-child(even) { background: #f6f8fa; }
.verdict { padding: .75rem 1rem; border-left: .4rem solid #8c959f; background: #f6f8fa; }
.promote { border-color: #1a7f37; } .keep { border-color: #9a6700; }
pre { overflow-x: auto; background: #f6f8fa; padding: 1rem; } @media (prefers-color-scheme: dark) {
body { background: #0d1117; color: #e6edf3; } .verdict, pre, tr:nth-child(even) { background: #161b22; } }
"""
Cell = str | int | float | None


def page(report: Mapping[str, Any]) -> str:
    """Render the whole document. `report` is what `train.nightly.nightly.run` returns."""
    title = f"seqroute nightly {report.get('date', '')}: {report.get('outcome', '')}"
    body = "\n".join(part for part in _parts(report) if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def _parts(report: Mapping[str, Any]) -> Iterable[str]:
    yield _verdict(report)
    evaluation = report.get("evaluation") or {}
    if evaluation:
        yield _heading("Candidates on held-out sessions")
        yield f"<p>{evaluation['sessions']:,} sessions, {evaluation['turns']:,} turns</p>"
        yield _candidates(evaluation)
        yield _gains(evaluation)
    if report.get("health"):
        yield _heading("Drift and health")
        # The notes contain all findings; the findings themselves are for programs.
        yield _section({name: value for name, value in report["health"].items() if name != "findings"})
    coverage = report.get("session_costs") or {}
    if coverage:
        yield _heading("Forecasts of sessions' costs")
        yield "<p>Held-back sessions whose rest cost at most the P90 of its forecast: 85 to 95 % when calibrated.</p>"
        rows = [
            (when, row["sessions"], f"{row['p90_coverage']:.1%}", "yes" if row["calibrated"] else "no")
            for when, row in coverage.items()
        ]
        yield _table(("forecast", "sessions", "P90 coverage", "calibrated"), rows)
    caches = report.get("prompt_caches") or {}
    if caches:
        yield _heading("Prompt caches")
        yield "<p>Tokens of held-back turns that providers reported as cached, of those that were expected to be.</p>"
        rows = [
            (name, row["turns"], f"{row['reported_tokens']:,} of {row['expected_tokens']:,}", f"{row['ratio']:.1%}")
            for name, row in caches.items()
        ]
        yield _table(("model", "turns", "tokens", "reported share"), rows)
    log = report.get("log") or {}
    if log:
        yield _heading("Training data")
        sizes = [("sessions", log.get("sessions")), ("turns", log.get("turns"))]
        sizes += [(name.replace("_", " "), report.get(name)) for name in ("training_sessions", "untouched_sessions")]
        yield _table(("", ""), sizes)
        for name in ("excluded", "labels", "models", "policies"):
            counts = sorted((log.get(name) or {}).items(), key=lambda item: (-item[1], item[0]))
            yield _table(("excluded" if name == "excluded" else name, "turns"), counts)
        shares = sorted((log.get("graded") or {}).items())
        yield _table(("model", "share of turns graded"), [(name, f"{share:.1%}") for name, share in shares])
    quality = (report.get("fit") or {}).get("quality_model") or {}
    if quality:
        yield _heading("The reward model")
        rows = [
            (name, quality["graded_turns"].get(name), mean, quality["slope"].get(name))
            for name, mean in sorted(quality["mean_quality"].items())
        ]
        yield _table(("model", "graded turns", "mean quality", "slope"), rows)
    settings = json.dumps(report.get("config", {}), indent=1, sort_keys=True)
    yield _heading("Settings") + f"<details><summary>all of them</summary><pre>{escape(settings)}</pre></details>"


def _verdict(report: Mapping[str, Any]) -> str:
    outcome = str(report.get("outcome", ""))
    published = report.get("published") or {}
    lines = [str(reason) for reason in report.get("reasons", [])]
    if published:
        lines.append(f"published as {published['stage']}" + (f": {published['note']}" if published["note"] else ""))
    if "seconds" in report:
        lines.append(f"run {report.get('run_id', '')} took {report['seconds']:.0f} s")
    kind = outcome if outcome in ("promote", "keep") else "other"
    shown = "".join(f"<li>{escape(line)}</li>" for line in lines)
    name = f" {report['candidate']}" if report.get("candidate") else ""
    return f'<div class="verdict {kind}"><strong>{escape(outcome + name)}</strong><ul>{shown}</ul></div>'


def _candidates(evaluation: Mapping[str, Any]) -> str:
    incumbent = evaluation.get("incumbent", {}).get("policy_id", "incumbent")
    rows = []
    for name, row in evaluation["policies"].items():
        shown = f"{incumbent} (incumbent)" if name == "incumbent" else name
        score, cost = row["score"], row["cost_usd_per_turn"]
        rows.append(
            (shown, _interval(score), _interval(cost, 6), f"{row['starved_rate']:.1%}", row["effective_turns"],
             row["overlap"])
        )  # fmt: skip
    return _table(("policy", "score per turn", "USD per turn", "starved", "effective turns", "overlap"), rows)


def _gains(evaluation: Mapping[str, Any]) -> str:
    gains: Mapping[str, Any] = evaluation.get("gain") or {}
    rows = [(name, _interval(gain), _interval(gain["second_opinion"])) for name, gain in gains.items()]
    return _table(("gain over the incumbent", "doubly robust", "per-decision weighted IS"), rows)


def _section(found: Any) -> str:
    """Render notes as a list and mappings as tables."""
    if isinstance(found, Mapping):
        plain = [
            (str(name).replace("_", " "), value)
            for name, value in found.items()
            if not isinstance(value, Mapping | list)
        ]
        nested = [
            f"<h3>{escape(str(name).replace('_', ' '))}</h3>{_section(value)}"
            for name, value in found.items()
            if isinstance(value, Mapping | list) and value
        ]
        return _table(("", ""), plain) + "".join(nested)
    if isinstance(found, list) and found and all(isinstance(item, Mapping) for item in found):
        names = list(dict.fromkeys(name for item in found for name in item))
        return _table(names, [tuple(_plain(item.get(name)) for name in names) for item in found])
    if isinstance(found, list):
        return "<ul>" + "".join(f"<li>{escape(str(item))}</li>" for item in found) + "</ul>"
    return f"<p>{escape(str(found))}</p>"


def _plain(value: Any) -> Cell:
    return value if isinstance(value, str | int | float) or value is None else json.dumps(value, sort_keys=True)


def _interval(values: Mapping[str, Any], digits: int = 4) -> str:
    mean, low, high = (values.get(name) for name in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return "unknown"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _cell(value: Cell) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return f"<td>{escape('' if value is None else str(value))}</td>"
    return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{value:,.4g}</td>'
