"""Policy checkpoints: `params.safetensors` and `manifest.json` in a folder named by the id.

Written once, never changed: a temporary folder beside the target, fsync, rename. Read as untrusted input: no links, no
other files, sizes capped before reading, digests of the very bytes that are parsed, the exact known tree of float32
arrays, all finite; nothing is ever unpickled. `python -m policy.checkpoint DIR` verifies one and prints its manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from policy.answer_lengths import AnswerLengths
from policy.arrays import F32
from policy.catalogue_statistics import CatalogueStatistics
from policy.features import DEFAULT_HORIZON, FEATURE_VERSION, Horizon
from policy.kernel import MAX_MODELS, KernelQuality
from policy.residual import Residual
from policy.rules import LAMBDA_PRESETS
from policy.text import TEXT_VERSION
from policy.value_network_shapes import Sizes, parameter_shapes
from policy.valuetable import ValueTable

FORMAT = "seqroute-policy-1"
MANIFEST, PARAMS = "manifest.json", "params.safetensors"
MAX_MANIFEST_BYTES = 1 << 20
MAX_PARAMS_BYTES = 256 << 20
MAX_HEADER_BYTES = 1 << 14
"""Limit of the safetensors header, which names every tensor: 2 kB here; a million names take gigabytes to parse."""

RULES: Mapping[str, frozenset[str]] = {
    "network": frozenset({"starved_penalty"}),
    "planned": frozenset({"starved_penalty", "caution"}),
    "resolving": frozenset({"reserve", "spread", "margin", "cache_aware"}),
    "pacing": frozenset({"factor", "reserve"}),
    "tuned-lambda": frozenset({"lambda_per_usd", "reserve"}),
    "threshold": frozenset({"threshold"}),
    "strongest": frozenset(),
    "cheapest": frozenset(),
}
"""Decision rules of a checkpoint and their parameters; `policy.learned.policy_from` has the defaults."""

_POLICY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FIELDS = frozenset(
    {
        "format",
        "policy_id",
        "feature_version",
        "text_version",
        "rule",
        "rule_parameters",
        "lambda_presets",
        "hazard",
        "average_quality",
        "sizes",
        "params_sha256",
        "params_bytes",
        "report",
    }
)


_OPTIONAL_FIELDS = frozenset({"models"})
EARLIER_NAMES: Mapping[str, str] = {"law": "statistics", "purses_usd": "budgets_usd"}
"""Parts and arrays in checkpoints of earlier versions, by their present names."""


class CheckpointError(ValueError):
    """An invalid checkpoint. The one-line message says what was found and expected, and where."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The part of the manifest that a trainer chooses: how a checkpoint decides.

    `rule` names one of RULES and `rule_parameters` its numbers; `average_quality` is the mean graded quality by model
    name, for people to read; `report` is free JSON (the gate's verdict). The parameters are by part: a reward model
    over `models` ("quality/...", policy/kernel.py), the planner's value table ("values/...", policy/valuetable.py), the
    network's layers ("network/layer.leaf", of these `sizes`), its statistics of the catalogue ("statistics/...",
    policy/catalogue_statistics.py) and the residual of its quality ("residual/...", policy/residual.py); with any rule,
    the lengths of the models' answers ("lengths/...", policy/answer_lengths.py). Without models there are only the
    layers, and all qualities are priors.
    """

    policy_id: str
    rule: str = "network"
    rule_parameters: Mapping[str, float] = field(default_factory=dict)
    lambda_presets: Mapping[str, float] = field(default_factory=lambda: dict(LAMBDA_PRESETS))
    horizon: Horizon = DEFAULT_HORIZON
    average_quality: Mapping[str, float] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)
    report: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A verified checkpoint: float32 arrays by part and name; `sha256` is that of the manifest."""

    recipe: Recipe
    params: dict[str, dict[str, F32]]
    manifest: dict[str, Any]
    sha256: str


def save(directory: Path, recipe: Recipe, params: Mapping[str, Mapping[str, Any]]) -> str:
    """Write `directory`, which must not exist, atomically; returns the manifest's SHA-256.

    Raises CheckpointError for what `load` would refuse, and FileExistsError when the folder is there.
    """
    flat = {
        f"{layer}/{leaf}": np.ascontiguousarray(value)
        for layer, leaves in params.items()
        for leaf, value in leaves.items()
    }
    _check_tensors(flat, recipe)
    body = dump_safetensors(flat)
    manifest = {
        "format": FORMAT,
        "policy_id": recipe.policy_id,
        "feature_version": FEATURE_VERSION,
        "text_version": TEXT_VERSION,
        "rule": recipe.rule,
        "rule_parameters": dict(recipe.rule_parameters),
        "lambda_presets": dict(recipe.lambda_presets),
        "hazard": list(recipe.horizon.hazard),
        "average_quality": dict(recipe.average_quality),
        "sizes": asdict(recipe.sizes),
        "report": dict(recipe.report),
        "params_sha256": hashlib.sha256(body).hexdigest(),
        "params_bytes": len(body),
    } | ({"models": list(recipe.models)} if recipe.models else {})
    try:
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{MANIFEST}: not plain finite JSON") from error
    _recipe(_parse_manifest(text), directory.name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.exists() or directory.is_symlink():
        raise FileExistsError(f"{directory.name}: a checkpoint is written once")
    building = Path(tempfile.mkdtemp(prefix=".writing-", dir=directory.parent))
    try:
        _write_synced(building / PARAMS, body)
        _write_synced(building / MANIFEST, text)
        building.chmod(0o755)
        _sync_folder(building)
        building.rename(directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    _sync_folder(directory.parent)
    return hashlib.sha256(text).hexdigest()


def load(directory: Path, *, sha256: str | None = None) -> Loaded:
    """Read and verify a checkpoint, against the manifest digest `sha256` if given.

    Raises CheckpointError, and nothing else, for anything but a complete, valid checkpoint of this version.
    """
    try:
        text, body = _read_folder(directory)
    except OSError as error:
        raise CheckpointError(f"{directory.name}: cannot be read ({error.strerror or type(error).__name__})") from error
    found = hashlib.sha256(text).hexdigest()
    if sha256 is not None and found != sha256:
        raise CheckpointError(f"{MANIFEST}: expected SHA-256 {sha256[:12]}..., found {found[:12]}...")
    manifest = _parse_manifest(text)
    recipe = _recipe(manifest, directory.name)
    if manifest["params_bytes"] != len(body) or manifest["params_sha256"] != hashlib.sha256(body).hexdigest():
        raise CheckpointError(f"{PARAMS}: its bytes are not those of the manifest")
    if int.from_bytes(body[:8], "little") > MAX_HEADER_BYTES:
        raise CheckpointError(f"{PARAMS}: expected a header of at most {MAX_HEADER_BYTES} bytes")
    try:
        flat = _present_names(parse_safetensors(body))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{PARAMS}: not a safetensors file") from error
    _check_tensors(flat, recipe)
    params: dict[str, dict[str, F32]] = {}
    for path, value in flat.items():
        layer, leaf = path.split("/")
        params.setdefault(layer, {})[leaf] = value
    return Loaded(recipe, params, manifest, found)


def _present_names(flat: Mapping[str, F32]) -> dict[str, F32]:
    return {"/".join(EARLIER_NAMES.get(name, name) for name in path.split("/")): x for path, x in flat.items()}


def _read_folder(directory: Path) -> tuple[bytes, bytes]:
    """Read both files through descriptors that follow no link, so that the checked bytes are the parsed bytes."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for _, entry in zip(range(16), entries, strict=False))
        if names != [MANIFEST, PARAMS]:
            raise CheckpointError(f"{directory.name}: expected {MANIFEST} and {PARAMS}, found {names}"[:300])
        return _read_file(folder, MANIFEST, MAX_MANIFEST_BYTES), _read_file(folder, PARAMS, MAX_PARAMS_BYTES)
    finally:
        os.close(folder)


def _read_file(folder: int, name: str, most_bytes: int) -> bytes:
    # Without O_NONBLOCK a named pipe would block the reader before fstat could detect it.
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{name}: not a regular file")
        if status.st_size > most_bytes:
            raise CheckpointError(f"{name}: {status.st_size} bytes, expected at most {most_bytes}")
        content = file.read(status.st_size + 1)  # reading up to the cap would allocate the cap
    if len(content) != status.st_size:
        raise CheckpointError(f"{name}: it changed while it was read")
    return content


def _parse_manifest(text: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST}: not plain JSON") from error
    if not isinstance(manifest, dict) or set(manifest) - _OPTIONAL_FIELDS != _FIELDS:
        found = (
            sorted((set(manifest) - _OPTIONAL_FIELDS) ^ _FIELDS)
            if isinstance(manifest, dict)
            else type(manifest).__name__
        )
        raise CheckpointError(f"{MANIFEST}: missing or unknown fields: {found}"[:300])
    return manifest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a field appears twice")
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _recipe(manifest: dict[str, Any], folder_name: str) -> Recipe:
    """Parse the manifest. Raises CheckpointError naming the wrong field."""
    for name, expected in (
        ("format", FORMAT),
        ("feature_version", FEATURE_VERSION),
        ("text_version", TEXT_VERSION),
        ("policy_id", folder_name),
    ):
        if type(manifest[name]) is not type(expected) or manifest[name] != expected:
            raise CheckpointError(f"{MANIFEST}: {name}: expected {expected!r}, found {manifest[name]!r}"[:300])
    if not _POLICY_ID.fullmatch(folder_name):
        raise CheckpointError(f"{MANIFEST}: policy_id: expected letters, digits, '.', '_' and '-', up to 128")
    rule = manifest["rule"]
    if not isinstance(rule, str) or rule not in RULES:
        raise CheckpointError(f"{MANIFEST}: rule: expected one of {', '.join(RULES)}, found {rule!r}"[:300])
    parameters = _numbers(manifest, "rule_parameters", most=1e9)
    if unknown := sorted(set(parameters) - RULES[rule]):
        raise CheckpointError(f"{MANIFEST}: rule_parameters: {rule} takes no {', '.join(unknown)}"[:300])
    presets = _numbers(manifest, "lambda_presets", most=1e9)
    if set(presets) != set(LAMBDA_PRESETS):
        raise CheckpointError(f"{MANIFEST}: lambda_presets: expected {', '.join(LAMBDA_PRESETS)}")
    hazard = manifest["hazard"]
    if not isinstance(hazard, list) or not 1 <= len(hazard) <= 256 or not all(_within(h, 0.0, 1.0) for h in hazard):
        raise CheckpointError(f"{MANIFEST}: hazard: expected 1 to 256 probabilities")
    if not isinstance(manifest["report"], dict):
        raise CheckpointError(f"{MANIFEST}: report: expected an object")
    sizes = Sizes()
    if rule == "network":  # earlier versions wrote meaningless sizes for other rules
        try:
            sizes = Sizes(**manifest["sizes"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{MANIFEST}: sizes: expected the positive whole numbers of a network") from error
    return Recipe(
        folder_name,
        rule,
        parameters,
        presets,
        Horizon(tuple(float(h) for h in hazard)),
        _numbers(manifest, "average_quality", most=1.0),
        sizes,
        manifest["report"],
        _models(manifest, rule),
    )


def _models(manifest: dict[str, Any], rule: str) -> tuple[str, ...]:
    """The models of the tables."""
    names = manifest.get("models", [])
    if not isinstance(names, list) or len(names) > MAX_MODELS or not all(isinstance(n, str) and n for n in names):
        raise CheckpointError(f"{MANIFEST}: models: expected at most {MAX_MODELS} names")
    if len(set(names)) != len(names):
        raise CheckpointError(f"{MANIFEST}: models: a name appears twice")
    if rule == "planned" and not names:
        raise CheckpointError(f"{MANIFEST}: models: not those of a {rule} policy")
    return tuple(names)


def _numbers(manifest: dict[str, Any], name: str, *, most: float) -> dict[str, float]:
    value = manifest[name]
    if not isinstance(value, dict) or not all(_within(v, 0.0, most) for v in value.values()):
        raise CheckpointError(f"{MANIFEST}: {name}: expected an object of numbers from 0 to {most:g}")
    return {key: float(number) for key, number in value.items()}


def _within(value: Any, least: float, most: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and least <= value <= most
        and math.isfinite(value)
    )


def _check_tensors(flat: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise CheckpointError unless exactly the known parts are there: names, float32, shapes, all finite."""
    parts: dict[str, dict[str, Any]] = {}
    for path, value in flat.items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise CheckpointError(f"{PARAMS}: {path}: expected finite float32"[:300])
        part, _, name = path.partition("/")
        parts.setdefault(part, {})[name] = value
    needed, optional = parts_of(recipe)
    if not needed <= set(parts) <= needed | optional:
        raise CheckpointError(f"{PARAMS}: expected {sorted(needed)}, found {sorted(parts)}"[:300])
    if "network" in parts:
        _check_layers(parts["network"], recipe.sizes)
    try:
        if "quality" in parts:
            KernelQuality.from_arrays(recipe.models, parts["quality"])
        if "values" in parts:
            ValueTable.from_arrays(recipe.models, parts["values"])
        if "statistics" in parts:
            CatalogueStatistics.from_arrays(recipe.models, parts["statistics"])
        if "residual" in parts:
            Residual.from_arrays(parts["residual"])
        if "lengths" in parts:
            AnswerLengths.from_arrays(recipe.models, parts["lengths"])
    except ValueError as error:
        raise CheckpointError(f"{PARAMS}: {error}"[:300]) from error


def parts_of(recipe: Recipe) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the required and of the optional parts of a checkpoint."""
    if not recipe.models:
        return (frozenset({"network"}) if recipe.rule == "network" else frozenset()), frozenset()
    known, optional = frozenset({"quality"}), frozenset({"lengths"})
    if recipe.rule == "network":
        return known | {"network", "statistics"}, optional | {"residual"}
    return (known | {"values"} if recipe.rule == "planned" else known), optional


def _check_layers(found: Mapping[str, Any], sizes: Sizes) -> None:
    expected = {path.replace("/", "."): shape for path, shape in parameter_shapes(sizes).items()}
    if set(found) != set(expected):
        raise CheckpointError(f"{PARAMS}: missing or unknown tensors: {sorted(set(found) ^ set(expected))}"[:300])
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(f"{PARAMS}: network/{name}: expected {shape}, found {found[name].shape}")


def layers_as_part(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, F32]:
    """The network's parameters as the checkpoint part "network"; `layers_of` is the inverse."""
    return {
        f"{layer}.{leaf}": np.asarray(value, np.float32)
        for layer, leaves in layers.items()
        for leaf, value in leaves.items()
    }


def layers_of(part: Mapping[str, F32]) -> dict[str, dict[str, F32]]:
    """The part "network" of a checkpoint as the network's parameters."""
    layers: dict[str, dict[str, F32]] = {}
    for name, value in part.items():
        layer, leaf = name.split(".")
        layers.setdefault(layer, {})[leaf] = value
    return layers


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def main(arguments: list[str]) -> int:
    """Verify the checkpoint named on the command line and print its manifest.

    Exit codes: 0; 1 with one line on stderr; 2 for wrong usage.
    """
    if len(arguments) != 1:
        print("usage: python -m policy.checkpoint DIR", file=sys.stderr)
        return 2
    try:
        loaded = load(Path(arguments[0]).absolute())
    except CheckpointError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return 1
    print(json.dumps(loaded.manifest, indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
