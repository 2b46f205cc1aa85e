"""Text form of a nightly report, for a terminal or a mail from cron."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.wording import counted
from train.evaluate.session_costs import coverage_lines
from train.nightly.prompt_caches import cache_lines


def describe(report: Mapping[str, Any]) -> list[str]:
    """Lines of the report: the verdict, its reasons and its evidence."""
    return list(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    head = f"nightly {report['date']}" if "date" in report else "training"
    yield f"{head}: {report.get('outcome', 'fitted')}" + (f" {report['candidate']}" if report.get("candidate") else "")
    for reason in report.get("reasons", []):
        yield f"  {reason}"
    published = report.get("published")
    if published:
        yield f"  published as {published['stage']}" + (f": {published['note']}" if published["note"] else "")
    log = report.get("log")
    if log:
        size = f"{counted(log['sessions'], 'session')}, {counted(log['turns'], 'turn')}"
        yield f"log: {size}; labels {_counts(log['labels'])}"
        if log["excluded"]:
            yield f"excluded: {_counts(log['excluded'])}"
        yield f"models: {_counts(log['models'])}; policies: {_counts(log['policies'])}"
    for note in (report.get("health") or {}).get("notes", []):
        yield f"health: {note}"
    yield from coverage_lines(report.get("session_costs") or {})
    yield from cache_lines(report.get("prompt_caches") or {})
    evaluation = report.get("evaluation") or {}
    if evaluation:
        held_out = max(report.get("untouched_sessions", 0), evaluation["sessions"])
        sample = f"{evaluation['sessions']:,}" + (f" of {held_out:,}" if held_out > evaluation["sessions"] else "")
        yield (
            f"evaluated on {sample} held-out sessions; the log itself earned "
            f"{evaluation['behaviour']['mean']:.3f} per turn"
        )
        yield f"{'policy':<44}{'score per turn':>24}{'USD per turn':>14}{'starved':>9}{'ESS':>7}"
        for name, row in evaluation["policies"].items():
            score = row["score"]
            shown = f"{evaluation['incumbent']['policy_id']} (incumbent)" if name == "incumbent" else name
            yield (
                f"{shown:<44}{score['mean']:>9.3f} [{score['low']:.3f}, {score['high']:.3f}]"
                f"{row['cost_usd_per_turn']['mean']:>14.6f}{row['starved_rate']:>9.1%}{row['effective_turns']:>7.0f}"
            )
    fitting = report.get("fit") or report
    for policy_id in fitting.get("candidates", []):
        yield f"candidate: {policy_id}"
    yield from _lengths(fitting.get("answer_lengths") or {})
    if "seconds" in report:
        yield f"took {report['seconds']:.0f} s"


def _lengths(found: Mapping[str, Any]) -> Iterator[str]:
    """How well the answers' lengths are predicted on held-back sessions."""
    if "held_out_loss" not in found:
        return
    used = "used" if found["kept"] else "not used"
    yield (
        f"answer lengths predicted from the turn: {used}; held-out loss {found['held_out_loss']:.4f}, "
        f"each model's own distribution {found['own_distribution_loss']:.4f}"
    )
    for name, row in found["coverage"].items():
        shares = ", ".join(f"{row[level]:.1%} within {level}" for level in ("q50", "q90", "q99"))
        yield f"  {name}: {shares} ({row['turns']:.0f} turns)"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda kv: -kv[1])) or "none"
