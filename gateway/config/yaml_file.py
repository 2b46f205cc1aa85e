"""Reader of a configuration's YAML files, includes followed, into one section."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gateway.config.reader import AssumedEnvironment, Findings, Located, Section, entries_of
from gateway.config.values import shown

MAX_FILE_BYTES = 4 * 2**20
MAX_INCLUDE_DEPTH = 8
ANCHOR_PREFIXES = ("x-", ".", "_")
"""Prefixes of blocks that only define YAML anchors, as in Compose files."""


def read_document(path: Path, findings: Findings, environ: Mapping[str, str]) -> tuple[Section, tuple[Path, ...]]:
    """Read the file at `path` and its includes; return one section and the files read.

    `include` paths are relative to the including file. Lists are concatenated in the order read, mappings are merged,
    and a key set in two files is a problem, since neither order would be obvious.
    """
    entries: dict[str, Located] = {}
    files: list[Path] = []
    _read_into(path, path.name, entries, files, findings, depth=0)
    document = Section(path.name, entries, findings, environ)
    variables = document.section("environment_variables")
    named = {name: value for name in variables.names() if (value := variables.text(name)) is not None}
    if named:
        findings.warn(variables.where, "are used for os.environ/ references only, not passed to provider libraries")
        if isinstance(environ, AssumedEnvironment):
            document.environ = AssumedEnvironment(named | environ, environ.paths)
        else:
            document.environ = ChainMap(dict(environ), named)
    return document, tuple(files)


def _read_into(
    path: Path, name: str, entries: dict[str, Located], files: list[Path], findings: Findings, depth: int
) -> None:
    if path in files:
        findings.problem(name, "included twice")
        return
    if depth > MAX_INCLUDE_DEPTH:
        findings.problem(name, f"expected includes at most {MAX_INCLUDE_DEPTH} deep")
        return
    files.append(path)
    if depth == 0 and not path.exists():
        findings.problem(str(path), "expected a configuration file, found none; `seqroute init` writes one")
        return
    document = _parse(path, name, findings)
    if document is None:
        return
    included = document.pop("include", None) or []
    for key, located in entries_of(Located(name, document), findings).items():
        if key.startswith(ANCHOR_PREFIXES):
            continue
        _merge(entries, key, located, findings)
    targets = included if isinstance(included, list) else [included]
    for i, target in enumerate(targets):
        if not isinstance(target, str) or not target or "\0" in target:
            findings.problem(f"{name}: include[{i}]", f"expected a path, got {shown(target)}")
            continue
        _read_into((path.parent / target).resolve(), target, entries, files, findings, depth + 1)


def _parse(path: Path, name: str, findings: Findings) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except OSError as error:
        findings.problem(name, f"expected a readable file, got: {error.strerror or type(error).__name__}")
        return None
    if len(data) > MAX_FILE_BYTES:
        findings.problem(name, f"expected at most {MAX_FILE_BYTES} bytes, got {len(data)}")
        return None
    try:
        document = yaml.load(data, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        findings.problem(name, f"{place}{error.problem or 'expected YAML'}")
        return None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError):
        findings.problem(name, "expected UTF-8 YAML")
        return None
    if document is None:
        return {}
    if not isinstance(document, dict):
        findings.problem(name, f"expected a mapping, got {shown(document)}")
        return None
    return document


def _merge(entries: dict[str, Located], key: str, located: Located, findings: Findings) -> None:
    earlier = entries.get(key)
    if earlier is None or earlier.raw is None:
        entries[key] = located
    elif isinstance(earlier.raw, list) and isinstance(located.raw, list):
        entries[key] = Located(earlier.where, _items_of(earlier) + _items_of(located))
    elif isinstance(earlier.raw, dict) and isinstance(located.raw, dict):
        merged = dict(entries_of(earlier, findings))
        for name, value in entries_of(located, findings).items():
            if name in merged:
                findings.problem(value.where, f"already set at {merged[name].where}")
            else:
                merged[name] = value
        entries[key] = Located(earlier.where, merged)
    else:
        findings.problem(located.where, f"already set at {earlier.where}")


def _items_of(located: Located) -> list[Located]:
    return [
        item if isinstance(item, Located) else Located(f"{located.where}[{i}]", item)
        for i, item in enumerate(located.raw)
    ]


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys, which PyYAML accepts silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _as_written(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    """The text of what looks like a date: PyYAML fails on an impossible one without naming its place."""
    return loader.construct_scalar(node)


_StrictLoader.add_constructor("tag:yaml.org,2002:timestamp", _as_written)
