"""Tables of the manual that are generated from the code: options of commands, and metrics.

    python -m tests.harness.reference        # `make reference`: writes them into docs/cli.md and docs/metrics.md

Prose around a table is written by hand. `tests/test_docs.py` fails while a page differs from what this would write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main
from prometheus_client import Counter

from gateway.cli.commands import build
from gateway.metrics import Metrics
from train.__main__ import build as build_training

DOCS = Path(__file__).parents[2] / "docs"
EVERYWHERE = frozenset({"--config", "--json", "--help", "--version", "--install-completion", "--show-completion"})
"""Options that the head of docs/cli.md describes."""
PASSED_ON = {"seqroute export": "seqroute-train export", "seqroute retain": "seqroute-train retain"}
"""Commands that pass their arguments on, and whose options these are."""
OWN_HELP = frozenset({"seqroute demo", "seqroute demo-provider"})
"""Commands that pass their arguments on to a parser that is not Typer's."""


def commands() -> dict[str, Any]:
    """Every command by its whole name."""
    return {
        " ".join((program, *path)): command
        for program, app in (("seqroute", build()), ("seqroute-train", build_training()))
        for path, command in _below(typer.main.get_command(app))
    }


def _below(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _below(child, (*path, name))
        else:
            yield (*path, name), child


def options_table(command: Any) -> str:
    """The arguments and options of a command as a Markdown table; "" without any."""
    rows = [_row(parameter) for parameter in command.params if not EVERYWHERE & set(parameter.opts)]
    return "\n".join(["| | default | |", "|---|---|---|", *rows, ""]) if rows else ""


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar or parameter.name.upper()}`".replace("{", "").replace("}", "")
    else:
        name = "`" + "/".join([*parameter.opts[:1], *parameter.secondary_opts]) + "`"
    default = parameter.default
    shown = default if isinstance(default, str | int | float | Path) and not isinstance(default, bool) else None
    if parameter.required and parameter.param_type_name != "argument":
        said = "required"
    else:
        said = "" if shown in (None, "") else f"`{shown}`"
    text = re.sub(r"(?<!\.)\.$", "", str(parameter.help or "")).replace("|", "\\|")
    return f"| {name} | {said} | {text} |"


def cli_page(page: str) -> str:
    """docs/cli.md with the present options. Raises ValueError when it lacks a command, or names one that is none."""
    found = commands()
    parts = re.split(r"^(?=## seqroute)", page, flags=re.MULTILINE)
    named = [part.partition("\n")[0].removeprefix("## ").strip() for part in parts[1:]]
    wanted = found.keys() - set(PASSED_ON.values())
    if sorted(named) != sorted(wanted):
        raise ValueError(f"docs/cli.md: missing {sorted(wanted - set(named))}, unknown {sorted(set(named) - wanted)}")
    made = [
        part if name in OWN_HELP else _with_table(part, options_table(found[PASSED_ON.get(name, name)]))
        for name, part in zip(named, parts[1:], strict=True)
    ]
    return parts[0] + "".join(made)


def _with_table(text: str, table: str) -> str:
    prose = re.sub(r"^\|.*\n?", "", text, flags=re.MULTILINE).rstrip() + "\n\n"
    return prose + (table + "\n" if table else "")


def metrics_page(page: str) -> str:
    """docs/metrics.md with every metric."""
    metrics = Metrics()
    rows = sorted(_metric_row(each) for name, each in vars(metrics).items() if name != "registry")
    head = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    return _with_table(page, "\n".join([*head, *rows])).rstrip() + "\n"


def _metric_row(metric: Any) -> str:
    family = next(iter(metric.describe()))
    suffix = "_total" if isinstance(metric, Counter) else ""
    labels = ", ".join(f"`{name}`" for name in metric._labelnames)
    return f"| `{family.name}{suffix}` | {family.type} | {labels} | {family.documentation} |"


def pages() -> Mapping[str, str]:
    """The generated pages as they should be."""
    making = {"cli.md": cli_page, "metrics.md": metrics_page}
    return {name: make((DOCS / name).read_text()) for name, make in making.items()}


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
