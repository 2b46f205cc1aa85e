"""Policy checkpoints: `params.safetensors` and `manifest.json` in a folder named by the id.

Written once, never changed: a temporary folder beside the target, fsync, rename. Read as untrusted input: no links, no
other files, sizes capped before reading, digests of exactly the bytes that are parsed, the exact known tree of float32
arrays, all finite; nothing is ever unpickled. `python -m policy.checkpoint DIR` verifies one and prints its manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from policy.answer_lengths import AnswerLengths
from policy.arrays import F32
from policy.catalogue_statistics import CatalogueStatistics
from policy.kernel import KernelQuality
from policy.manifest import MANIFEST, CheckpointError, Recipe, parse_manifest, read_recipe, write_manifest
from policy.residual import Residual
from policy.value_network_shapes import Sizes, parameter_shapes
from policy.valuetable import ValueTable

PARAMS = "params.safetensors"
MAX_MANIFEST_BYTES = 1 << 20
MAX_PARAMS_BYTES = 256 << 20
MAX_HEADER_BYTES = 1 << 14
"""Limit of the safetensors header, which names every tensor: 2 kB here; a million names take gigabytes to parse."""

EARLIER_NAMES: Mapping[str, str] = {"law": "statistics", "purses_usd": "budgets_usd"}
"""Parts and arrays in checkpoints of earlier versions, by their present names."""


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
    text = write_manifest(recipe, body, directory.name)
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


def load(directory: Path, *, sha256: str | None = None, text_version: str | None = None) -> Loaded:
    """Read and verify a checkpoint.

    Against the manifest digest `sha256` and the version of the text that the caller makes, if given. Raises
    CheckpointError, and nothing else, for anything but a complete, valid checkpoint of this version.
    """
    try:
        text, body = _read_folder(directory)
    except OSError as error:
        raise CheckpointError(f"{directory.name}: cannot be read ({error.strerror or type(error).__name__})") from error
    found = hashlib.sha256(text).hexdigest()
    if sha256 is not None and found != sha256:
        raise CheckpointError(f"{MANIFEST}: expected SHA-256 {sha256[:12]}..., found {found[:12]}...")
    manifest = parse_manifest(text)
    recipe = read_recipe(manifest, directory.name)
    if text_version not in (None, recipe.text_version) and recipe.models:
        raise CheckpointError(
            f'{MANIFEST}: text_version: it reads "{recipe.text_version}", and policy_settings.text makes '
            f'"{text_version}"; the next night trains one for it'
        )
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
