"""The language of the house: plain words, short first lines, and a docstring for every public name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TIDY = (
    "bench",
    "demo",
    "gateway/*",
    "gateway/accounts",
    "gateway/api",
    "gateway/catalog",
    "gateway/cli",
    "gateway/config",
    "gateway/database",
    "gateway/decisions",
    "gateway/dialects",
    "gateway/ledger",
    "gateway/policies",
    "gateway/providers",
    "gateway/routing",
    "gateway/turn",
    "gateway/ui",
    "gateway/webhooks",
    "migrations",
    "policy",
    "train",
)
"""The folders that follow the rules, with all that is below; with a star the files directly in it."""

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
)
LONGEST_FIRST_LINE = 90
PLAIN = {
    "all the same": "still",
    "anew": "again",
    "asks for overlap": "needs overlap",
    "but for": "except",
    "dear": "expensive",
    "dearer": "more expensive",
    "dearest": "most expensive",
    "for ever": "forever",
    "for want of": "without",
    "in silence": "silently",
    "is held to": "must meet",
    "keep back": "reserve",
    "keeps back": "reserves",
    "kept back": "reserved",
    "law": "invariant, distribution, rule",
    "laws": "invariants, distributions, rules",
    "learnt": "learned",
    "mend": "fix",
    "mended": "fixed",
    "mends": "fixes",
    "nobody": "no one, none",
    "of ours": "our",
    "of theirs": "their",
    "purse": "budget",
    "purses": "budgets",
    "told of": "called with, informed about",
    "whoever": "anyone who",
    "without a word": "silently, empty",
}
"""Words that send a reader to a dictionary or belong to no field, and what to say instead."""
UNPLAIN = re.compile(
    r"(?<![A-Za-z])(" + "|".join(word.replace(" ", r"\s+") for word in PLAIN) + r")(?![A-Za-z])", re.IGNORECASE
)
RIDDLE = re.compile(
    r"(What|How|Which|Who|Whose|Whether|When|Where|Why)\b|[B-Z] [a-z]|`(?!(GET|POST|PUT|PATCH|DELETE|seqroute)\b)"
)
"""A relative clause, a letter or a name is no description of a thing and no instruction."""


def files(folder: str) -> list[Path]:
    return sorted(ROOT.glob(folder) if "*" in folder else (ROOT / folder).rglob("*"))


def sources(folder: str) -> list[Path]:
    return [path for path in files(folder) if path.suffix == ".py"]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("folder", TIDY)
def test_words_are_plain(folder: str) -> None:
    """Names in files of earlier versions, which are still read, are exempt."""
    found = [
        f'{name_of(path)}:{number}: "{match[0]}": say {PLAIN[" ".join(match[0].lower().split())]}'
        for path in files(folder)
        if path.suffix in (".py", ".sql", ".md", ".yaml", ".html", ".js")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if "EARLIER_NAMES" not in line
        for match in UNPLAIN.finditer(line.replace("_", " "))
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_use_plain_words(page: str) -> None:
    """Names of tests are quoted as they are."""
    found = [
        f'{page}:{number}: "{match[0]}": say {PLAIN[" ".join(match[0].lower().split())]}'
        for number, line in enumerate((ROOT / page).read_text().splitlines(), start=1)
        for match in UNPLAIN.finditer(re.sub(r"`[^`]*::[^`]*`", "", line))
    ]
    assert found == []


@pytest.mark.parametrize("folder", TIDY)
def test_first_lines_of_docstrings_are_short_phrases(folder: str) -> None:
    found = []
    for path in sources(folder):
        for where, node in _public(parsed(path), path):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if len(first) > LONGEST_FIRST_LINE or RIDDLE.match(first):
                found.append(f"{where}: {len(first)} characters: {first}")
    assert found == [], f"expected an imperative or a noun phrase of at most {LONGEST_FIRST_LINE} characters"


def test_no_docstring_ends_before_what_it_announces() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}: {node.value.value[-60:]!r}"
        for folder in TIDY
        for path in sources(folder)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if node.value.value.rstrip()[-1:] in (":", ",", ";")
    ]
    assert found == []


@cache
def documented() -> set[tuple[str, str]]:
    """(class, method) of every method of the three packages that has a docstring."""
    return {
        (base.name, method.name)
        for path in sources("gateway") + sources("policy") + sources("train")
        for base in ast.walk(parsed(path))
        if isinstance(base, ast.ClassDef)
        for method in base.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(method)
    }


@pytest.mark.parametrize("folder", TIDY)
def test_every_public_name_has_a_docstring(folder: str) -> None:
    """A method that a base class documents under the same name needs none of its own."""
    found = []
    for path in sources(folder):
        tree = parsed(path)
        if not tree.body:
            continue
        inherited = {
            id(method)
            for owner in ast.walk(tree)
            if isinstance(owner, ast.ClassDef)
            for method in owner.body
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
            if any((ast.unparse(base).partition("[")[0], method.name) in documented() for base in owner.bases)
        }
        found += [
            where
            for where, node in _public(tree, path)
            if ast.get_docstring(node) is None and id(node) not in inherited
        ]
    assert found == []


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _public(tree: ast.Module, path: Path) -> Iterator[tuple[str, Documented]]:
    """The module, its public classes and functions, and the public methods of these classes."""
    yield name_of(path), tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield f"{name_of(path)}:{node.lineno} {node.name}", node
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                    yield f"{name_of(path)}:{method.lineno} {node.name}.{method.name}", method
