from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as dump_safetensors

from policy.checkpoint import EARLIER_NAMES, PARAMS, load, save
from policy.features import STATE_DIM, Horizon
from policy.learned import policy_from
from policy.manifest import MANIFEST, CheckpointError, Recipe
from policy.network_policy import NetworkPolicy
from policy.planned import Planner
from policy.value_network_shapes import Sizes
from tests.policy.networks import SMALL, part
from tests.policy.observations import candidate, observation

HEAD = "network/curves.bias"


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {"policy_id": "p1", "sizes": SMALL} | changes
    return Recipe(**settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "p1", recipe(), part())
    return tmp_path / "p1"


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    given = recipe(
        rule_parameters={"starved_penalty": 0.2},
        lambda_presets={"cheap": 9.0, "balanced": 3.0, "best": 0.0},
        horizon=Horizon((0.1, 0.5)),
        average_quality={"gpt": 0.7},
        report={"gate": {"passed": True}},
    )
    digest = save(tmp_path / "p1", given, part(3))
    loaded = load(tmp_path / "p1", sha256=digest)
    assert loaded.recipe == given
    assert loaded.sha256 == digest == hashlib.sha256((tmp_path / "p1" / MANIFEST).read_bytes()).hexdigest()
    assert set(loaded.params) == set(part())
    assert (loaded.params["network"]["curves.bias"] == part(3)["network"]["curves.bias"]).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p1"]


def test_a_checkpoint_is_written_once(folder: Path) -> None:
    with pytest.raises(FileExistsError, match="once"):
        save(folder, recipe(), part())


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "p1", recipe(), part())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"policy_id": "other"},
        {"rule": "unheard-of"},
        {"rule_parameters": {"starved_penalty": float("nan")}},
        {"rule_parameters": {"exec": 1.0}},
        {"rule_parameters": {"starved_penalty": -1.0}},
        {"lambda_presets": {"cheap": 1.0}},
        {"horizon": Horizon(())},
        {"horizon": Horizon((2.0,))},
        {"average_quality": {"m": 1.5}},
        {"report": {"x": float("inf")}},
        {"report": {"x": object()}},
    ],
)
def test_nothing_is_saved_that_would_not_load(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        save(tmp_path / "p1", recipe(**changes), part())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy_id", ["../escape", ".hidden", "a/b", "", "x" * 129, "a\nb"])
def test_ids_that_are_no_plain_folder_names_are_refused(tmp_path: Path, policy_id: str) -> None:
    with pytest.raises((CheckpointError, FileExistsError)):
        save(tmp_path / "base" / policy_id, recipe(policy_id=policy_id), part())


def resigned(folder: Path, body: bytes) -> None:
    """Put other tensors under a manifest that vouches for them: an attacker who can write both files."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest |= {"params_sha256": hashlib.sha256(body).hexdigest(), "params_bytes": len(body)}
    (folder / PARAMS).write_bytes(body)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def with_tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def attack(folder: Path) -> None:
        flat = {f"{a}/{b}": v for a, leaves in part().items() for b, v in leaves.items()}
        change(flat)
        resigned(folder, dump_safetensors(flat))

    return attack


def with_manifest(**changes: Any) -> Callable[[Path], object]:
    def attack(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        (folder / MANIFEST).write_text(json.dumps(manifest | changes))

    return attack


def with_text(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / MANIFEST).write_text(text)


def swap_for_link(name: str) -> Callable[[Path], object]:
    def attack(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return attack


def swap_for_pipe(folder: Path) -> None:
    (folder / PARAMS).unlink()
    os.mkfifo(folder / PARAMS)


def swap_for_folder(folder: Path) -> None:
    (folder / PARAMS).unlink()
    (folder / PARAMS).mkdir()


def flip_one_byte(folder: Path) -> None:
    body = bytearray((folder / PARAMS).read_bytes())
    body[-1] ^= 1
    (folder / PARAMS).write_bytes(body)


def truncate(folder: Path) -> None:
    (folder / PARAMS).write_bytes((folder / PARAMS).read_bytes()[:-8])


def grow_sparse(name: str, size: int) -> Callable[[Path], object]:
    def attack(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return attack


def header_of_petabytes(folder: Path) -> None:
    head = json.dumps({HEAD: {"dtype": "F32", "shape": [2**50], "data_offsets": [0, 2**52]}}).encode()
    resigned(folder, len(head).to_bytes(8, "little") + head)


ATTACKS: dict[str, Callable[[Path], object]] = {
    "a flipped byte": flip_one_byte,
    "a truncated file": truncate,
    "a huge sparse file": grow_sparse(PARAMS, 1 << 40),
    "a huge manifest": grow_sparse(MANIFEST, 1 << 30),
    "a link for the parameters": swap_for_link(PARAMS),
    "a link for the manifest": swap_for_link(MANIFEST),
    "a named pipe": swap_for_pipe,
    "a folder for a file": swap_for_folder,
    "an extra file": lambda folder: (folder / "payload.pkl").write_bytes(b"cos\nsystem\n"),
    "a missing file": lambda folder: (folder / PARAMS).unlink(),
    "a header that claims petabytes": header_of_petabytes,
    "a pickle for tensors": lambda folder: resigned(folder, b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    "no bytes at all": lambda folder: resigned(folder, b""),
    "float64": with_tensors(lambda flat: flat.update({HEAD: flat[HEAD].astype(np.float64)})),
    "int32": with_tensors(lambda flat: flat.update({HEAD: flat[HEAD].astype(np.int32)})),
    "another shape": with_tensors(lambda flat: flat.update({HEAD: flat[HEAD][:1].copy()})),
    "a missing tensor": with_tensors(lambda flat: flat.pop(HEAD)),
    "an extra tensor": with_tensors(lambda flat: flat.update({"extra/bias": np.zeros(1, np.float32)})),
    "a NaN": with_tensors(lambda flat: flat[HEAD].fill(np.nan)),
    "an infinity": with_tensors(lambda flat: flat[HEAD].fill(np.inf)),
    "another feature version": with_manifest(feature_version=99),
    "a feature version of another type": with_manifest(feature_version=True),
    "a text version that is no name": with_manifest(text_version=7),
    "another format": with_manifest(format="seqroute-policy-9"),
    "another policy's manifest": with_manifest(policy_id="p2"),
    "an unknown rule": with_manifest(rule="eval"),
    "a rule that is no text": with_manifest(rule=["network"]),
    "an unknown field": with_manifest(import_this="os"),
    "sizes beyond reason": with_manifest(sizes={"hidden": 10**9}),
    "sizes of another network": with_manifest(sizes={"hidden": 4, "joint": 3, "members": 2}),
    "sizes that are no object": with_manifest(sizes=[1, 2]),
    "a wrong digest type": with_manifest(params_sha256=None),
    "a hazard that is no list": with_manifest(hazard="1"),
    "a boolean hazard": with_manifest(hazard=[True]),
    "a report that is no object": with_manifest(report="x"),
    "presets of huge integers": with_manifest(lambda_presets={"cheap": 10**400, "balanced": 1, "best": 0}),
    "NaN in JSON": with_text('{"format": NaN}'),
    "a duplicate field": with_text('{"format": 1, "format": 2}'),
    "deep nesting": with_text("[" * 200_000),
    "a long integer": with_text("9" * 10_000),
    "a list": with_text("[]"),
    "no UTF-8": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00{"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_hostile_checkpoint_is_refused_in_one_line(folder: Path, attack: Callable[[Path], object]) -> None:
    attack(folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert len(str(caught.value)) < 500


def test_a_link_for_the_folder_and_a_folder_that_is_not_there_are_refused(folder: Path) -> None:
    links = folder.parent / "links"
    links.mkdir()
    (links / "p1").symlink_to(folder)  # under its own name, which is compared too
    with pytest.raises(CheckpointError):
        load(links / "p1")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder.parent / "gone")


def test_a_manifest_that_the_table_does_not_know_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="SHA-256"):
        load(folder, sha256="0" * 64)


def test_the_command_prints_the_manifest_or_one_line_and_fails(folder: Path) -> None:
    command = [sys.executable, "-m", "policy.checkpoint"]
    good = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert good.returncode == 0
    assert json.loads(good.stdout)["policy_id"] == "p1"
    flip_one_byte(folder)
    bad = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (1, "", 1)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def tables() -> dict[str, dict[str, Any]]:
    quality = {
        "centre": np.zeros(STATE_DIM),
        "scale": np.ones(STATE_DIM),
        "landmarks": np.zeros((2, STATE_DIM)),
        "width": np.ones(1),
        "means": np.array([0.5, 0.8]),
        "weights": np.zeros((2, 3)),
        "offset": np.zeros(3),
    }
    values = {
        "list_usd": np.ones(2),
        "lambdas_per_usd": np.zeros(1),
        "contexts_tokens": np.zeros(1),
        "budgets_usd": np.array([0.0, 1.0]),
        "values": np.zeros((1, 1, 3, 2, 2)),
    }
    return {
        part: {name: np.asarray(value, np.float32) for name, value in arrays.items()}
        for part, arrays in (("quality", quality), ("values", values))
    }


PLANNED = {"rule": "planned", "rule_parameters": {"starved_penalty": 0.3}, "models": ("small", "large")}
NO_PRICES_OF_MONEY = {
    "lambdas_per_usd": np.zeros(0, np.float32),
    "values": np.zeros((0, 1, 3, 2, 2), np.float32),
}


def test_a_planner_is_stored_as_tables_and_serves_from_them(tmp_path: Path) -> None:
    save(tmp_path / "p1", recipe(**PLANNED), tables())
    loaded = load(tmp_path / "p1")
    assert loaded.recipe == recipe(**PLANNED, sizes=Sizes())
    policy = policy_from(loaded)
    assert isinstance(policy, Planner)
    assert policy.starved_penalty == 0.3
    seen = observation([candidate("large", 0.2, prior=0.1), candidate("small", 0.1, prior=0.1)])
    assert policy.decide(seen, 0.5).quality == pytest.approx([0.8, 0.5])


def test_a_heuristic_may_read_the_reward_model_alone(tmp_path: Path) -> None:
    given = recipe(rule="pacing", rule_parameters={"factor": 2.0}, models=("small", "large"))
    save(tmp_path / "p1", given, {"quality": tables()["quality"]})
    decided = policy_from(load(tmp_path / "p1")).decide(observation([candidate("large", 0.2)]), 0.5)
    assert decided.quality == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("changes", "params"),
    [
        (PLANNED | {"models": ()}, part()),
        (PLANNED | {"models": ("small", "small")}, tables()),
        (PLANNED | {"models": ("small",)}, tables()),
        (PLANNED, {"quality": tables()["quality"]}),
        (PLANNED, tables() | {"more": {"x": np.zeros(1, np.float32)}}),
        (PLANNED | {"rule": "network", "rule_parameters": {}}, tables()),
        (PLANNED, tables() | {"values": tables()["values"] | NO_PRICES_OF_MONEY}),
        (PLANNED, tables() | {"values": tables()["values"] | {"list_usd": np.full(2, np.nan, np.float32)}}),
    ],
)
def test_tables_that_do_not_fit_their_models_are_refused(
    tmp_path: Path, changes: dict[str, Any], params: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(CheckpointError):
        save(tmp_path / "p1", recipe(**changes), params)


def network_parts() -> dict[str, dict[str, Any]]:
    statistics = {
        "quality": np.ones(2), "spread": np.ones(2), "mean_usd": np.ones(2), "q95_usd": np.ones(2),
        "list_usd": np.ones(2), "answers": np.ones((3, 15)), "margin": np.zeros(3), "grown_tokens": np.ones(1),
    }  # fmt: skip
    arrays = {name: np.asarray(value, np.float32) for name, value in statistics.items()}
    return part() | {"quality": tables()["quality"], "statistics": arrays}


OF_A_LOG = {"rule": "network", "models": ("small", "large")}


def test_a_network_of_a_log_brings_its_qualities_and_statistics(tmp_path: Path) -> None:
    save(tmp_path / "p1", recipe(**OF_A_LOG), network_parts())
    policy = policy_from(load(tmp_path / "p1"))
    assert isinstance(policy, NetworkPolicy)
    seen = observation([candidate("large", 0.2, prior=0.1), candidate("small", 0.1, prior=0.1)])
    assert policy.decide(seen, 0.5).quality == pytest.approx([0.8, 0.5])


@pytest.mark.parametrize("broken", [{"mean_usd": np.zeros(2)}, {"margin": np.zeros(2)}, {"quality": -np.ones(2)}])
def test_statistics_out_of_range_are_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    parts = network_parts()
    statistics = parts["statistics"] | {name: np.asarray(x, np.float32) for name, x in broken.items()}
    with pytest.raises(CheckpointError, match="statistics"):
        save(tmp_path / "p1", recipe(**OF_A_LOG), parts | {"statistics": statistics})


def test_parts_and_arrays_under_their_earlier_names_are_read(tmp_path: Path) -> None:
    for policy_id, given, parts in (("p1", PLANNED, tables()), ("p2", OF_A_LOG, network_parts())):
        folder = tmp_path / policy_id
        save(folder, recipe(policy_id=policy_id, **given), parts)
        written = load(folder)
        flat = {f"{part}/{name}": value for part, arrays in written.params.items() for name, value in arrays.items()}
        for earlier, present in EARLIER_NAMES.items():
            flat = {re.sub(rf"\b{present}\b", earlier, path): value for path, value in flat.items()}
        assert set(flat) & {"values/purses_usd", "law/margin"}
        resigned(folder, dump_safetensors(flat))
        read = load(folder)
        assert {part: set(arrays) for part, arrays in read.params.items()} == {
            part: set(arrays) for part, arrays in written.params.items()
        }
        policy_from(read)


def test_sizes_of_a_network_that_a_planner_never_had_do_not_matter(tmp_path: Path) -> None:
    save(tmp_path / "p1", recipe(**PLANNED), tables())
    with_manifest(sizes={"hidden": 256, "joint": 128, "members": 3, "state_dim": 295})(tmp_path / "p1")
    assert isinstance(policy_from(load(tmp_path / "p1")), Planner)
