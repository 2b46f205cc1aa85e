"""The rules of the house, as far as a machine can hold them. CONTRIBUTING.md says them in words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import FrozenInstanceError, fields
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway.catalog.models import Deployment, Model
from gateway.config import settings

ROOT = Path(__file__).parent.parent
PRODUCT = ("gateway", "policy", "train", "demo", "migrations")
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


# Who may import whom.


def test_the_import_contracts_hold() -> None:
    program = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_litellm_is_imported_by_the_lanes_only() -> None:
    allowed = {"gateway/providers/acompletion.py", "gateway/providers/direct.py"}
    importers = {
        name_of(path)
        for path in sources(*PRODUCT)
        if any(name.partition(".")[0] == "litellm" for name in imports(parsed(path)))
    }
    assert importers <= allowed


def test_nobody_imports_inside_a_function_where_it_costs_nothing() -> None:
    """Ruff's PLC0415 says where; here only that its exceptions stay a short list."""
    exempt = [
        pattern
        for pattern, rules in PYPROJECT["tool"]["ruff"]["lint"]["per-file-ignores"].items()
        if "PLC0415" in rules
    ]
    assert len(exempt) <= 7


@pytest.mark.parametrize("command", [["--help"], ["tenants", "--help"], ["check-config", "--help"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    heavy = (
        "litellm",
        "jax",
        "flax",
        "numpy",
        "sqlalchemy",
        "starlette",
        "uvicorn",
        "alembic",
        "openai",
        "pydantic_ai",
    )
    program = (
        "import sys\nfrom gateway.__main__ import run\n"
        f"status = run({command!r})\nprint(sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


# State and names.


def test_no_state_lives_in_a_module() -> None:
    """Constants are immutable or never written to; what changes lives in objects that are made and passed."""
    found = [
        f"{name_of(path)}:{node.lineno}: {ast.unparse(node)[:80]}"
        for path in sources(*PRODUCT)
        for node in parsed(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_mutable_state(node)
    ]
    assert found == []


def _is_mutable_state(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    if all(name.startswith("__") for name in names) or node.value is None:
        return False
    value = node.value
    constant = all(name.lstrip("_").isupper() for name in names)
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return not constant
    if isinstance(value, ast.Call):
        maker = ast.unparse(value.func)
        return maker in (
            "list", "dict", "set", "defaultdict", "deque", "OrderedDict", "Counter", "asyncio.Lock", "asyncio.Queue",
            "asyncio.Event", "threading.Lock", "threading.local",
        )  # fmt: skip
    return False


def test_constants_are_never_written_to() -> None:
    found = []
    for path in sources(*PRODUCT):
        tree = parsed(path)
        own = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name) and target.id.lstrip("_").isupper()
        }
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.expr)):
            written = None
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                written = node.value
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("append", "extend", "add", "update", "pop", "clear", "setdefault", "remove")
            ):
                written = node.func.value
            if isinstance(written, ast.Name) and written.id in own:
                found.append(f"{name_of(path)}:{node.lineno}: {written.id}")
    assert found == []


def test_no_file_is_named_after_nothing() -> None:
    banned = re.compile(r"(^|_)(utils?|helpers?|common|core|base|manager|misc|stuff)(_|$)")
    found = [name_of(path) for path in sources(*PRODUCT, "tests", "bench") if banned.search(path.stem)]
    assert found == []


def test_no_class_name_is_defined_twice() -> None:
    """In these packages a name is one thing; a class of another file is imported, not defined again."""
    homes: dict[str, set[str]] = {}
    for path in sources("gateway", "policy", "train"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, set()).add(f"{name_of(path)}:{node.lineno}")
    assert {name: sorted(places) for name, places in homes.items() if len(places) > 1} == {}


def test_no_global_statement() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in sources(*PRODUCT)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Global)
    ]
    assert found == []


def test_constructors_of_the_turn_take_at_most_eight_parameters() -> None:
    found = {
        f"{name_of(path)}: {kind.name}": len(each.args.args) - 1 + len(each.args.kwonlyargs)
        for path in sources("gateway/turn")
        for kind in ast.walk(parsed(path))
        if isinstance(kind, ast.ClassDef)
        for each in kind.body
        if isinstance(each, ast.FunctionDef) and each.name == "__init__"
    }
    assert max(found.values()) <= 8, found


def test_no_test_is_skipped() -> None:
    # Built from parts so that this file does not accuse itself.
    banned = re.compile("pytest" + r"\.(skip|xfail|importorskip|mark\.skip|mark\.skipif|mark\.xfail)\b")
    found = [
        f"{name_of(path)}:{number}"
        for path in sources("tests")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if banned.search(line)
    ]
    assert found == []


def test_no_file_names_a_machine() -> None:
    """What is committed speaks of the project alone: no home folders, no absolute paths of somebody's disk."""
    banned = re.compile(r"(?<![\w.])/(?:ro" + r"ot|ho" + r"me|wo" + r"rk|Users)/\w")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if not path.is_file() or path.suffix in (".lock", ".png", ".safetensors", ".gz"):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if banned.search(line):
                found.append(f"{name}:{number}")
    assert found == []


# Settings: everything that can be said has an effect, or says that it has none.


def test_every_setting_has_an_effect_or_warns_that_it_has_none() -> None:
    def unread(kinds: Iterable[type], readers: list[Path]) -> set[str]:
        code = "\n".join(path.read_text() for path in readers)
        return {
            f"{kind.__name__}.{field.name}"
            for kind in kinds
            for field in fields(kind)
            if not re.search(rf"\.{field.name}\b", code)
        }

    readers = [p for p in sources("gateway", "train") if not p.name.startswith(("settings", "model_list", "load"))]
    blocks = (settings.SessionSettings, settings.PolicySettings, settings.RouterSettings, settings.TimingSettings,
              settings.LimitSettings)  # fmt: skip
    found = unread(blocks, readers)
    found |= unread((Deployment, Model), [p for p in readers if p.name not in ("models.py", "build.py")])
    assert found == set()


def test_settings_are_frozen() -> None:
    loaded = settings.Settings(models=())
    for kind in (loaded, loaded.session, loaded.policy, loaded.router, loaded.general, loaded.timings, loaded.limits):
        with pytest.raises(FrozenInstanceError):
            setattr(kind, fields(kind)[0].name, None)


# Dependencies.


def locked(name: str) -> dict[str, str]:
    """Distribution -> version of one lock file. Every requirement must carry a hash."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    versions: dict[str, str] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + text):
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^ ;\\\n]+)", block.strip())
        if match:
            assert "--hash=sha256:" in block, f"{name}.lock: {match[1]} has no hash"
            versions[canonicalize_name(match[1])] = match[2]
    return versions


TRAIN: list[str] = PYPROJECT["project"]["optional-dependencies"]["train"]


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("serve", PYPROJECT["project"]["dependencies"]),
        ("run", PYPROJECT["project"]["dependencies"] + TRAIN),
        ("dev", PYPROJECT["project"]["dependencies"] + TRAIN + PYPROJECT["dependency-groups"]["dev"]),
        ("setup", PYPROJECT["dependency-groups"]["setup"]),
        ("peers", PYPROJECT["dependency-groups"]["peers"]),
        ("audit", PYPROJECT["dependency-groups"]["audit"]),
    ],
)
def test_the_locks_are_in_step_with_pyproject(lock: str, wanted: list[str]) -> None:
    """When this fails: `make lock`."""
    versions = locked(lock)
    for line in wanted:
        requirement = Requirement(line)
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock}.lock has no {requirement.name}"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{lock}.lock has {requirement.name} {version}"
        )


USED_BY_OTHERS = {
    "uvloop": "uvicorn's event loop",
    "google-auth": "LiteLLM signs in to vertex_ai and gdc with it",
    "wordllama": "policy/text_models.py reads the files of its wheel",
}
"""Declared without an import of ours, with the reason."""


def test_what_runs_declares_exactly_what_the_product_imports() -> None:
    imported = set()
    for path in sources(*PRODUCT):
        tree = parsed(path)
        imported |= {name.partition(".")[0] for name in imports(tree)}
        # Heavy packages are loaded by name, when they are first needed.
        imported |= {name.partition(".")[0] for name in re.findall(r'import_module\("([\w.]+)"\)', path.read_text())}
    theirs = {name for name in imported if name not in sys.stdlib_module_names and name not in PRODUCT}
    packages = packages_distributions()
    homes = {name: {canonicalize_name(home) for home in packages[name]} for name in theirs}
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    lines = [*PYPROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    assert [name for name, found in homes.items() if not found & declared] == []
    assert declared - set(USED_BY_OTHERS) <= set().union(*homes.values())
    assert set(USED_BY_OTHERS) <= declared


@pytest.mark.parametrize(("smaller", "larger"), [("run", "dev"), ("serve", "run")])
def test_what_runs_is_locked_alike_for_serving_training_and_development(smaller: str, larger: str) -> None:
    few, many = locked(smaller), locked(larger)
    assert {name: many.get(name) for name in few} == few


def test_a_gateway_that_only_serves_installs_nothing_that_only_training_imports() -> None:
    assert not {"pyarrow", "matplotlib"} & set(locked("serve"))


def test_litellm_is_pinned_exactly_and_comes_without_its_proxy() -> None:
    (requirement,) = [line for line in PYPROJECT["project"]["dependencies"] if line.startswith("litellm")]
    assert re.fullmatch(r"litellm==\d+\.\d+\.\d+", requirement)
    assert requirement in PYPROJECT["dependency-groups"]["peers"]
    for lock in ("dev", "peers"):
        assert not {"litellm-enterprise", "litellm-proxy-extras"} & set(locked(lock))


def test_no_package_runs_code_at_every_interpreter_start() -> None:
    """A `.pth` file that imports, or a sitecustomize, runs in every process: that is how LiteLLM 1.82.8 attacked."""
    expected = {"distutils-precedence.pth", "__editable__.seqroute-0.1.0.pth", "_virtualenv.pth"}
    folder = Path(sysconfig.get_path("purelib"))
    running = {
        path.name
        for path in folder.glob("*.pth")
        if any(line.startswith(("import ", "import\t")) for line in path.read_text(errors="replace").splitlines())
    }
    assert {name for name in running if not name.startswith("__editable__")} <= expected
    assert not [path.name for pattern in ("sitecustomize*", "usercustomize*") for path in folder.glob(pattern)]
