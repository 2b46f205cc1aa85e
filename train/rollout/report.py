"""Report of a rollout, as an object and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.money import NANOUSD_PER_USD, usd_string
from train.rollout.output import Written
from train.rollout.tree import PlayedTree, RolloutPlan, planned_answers


def summary(
    folder: Path,
    tenant: str,
    cap_usd: str,
    spent_nanousd: int,
    out_of_money: str | None,
    plan: RolloutPlan,
    trees: Sequence[PlayedTree],
    written: Written,
) -> dict[str, Any]:
    """The report. `spent_nanousd` is the ledger's amount over all runs of this folder."""
    return {
        "outcome": "played" if out_of_money is None else "out of money",
        "why": out_of_money or "",
        "folder": str(folder),
        "tenant": tenant,
        "cap_usd": cap_usd,
        "spent_usd": usd_string(spent_nanousd),
        "spent_nano_usd": spent_nanousd,
        "tasks": len(trees),
        "tasks_in_folder": written.tasks,
        "tasks_left_out": written.left_out,
        "turns_in_folder": written.turns,
        "answers_planned": sum(planned_answers(plan, tree.task) for tree in trees),
        "answers": sum(len(visited.graded) for tree in trees for visited in tree.visited),
        "answers_in_tree": written.answers,
        "failures": sum(tree.failed for tree in trees),
        "models": {model: _of_model(model, trees) for model in plan.models},
    }


def _of_model(model: str, trees: Sequence[PlayedTree]) -> Mapping[str, float | int]:
    """Means over every graded answer of the model."""
    graded = [v.graded[model] for tree in trees for v in tree.visited if model in v.graded]
    count = max(len(graded), 1)
    billed = sum(g.answer.billed_nanousd for g in graded) / count / NANOUSD_PER_USD
    return {"answers": len(graded), "quality": sum(g.score for g in graded) / count, "billed_usd_per_answer": billed}


def describe(report: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal: what was played, its cost, each model's quality, the next step."""
    return list(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{report['outcome']}: {report['answers']:,} of {report['answers_planned']:,} answers graded, "
        f"{report['spent_usd']} of {report['cap_usd']} USD spent by tenant {report['tenant']}"
    )
    if report["why"]:
        yield f"  {report['why']}; the same command with a larger --max-usd goes on from here"
    if report["failures"]:
        yield f"  {report['failures']:,} answers or gradings failed and are missing; the same command tries them again"
    yield f"{'model':<32}{'answers':>9}{'quality':>9}{'USD per answer':>17}"
    for name, row in report["models"].items():
        yield f"{name:<32}{row['answers']:>9,}{row['quality']:>9.3f}{row['billed_usd_per_answer']:>17.9f}"
    yield (
        f"{report['folder']}: {report['tasks_in_folder']:,} tasks, {report['turns_in_folder']:,} turns with every "
        f"model graded; {report['answers_in_tree']:,} answers in tree.parquet; {report['tasks_left_out']:,} left out"
    )
    yield f"next: seqroute-train replay --data {report['folder']}"
