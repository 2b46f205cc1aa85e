from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from policy.checkpoint import PARAMS, layers_as_part, save
from policy.exploration import Exploration
from policy.features import STATE_DIM
from policy.manifest import MANIFEST, CheckpointError, Recipe
from policy.reload import PRETRAINED, CheckpointRef, HotSwap, StagedPolicies, builtin_policies, synthetic_observation
from policy.text import TEXT_VERSION
from tests.policy.networks import SMALL, layers, part

PRESETS = {"cheap": 7.0, "balanced": 2.0, "best": 0.0}


def publish(directory: Path, policy_id: str, rule: str = "cheapest") -> CheckpointRef:
    """A whole checkpoint."""
    params = part() if rule == "network" else {}
    recipe = Recipe(policy_id, rule, lambda_presets=PRESETS, sizes=SMALL)
    return CheckpointRef(policy_id, save(directory / policy_id, recipe, params))


def test_the_shipped_network_serves_until_a_champion_is_wanted(tmp_path: Path) -> None:
    slot = HotSwap(tmp_path, Exploration(0.1))
    assert slot.lineup.champion.policy.policy_id == PRETRAINED
    assert slot.refresh(StagedPolicies()).changed is False
    wanted = StagedPolicies(champion=publish(tmp_path, "p1", "network"))
    refreshed = slot.refresh(wanted)
    assert (refreshed.changed, refreshed.problems) == (True, ())
    champion = slot.lineup.champion
    assert champion.policy.policy_id == "p1"
    assert champion.lambda_presets == PRESETS
    assert slot.refresh(wanted).changed is False
    assert slot.lineup.champion is champion
    slot.refresh(StagedPolicies())
    assert slot.lineup.champion.policy.policy_id == PRETRAINED


def test_a_broken_champion_leaves_the_old_one_and_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    slot = HotSwap(tmp_path)
    slot.refresh(StagedPolicies(champion=publish(tmp_path, "p1")))
    reference = publish(tmp_path, "p2")
    body = (tmp_path / "p2" / PARAMS).read_bytes()
    (tmp_path / "p2" / PARAMS).write_bytes(body[:-1])
    for _ in range(2):
        refreshed = slot.refresh(StagedPolicies(champion=reference))
        assert refreshed.changed is False
        assert len(refreshed.problems) == 1
        assert "champion p2" in refreshed.problems[0]
        assert slot.lineup.champion.policy.policy_id == "p1"
    shutil.rmtree(tmp_path / "p2")
    assert publish(tmp_path, "p2") == reference
    assert slot.refresh(StagedPolicies(champion=reference)).changed is True
    assert slot.lineup.champion.policy.policy_id == "p2"


def test_a_checkpoint_whose_copy_was_still_being_made_is_served_when_it_is_whole(tmp_path: Path) -> None:
    reference, slot = publish(tmp_path, "p1"), HotSwap(tmp_path)
    body = (tmp_path / "p1" / PARAMS).read_bytes()
    (tmp_path / "p1" / PARAMS).write_bytes(body[:9])
    with pytest.raises(CheckpointError, match="bytes are not those"):
        slot.check(reference)
    assert len(slot.refresh(StagedPolicies(champion=reference)).problems) == 1
    (tmp_path / "p1" / PARAMS).write_bytes(body)
    slot.check(reference)
    assert slot.lineup.champion.policy.policy_id == PRETRAINED
    assert slot.refresh(StagedPolicies(champion=reference)).changed is True


def test_a_policy_of_another_text_is_named_and_not_served(tmp_path: Path) -> None:
    """A policy that reads no text, as the shipped network, serves with any."""
    recipe = Recipe("p1", "threshold", models=("a", "b"), text_version="static-1-0123456789ab")
    kernel = {
        "centre": np.zeros(STATE_DIM), "scale": np.ones(STATE_DIM), "landmarks": np.zeros((1, STATE_DIM)),
        "width": np.ones(2), "means": np.full(2, 0.5), "weights": np.zeros((1, 3)), "offset": np.zeros(3),
        "routes": np.array([7.0]), "of_route": np.zeros((1, 3)),
    }  # fmt: skip
    params = {"quality": {name: np.asarray(value, np.float32) for name, value in kernel.items()}}
    wanted = StagedPolicies(champion=CheckpointRef("p1", save(tmp_path / "p1", recipe, params)))
    slot = HotSwap(tmp_path)
    assert slot.refresh(wanted).problems == (
        'champion p1: manifest.json: text_version: it reads "static-1-0123456789ab", and policy_settings.text makes '
        f'"{TEXT_VERSION}"; the next night trains one for it',
    )
    assert slot.lineup.champion.policy.policy_id == PRETRAINED
    other = HotSwap(tmp_path, text_version="static-1-0123456789ab")
    assert other.lineup.champion.policy.policy_id == PRETRAINED
    assert other.refresh(wanted).problems == ()
    assert other.lineup.champion.policy.policy_id == "p1"


def test_a_rejected_champion_does_not_stay_where_the_one_before_it_is_gone(tmp_path: Path) -> None:
    slot = HotSwap(tmp_path)
    slot.refresh(StagedPolicies(champion=publish(tmp_path, "p2")))
    refreshed = slot.refresh(StagedPolicies(champion=CheckpointRef("p1"), withdrawn=True))
    assert len(refreshed.problems) == 1
    assert slot.lineup.champion.policy.policy_id == PRETRAINED


def test_a_missing_folder_a_wrong_digest_and_a_hostile_id_change_nothing(tmp_path: Path) -> None:
    slot = HotSwap(tmp_path)
    publish(tmp_path, "p1")
    for reference in (
        CheckpointRef("gone"),
        CheckpointRef("p1", "0" * 64),
        CheckpointRef("../p1"),
        CheckpointRef("rule:unknown"),
        CheckpointRef(""),
    ):
        refreshed = slot.refresh(StagedPolicies(champion=reference))
        assert (refreshed.changed, len(refreshed.problems)) == (False, 1)
        assert slot.lineup.champion.policy.policy_id == PRETRAINED


def test_a_folder_that_appears_after_its_row_is_served_when_it_is_there(tmp_path: Path) -> None:
    slot = HotSwap(tmp_path)
    assert slot.refresh(StagedPolicies(champion=CheckpointRef("p1"))).problems
    publish(tmp_path, "p1")
    assert slot.refresh(StagedPolicies(champion=CheckpointRef("p1"))).changed is True


def test_shadow_and_canary_come_and_go_and_promotion_reuses_the_warm_policy(tmp_path: Path) -> None:
    slot = HotSwap(tmp_path)
    one, two = publish(tmp_path, "p1"), publish(tmp_path, "p2")
    slot.refresh(StagedPolicies(champion=one, canary=two, shadow=CheckpointRef("rule:cheapest")))
    canary = slot.lineup.canary
    assert canary is not None
    assert slot.lineup.shadow is not None
    assert slot.lineup.shadow.policy.policy_id == "rule:cheapest"
    shutil.rmtree(tmp_path / "p2")  # promotion needs no second look at the disk
    slot.refresh(StagedPolicies(champion=two))
    assert slot.lineup.champion is canary
    assert slot.lineup.canary is None
    assert slot.lineup.shadow is None


def test_a_broken_shadow_or_canary_does_not_serve_and_hurts_no_one(tmp_path: Path) -> None:
    slot = HotSwap(tmp_path)
    one = publish(tmp_path, "p1")
    publish(tmp_path, "p2")
    (tmp_path / "p2" / MANIFEST).write_text("{}")
    refreshed = slot.refresh(StagedPolicies(champion=one, canary=CheckpointRef("p2"), shadow=CheckpointRef("p3")))
    assert len(refreshed.problems) == 2
    assert slot.lineup.champion.policy.policy_id == "p1"
    assert slot.lineup.canary is slot.lineup.shadow is None


def test_a_policy_that_answers_nonsense_at_warm_up_never_serves(tmp_path: Path) -> None:
    found = layers()
    for leaves in found.values():
        leaves["bias"][:] = 3e38  # finite, and overflows at once
    save(tmp_path / "p1", Recipe("p1", sizes=SMALL), {"network": layers_as_part(found)})
    slot = HotSwap(tmp_path)
    refreshed = slot.refresh(StagedPolicies(champion=CheckpointRef("p1")))
    assert refreshed.problems
    assert slot.lineup.champion.policy.policy_id == PRETRAINED


def test_turns_under_a_hot_swap_are_served_by_one_whole_lineup_each(tmp_path: Path) -> None:
    slot = HotSwap(tmp_path)
    references = [publish(tmp_path, "p1"), publish(tmp_path, "p2")]
    view, stop, mixed = synthetic_observation(4), threading.Event(), []

    def serve() -> None:
        while not stop.is_set():
            lineup = slot.lineup
            decision = lineup.champion.policy.decide(view, 0.5)
            if decision.policy_id not in (lineup.champion.reference.policy_id, PRETRAINED):
                mixed.append(decision.policy_id)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for k in range(40):
        slot.refresh(StagedPolicies(champion=references[k % 2]))
    stop.set()
    for thread in threads:
        thread.join()
    assert mixed == []


def test_an_installation_that_is_not_whole_serves_the_rule_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(exploration: Exploration) -> None:
        raise CheckpointError("pretrained-1: cannot be read")

    monkeypatch.setattr("policy.reload.pretrained", missing)
    slot = HotSwap(tmp_path)
    assert slot.lineup.champion.policy.policy_id == "rule:resolving"
    assert slot.refresh(StagedPolicies()).problems == (f"{PRETRAINED}: pretrained-1: cannot be read",)


def test_rules_and_the_shipped_network_are_promoted_by_id(tmp_path: Path) -> None:
    slot = HotSwap(tmp_path)
    for policy_id in builtin_policies():
        assert slot.refresh(StagedPolicies(champion=CheckpointRef(policy_id))).problems == ()
        assert slot.lineup.champion.policy.policy_id == policy_id
