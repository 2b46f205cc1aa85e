"""HTML page of a nightly report: self-contained, escaped, readable without scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from gateway import document
from gateway.document import Cell, PlotBar, bars, heading, table
from gateway.wording import counted


def page(report: Mapping[str, Any]) -> str:
    """Render the whole document. `report` is what `train.nightly.nightly.run` returns."""
    title = f"seqroute nightly {report.get('date', '')}: {report.get('outcome', '')}"
    return document.page(title, "\n".join(part for part in _parts(report) if part))


def _parts(report: Mapping[str, Any]) -> Iterable[str]:
    yield _verdict(report)
    evaluation = report.get("evaluation") or {}
    if evaluation:
        yield heading("Candidates on held-out sessions")
        yield f"<p>{counted(evaluation['sessions'], 'session')}, {counted(evaluation['turns'], 'turn')}</p>"
        yield _candidates(evaluation)
        yield _gains(evaluation)
        yield bars("Gain in score per turn over the incumbent, doubly robust, 95 % intervals", [
            PlotBar(name, gain["mean"], _interval(gain), gain["low"], gain["high"])
            for name, gain in (evaluation.get("gain") or {}).items()
            if None not in (gain.get("mean"), gain.get("low"), gain.get("high"))
        ])  # fmt: skip
    if report.get("health"):
        yield heading("Drift and health")
        # The notes contain all findings; the findings themselves are for programs.
        yield _section({name: value for name, value in report["health"].items() if name != "findings"})
    coverage = report.get("session_costs") or {}
    if coverage:
        yield heading("Forecasts of sessions' costs")
        yield "<p>Held-back sessions whose rest cost at most the P90 of its forecast: 85 to 95 % when calibrated.</p>"
        rows = [
            (when, row["sessions"], f"{row['p90_coverage']:.1%}", "yes" if row["calibrated"] else "no")
            for when, row in coverage.items()
        ]
        yield table(("forecast", "sessions", "P90 coverage", "calibrated"), rows)
    caches = report.get("prompt_caches") or {}
    if caches:
        yield heading("Prompt caches")
        yield "<p>Tokens of held-back turns that providers reported as cached, of those that were expected to be.</p>"
        rows = [
            (name, row["turns"], f"{row['reported_tokens']:,} of {row['expected_tokens']:,}", f"{row['ratio']:.1%}")
            for name, row in caches.items()
        ]
        yield table(("model", "turns", "tokens", "reported share"), rows)
    log = report.get("log") or {}
    if log:
        yield heading("Training data")
        sizes = [("sessions", log.get("sessions")), ("turns", log.get("turns"))]
        sizes += [(name.replace("_", " "), report.get(name)) for name in ("training_sessions", "untouched_sessions")]
        yield table(("", ""), sizes)
        for name in ("excluded", "labels", "models", "policies"):
            counts = sorted((log.get(name) or {}).items(), key=lambda item: (-item[1], item[0]))
            yield table(("excluded" if name == "excluded" else name, "turns"), counts)
        shares = sorted((log.get("graded") or {}).items())
        yield table(("model", "share of turns graded"), [(name, f"{share:.1%}") for name, share in shares])
    quality = (report.get("fit") or {}).get("quality_model") or {}
    if quality:
        yield heading("The reward model")
        rows = [
            (name, quality["graded_turns"].get(name), mean, quality["slope"].get(name))
            for name, mean in sorted(quality["mean_quality"].items())
        ]
        yield table(("model", "graded turns", "mean quality", "slope"), rows)
    settings = json.dumps(report.get("config", {}), indent=1, sort_keys=True)
    yield heading("Settings") + f"<details><summary>all of them</summary><pre>{escape(settings)}</pre></details>"


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
    return table(("policy", "score per turn", "USD per turn", "starved", "effective turns", "overlap"), rows)


def _gains(evaluation: Mapping[str, Any]) -> str:
    gains: Mapping[str, Any] = evaluation.get("gain") or {}
    rows = [(name, _interval(gain), _interval(gain["second_opinion"])) for name, gain in gains.items()]
    return table(("gain over the incumbent", "doubly robust", "per-decision weighted IS"), rows)


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
        return table(("", ""), plain) + "".join(nested)
    if isinstance(found, list) and found and all(isinstance(item, Mapping) for item in found):
        names = list(dict.fromkeys(name for item in found for name in item))
        return table(names, [tuple(_plain(item.get(name)) for name in names) for item in found])
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
