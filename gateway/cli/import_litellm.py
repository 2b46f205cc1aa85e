"""import-litellm: a gateway.yaml out of a LiteLLM proxy configuration, without the keys that mean nothing here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.console import BROKEN, CommandError, say

HEADER = """\
# Made by `seqroute import-litellm` from {source}. Every key is explained in docs/configuration.md.
"""
OURS = """
# What LiteLLM has no words for; these are the defaults.
session_settings:
  default_budget_usd: 1.00
  max_budget_usd: 10.00
  idle_timeout: 30m
  over_budget: degrade

policy_settings:
  directory: policies
  mode: "on"
  default_lambda: 1.0
"""
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)]")


class AnyVariable(Mapping[str, str]):
    """An environment in which every variable of the file is set: what they hold is not this command's business."""

    def __getitem__(self, name: str) -> str:
        if name.startswith("SEQROUTE_"):
            raise KeyError(name)
        return "sk-set-where-it-is-served-0aZ9"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def import_litellm(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A LiteLLM proxy configuration.")],
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path("gateway.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Turn a LiteLLM proxy configuration into a gateway.yaml; says what it left out and what is still to mend."""
    import yaml

    from gateway.catalog.models import load
    from gateway.config.load import read_settings
    from gateway.config.reader import SettingsError

    if out.exists() and not force:
        raise CommandError(f"{out}: expected no such file, found one: name another with --out, or say --force")
    draft = read_settings(source, AnyVariable())
    if not draft.settings.models:
        raise SettingsError(draft.problems)
    document = _document(source)
    left_out = [_path_of(line) for line in draft.settings.warnings if line.endswith("it is ignored")]
    if any("general_settings.master_key: expected" in problem for problem in draft.problems):
        left_out.append("general_settings.master_key")
        say("left out: general_settings.master_key: too weak to guard money; one is made at the first start")
    for line in draft.settings.warnings:
        say(f"{'left out' if _path_of(line) in left_out else 'note'}: {line}")
    for path in left_out:
        _remove(document, path)
    kept = {key: value for key, value in document.items() if value not in ({}, [], None)}
    out.write_text(HEADER.format(source=source.name) + yaml.safe_dump(kept, sort_keys=False, width=120) + OURS)
    try:
        load(out, AnyVariable())
    except SettingsError as error:
        for problem in error.problems:
            say(f"to mend: {problem}")
        raise typer.Exit(BROKEN) from None
    print(f"{out} is written; seqroute check-config says whether its variables are set")


def _document(source: Path) -> dict[str, Any]:
    import yaml

    document = yaml.safe_load(source.read_bytes())
    if not isinstance(document, dict) or "include" in document:
        raise CommandError(f"{source}: expected one file without include: join the included files first")
    return document


def _path_of(line: str) -> str:
    """The key path of a warning: `config.yaml: a.b[0].c: why` -> `a.b[0].c`."""
    return line.split(": ", 2)[1]


def _remove(document: Any, path: str) -> None:
    steps = [match[1] if match[1] is not None else int(match[2]) for match in _STEP.finditer(path)]
    for step in steps[:-1]:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(document, dict):
        document.pop(steps[-1], None)
