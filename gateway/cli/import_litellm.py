"""The command import-litellm: converts a LiteLLM proxy configuration to a gateway.yaml.

The file is checked like in check-config; rejected keys are left out, rejected entries become comments, and the result
is checked again until no problem remains.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.console import BROKEN, CommandError, JsonOption, say

if TYPE_CHECKING:
    from gateway.catalog.build import CatalogDraft

HEADER = """\
# Made by `seqroute import-litellm` from {source}. Every key is explained in docs/configuration.md.
"""
OURS = """
# Settings that LiteLLM does not have, with their defaults.
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
UNSERVED = """
# Not served, for the reason above each entry. Fix it and move the entry to model_list.
"""
MAX_ROUNDS = 20
"""Removing one entry can cause further problems, such as a fallback to a removed model."""
FREE = ("input_cost_per_token", "output_cost_per_token")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)]")
_FALLBACKS = re.compile(r"(?:^|_|\.)fallbacks(?:$|[\[.])")
_ENTRY = re.compile(r"model_list\[(\d+)]")


def import_litellm(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A LiteLLM proxy configuration.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("gateway.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a LiteLLM proxy configuration to a gateway.yaml and list what it leaves out."""
    if out.exists() and not force:
        raise CommandError(f"{out}: the file exists already: choose another with --out, or use --force")
    result = _Import(_document(source), source.name, out.name)
    read = result.read()
    for _ in range(MAX_ROUNDS):
        if not result.leave_out(read):
            break
        read = result.read()
    for line in read.warnings:
        say(f"note: {line}")
    out.write_text(result.text(), encoding="utf-8")
    if as_json:
        print(json.dumps({"file": str(out), "notes": list(read.warnings), "to_fix": list(read.problems)}, indent=2))
    if read.problems:
        for problem in read.problems:
            say(f"to fix: {problem}")
        raise typer.Exit(BROKEN)
    if not as_json:
        print(f"{out} written; `seqroute check-config --config {out}` checks whether its variables are set")


class _Import:
    """A conversion in progress: the kept document, and the entries that cannot be served."""

    def __init__(self, document: dict[str, Any], source: str, name: str) -> None:
        self._document = document
        self._source = source
        self._name = name
        self._unserved: list[tuple[str, Any]] = []
        self._told: list[str] = []
        """What this round did, last entry first."""
        listed = document.get("model_list")
        self._indexes = list(range(len(listed))) if isinstance(listed, list) else []
        """For each kept entry of the list, its index in the source."""

    def text(self) -> str:
        """The text of the converted file."""
        kept = {key: value for key, value in self._document.items() if value not in ({}, [], None)}
        parts = [HEADER.format(source=self._source), _yaml(kept) if kept else ""]
        if not {"session_settings", "policy_settings"} & kept.keys():
            parts.append(OURS)
        if self._unserved:
            parts.append(UNSERVED)
        for reason, entry in reversed(self._unserved):
            parts += [f"# {line}\n" for line in (reason, *_yaml([entry]).splitlines())]
        return "".join(parts)

    def read(self) -> CatalogDraft:
        """Check the text like check-config does, with every variable assumed to be set."""
        from gateway.catalog.build import draft
        from gateway.config.reader import AssumedEnvironment

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self._name
            path.write_text(self.text(), encoding="utf-8")
            return draft(path, AssumedEnvironment())

    def leave_out(self, read: CatalogDraft) -> bool:
        """Act on the problems; False when nothing changed. Later entries go first, to keep indexes valid."""
        ignored = [line for line in read.warnings if "is ignored" in line]
        changed, gone = False, set[int]()
        for line in sorted({*read.problems, *ignored}, key=_position, reverse=True):
            served, (index, _) = len(self._unserved), _position(line)
            if index in gone:
                continue
            changed |= self._act_on(line)
            if len(self._unserved) > served:
                gone.add(index)
        for told in reversed(self._told):
            say(told)
        self._told.clear()
        return changed

    def _of_source(self, line: str) -> str:
        """A message about the text so far, with the source's name and indexes."""
        place = line.removeprefix(f"{self._name}: ")
        return f"{self._source}: {_ENTRY.sub(self._source_entry, place)}"

    def _source_entry(self, match: re.Match[str]) -> str:
        index = int(match[1])
        return f"model_list[{self._indexes[index]}]" if index < len(self._indexes) else match[0]

    def _act_on(self, line: str) -> bool:
        path, told = _path_of(line), self._of_source(line)
        entry = _ENTRY.match(path)
        if entry is not None and "write 0 here if it is free" in line:
            info = self._document["model_list"][int(entry[1])].setdefault("model_info", {})
            info.update(dict.fromkeys(FREE, 0))
            self._told.append(
                f"note: {told.partition(': expected')[0]}: the price map lists it as free, so 0 is written"
            )
            return True
        if _FALLBACKS.search(path) is not None or path.startswith("router_settings.model_group_alias"):
            return self._leave_out_references(line)
        names_a_key = any(
            words in line for words in ("unknown key", "cannot be ignored", "it is ignored", "no default")
        )
        if entry is not None and not names_a_key:
            index = int(entry[1])
            if index >= len(self._document["model_list"]) or "master_key" in path:
                return False
            self._unserved.append((told, self._document["model_list"].pop(index)))
            self._indexes.pop(index)
            self._told.append(f"not served: {told}")
            return True
        if path == "model_list" or not _remove(self._document, path):
            return False
        self._told.append(f"left out: {told}")
        return True

    def _leave_out_references(self, line: str) -> bool:
        """Remove fallbacks and aliases that refer to no model of the list."""
        before = copy.deepcopy(self._document)
        router = self._document.get("router_settings") or {}
        listed = self._document.get("model_list")
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        names = {name for entry in entries if isinstance(name := entry.get("model_name"), str)}
        aliases = router.get("model_group_alias")
        if not isinstance(aliases, dict):
            router.pop("model_group_alias", None)
            aliases = {}
        for alias, target in list(aliases.items()):
            model = target.get("model") if isinstance(target, dict) else target
            if not isinstance(model, str) or model not in names or alias in names:
                del aliases[alias]
        known = [*names, *aliases]
        for block in (router, self._document.get("litellm_settings") or {}):
            for key in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks"):
                if isinstance(block.get(key), list):
                    block[key] = [kept for item in block[key] if (kept := _known_fallbacks(item, known))]
                elif block.get(key) is not None:
                    del block[key]
            if isinstance(block.get("default_fallbacks"), list):
                block["default_fallbacks"] = [name for name in block["default_fallbacks"] if name in known]
        self._told.append(f"left out: {self._of_source(line)}")
        return bool(self._document != before)


def _known_fallbacks(item: Any, known: Collection[Any]) -> dict[str, list[str]]:
    kept: dict[str, list[str]] = {}
    for name, targets in item.items() if isinstance(item, dict) else ():
        good = [target for target in targets if target in known] if isinstance(targets, list) else []
        if (name in known or name == "*") and good:
            kept[name] = good
    return kept


def _document(source: Path) -> dict[str, Any]:
    import yaml

    from gateway.config.reader import Findings, SettingsError
    from gateway.config.yaml_file import ANCHOR_PREFIXES, read_document

    findings = Findings()
    read_document(source, findings, {})
    if findings.problems:
        raise SettingsError(findings.problems)
    document = yaml.safe_load(source.read_bytes())
    if "include" in document:
        raise CommandError(f"{source}: expected one file without include: join the included files first")
    return {key: value for key, value in document.items() if not str(key).startswith(ANCHOR_PREFIXES)}


def _yaml(value: Any) -> str:
    """YAML in block style without anchors, so each entry can be moved separately."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(value, Dumper=Plain, sort_keys=False, width=120, allow_unicode=True)


def _path_of(line: str) -> str:
    """The key path of a message: `config.yaml: a.b[0].c: reason` -> `a.b[0].c`."""
    return line.split(": ", 2)[1]


def _position(line: str) -> tuple[int, str]:
    entry = _ENTRY.match(_path_of(line))
    return (-1 if entry is None else int(entry[1]), line)


def _remove(document: Any, path: str) -> bool:
    steps = [match[1] if match[1] is not None else int(match[2]) for match in _STEP.finditer(path)]
    for step in steps[:-1]:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return False
    if not isinstance(document, dict) or steps[-1] not in document:
        return False
    del document[steps[-1]]
    return True
