"""Checkpoints at random, as an attacker would write them: a clean error or a policy that decides, and little memory."""

from __future__ import annotations

import hashlib
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as dump_safetensors

from policy.checkpoint import PARAMS, load, save
from policy.fallback import WithFallback, check_decision
from policy.learned import policy_from
from policy.manifest import MANIFEST, CheckpointError, Recipe
from policy.reload import synthetic_observation
from policy.rules import ReSolving
from tests.policy.networks import SMALL as SIZES
from tests.policy.networks import part
from tests.policy.test_checkpoint import PLANNED, recipe, tables

Flat = dict[str, np.ndarray[Any, Any]]
SEEN = synthetic_observation(3)
SLACK_BYTES = 4 << 20


def flat_of(params: dict[str, dict[str, Any]]) -> Flat:
    return {f"{part}/{name}": value for part, leaves in params.items() for name, value in leaves.items()}


NETWORK: Flat = flat_of(part())
TABLES: Flat = flat_of(tables())


def files_of(recipe: Recipe, flat: Flat) -> tuple[bytes, bytes]:
    """(manifest, parameters) of a good checkpoint."""
    params: dict[str, dict[str, Any]] = {}
    for path, value in flat.items():
        part, name = path.split("/")
        params.setdefault(part, {})[name] = value
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "p1", recipe, params)
        return (Path(folder) / "p1" / MANIFEST).read_bytes(), (Path(folder) / "p1" / PARAMS).read_bytes()


GOOD = [
    files_of(recipe(sizes=SIZES), NETWORK),
    files_of(recipe(sizes=SIZES, **PLANNED), TABLES),
]


def signed(manifest: bytes, body: bytes) -> bytes:
    """The manifest vouching for this body: an attacker who writes both files."""
    changed = json.loads(manifest) | {"params_sha256": hashlib.sha256(body).hexdigest(), "params_bytes": len(body)}
    return json.dumps(changed).encode()


@contextmanager
def checkpoint(manifest: bytes, body: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "p1"
        directory.mkdir()
        (directory / MANIFEST).write_bytes(manifest)
        (directory / PARAMS).write_bytes(body)
        yield directory


def refused_or_harmless(manifest: bytes, body: bytes) -> None:
    """Loading says no in one line, or yields a policy whose every turn is answered, by itself or by the rule."""
    with checkpoint(manifest, body) as directory:
        tracemalloc.start()
        try:
            loaded = load(directory)
        except CheckpointError as error:
            said = str(error)
        else:
            said = ""
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert peak < 4 * (len(manifest) + len(body)) + SLACK_BYTES
    assert len(said) < 500
    if said:
        return
    with np.errstate(all="ignore"):
        try:
            policy = policy_from(loaded)
        except ValueError:
            return  # the gateway keeps the old policy (reload.PolicySlot)
        guarded = WithFallback(policy, ReSolving(), deadline_s=1e9, clock=lambda: 0.0)
        check_decision(SEEN, guarded.decide(SEEN, 0.5))


def damage(original: bytes, cuts: list[tuple[float, bytes]]) -> bytes:
    """Bytes overwritten at places given as shares of the length."""
    changed = bytearray(original)
    for share, piece in cuts:
        at = int(share * len(changed))
        changed[at : at + len(piece)] = piece
    return bytes(changed)


CUTS = st.lists(st.tuples(st.floats(0.0, 1.0), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)
WHICH = st.sampled_from(range(len(GOOD)))


@settings(deadline=None)
@given(WHICH, CUTS, st.booleans())
def test_parameters_with_bytes_overwritten(which: int, cuts: list[tuple[float, bytes]], vouched: bool) -> None:
    manifest, body = GOOD[which]
    changed = damage(body, cuts)
    refused_or_harmless(signed(manifest, changed) if vouched else manifest, changed)


@settings(deadline=None)
@given(WHICH, st.floats(0.0, 1.0), st.booleans())
def test_truncated_parameters(which: int, share: float, vouched: bool) -> None:
    manifest, body = GOOD[which]
    cut = body[: int(share * len(body))]
    refused_or_harmless(signed(manifest, cut) if vouched else manifest, cut)


@settings(deadline=None)
@given(WHICH, CUTS)
def test_a_manifest_with_bytes_overwritten(which: int, cuts: list[tuple[float, bytes]]) -> None:
    manifest, body = GOOD[which]
    refused_or_harmless(damage(manifest, cuts), body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(WHICH, st.data(), JSON)
def test_a_manifest_with_any_value_in_any_field(which: int, data: st.DataObject, value: Any) -> None:
    manifest, body = GOOD[which]
    fields = json.loads(manifest)
    fields[data.draw(st.sampled_from(sorted(fields)))] = value
    refused_or_harmless(json.dumps(fields).encode(), body)


VALUES = st.sampled_from([0.0, -1.0, 1e-38, 3e38, -3e38, float("nan"), float("inf")])
SHAPES = st.lists(st.integers(0, 3), max_size=5)
DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.bool_])


@settings(deadline=None)
@given(WHICH, st.data(), VALUES, st.none() | SHAPES, DTYPES)
def test_any_tensor_of_any_shape_type_and_size(
    which: int, data: st.DataObject, value: float, shape: list[int] | None, dtype: Any
) -> None:
    flat = dict((NETWORK, TABLES)[which])
    name = data.draw(st.sampled_from(sorted(flat)))
    with np.errstate(all="ignore"):
        kept = np.float32 if shape is None else dtype
        flat[name] = np.full(flat[name].shape if shape is None else shape, value).astype(kept)
    body = dump_safetensors(flat)
    refused_or_harmless(signed(GOOD[which][0], body), body)


def padded(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def million_tensors() -> bytes:
    """40 MB, well below the cap of a file; parsed, over a gigabyte."""
    one = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return padded(b"{" + b",".join(one % i for i in range(600_000)) + b"}")


HEADERS: dict[str, Callable[[], bytes]] = {
    "a million empty tensors": million_tensors,
    "a header longer than the file": lambda: (1 << 62).to_bytes(8, "little") + b"{}",
    "a header of spaces": lambda: padded(b" " * (32 << 20)),
}


def test_a_header_that_would_take_gigabytes_is_not_parsed() -> None:
    for made in HEADERS.values():
        body = made()
        refused_or_harmless(signed(GOOD[0][0], body), body)
        with (
            checkpoint(signed(GOOD[0][0], body), body) as directory,
            pytest.raises(CheckpointError, match="header of at most"),
        ):
            load(directory)
