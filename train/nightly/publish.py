"""Publication of a policy: a synced folder first, then the row that names it.

A process that dies in between leaves a folder without a row, which no gateway loads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.database import tables
from gateway.policies.registry import Stage, champion_of, holder_of, note_event, stage_policy
from policy.checkpoint import load, save
from policy.manifest import CheckpointError, Recipe

ACTOR = "nightly"
REPLACED = ("candidate", "rejected")
"""Stages of a policy whose row may be replaced."""
TRIAL_MS = 7 * 86_400_000
"""A canary or shadow stays for a week: replacing it every night would never let a trial end."""


def write_folder(directory: Path, recipe: Recipe, params: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the checkpoint to `directory`/<policy_id>; returns its manifest's SHA-256.

    Safe to repeat: a folder left by a run that died is kept when it verifies, and replaced when it does not; no row
    names it yet.
    """
    target = directory / recipe.policy_id
    if target.exists():
        try:
            return load(target).sha256
        except CheckpointError:
            shutil.rmtree(target)
    return save(target, recipe, params)


@dataclass(frozen=True)
class Publication:
    """Stage of a published policy, with the reason if it is not the requested one."""

    stage: str
    note: str = ""


def publish(
    connection: sa.Connection,
    recipe: Recipe,
    path: Path,
    sha256: str,
    report: Mapping[str, Any],
    *,
    stage: str,
    now_ms: int,
    hindrance: str = "",
) -> Publication:
    """Insert the policy's row inside the caller's transaction.

    The policy gets the requested stage (`shadow`, `canary` or `champion`) unless something prevents it; otherwise it is
    a waiting candidate, which the next night evaluates again. A policy that is staged already keeps its stage.
    """
    standing = stage_of(connection, recipe.policy_id)
    if standing is not None and standing not in REPLACED:
        return Publication(standing, "it is there already")
    _insert(connection, recipe, "candidate", str(path), sha256, report, now_ms)
    hindrance = hindrance or hindrance_of(connection, stage, now_ms)
    if hindrance:
        _note(connection, recipe.policy_id, "candidate", hindrance, now_ms)
        return Publication("candidate", hindrance)
    asked: Stage = "champion" if stage == "champion" else "canary" if stage == "canary" else "shadow"
    reasons = "; ".join(report.get("reasons", []))
    stage_policy(connection, recipe.policy_id, asked, actor=ACTOR, now_ms=now_ms, note=reasons)
    return Publication(asked)


def hindrance_of(connection: sa.Connection, stage: str, now_ms: int) -> str:
    """Reason why a job may not put a policy on this stage; "" if it may."""
    champion = champion_of(connection)
    if champion is not None and champion.pinned:
        return f"{champion.policy_id} is pinned"
    holder = holder_of(connection, stage) if stage != "champion" else None
    if holder is not None and now_ms - holder.staged_at_ms < TRIAL_MS:
        return f"the trial of {holder.policy_id} is not over"
    return ""


def stage_of(connection: sa.Connection, policy_id: str) -> str | None:
    """The stage of a policy; None without a row."""
    p = tables.policies.c
    found: str | None = connection.execute(sa.select(p.stage).where(p.policy_id == policy_id)).scalar()
    return found


def champion_since_ms(connection: sa.Connection) -> int | None:
    """Time at which the champion was put in service; None without a champion."""
    champion = champion_of(connection)
    return None if champion is None else champion.staged_at_ms


def serving_champion(connection: sa.Connection) -> tuple[str, str | None] | None:
    """The champion's policy id and manifest SHA-256; None without a champion."""
    champion = champion_of(connection)
    return None if champion is None else (champion.policy_id, champion.manifest_sha256)


def waiting_policies(connection: sa.Connection, most: int) -> list[tuple[str, str]]:
    """Policy ids and manifest SHA-256 of the newest waiting candidates."""
    p = tables.policies
    query = (
        sa.select(p.c.policy_id, p.c.manifest_sha256)
        .where(p.c.stage == "candidate", p.c.manifest_sha256.is_not(None))
        .order_by(p.c.created_at_ms.desc(), p.c.policy_id)
        .limit(most)
    )
    return [(row.policy_id, row.manifest_sha256) for row in connection.execute(query)]


def reject(connection: sa.Connection, recipe: Recipe, report: Mapping[str, Any], *, now_ms: int) -> None:
    """Record a refused candidate, so that `seqroute policies list` can give the reason."""
    _insert(connection, recipe, "rejected", None, None, report, now_ms)
    _note(connection, recipe.policy_id, "reject", "; ".join(report.get("reasons", [])), now_ms)


def with_report(recipe: Recipe, report: Mapping[str, Any]) -> Recipe:
    """The recipe with the gate's verdict in its manifest."""
    return replace(recipe, report=report)


def _insert(
    connection: sa.Connection,
    recipe: Recipe,
    stage: str,
    path: str | None,
    sha256: str | None,
    report: Mapping[str, Any],
    now_ms: int,
) -> None:
    p = tables.policies
    # Of a policy that a person stages at this moment the row stays, and its second one is an error.
    connection.execute(sa.delete(p).where(p.c.policy_id == recipe.policy_id, p.c.stage.in_(REPLACED)))
    connection.execute(
        sa.insert(p).values(
            policy_id=recipe.policy_id,
            kind=recipe.rule,
            stage=stage,
            path=path,
            manifest_sha256=sha256,
            report=json.dumps(report),
            created_at_ms=now_ms,
            staged_at_ms=now_ms,
        )
    )


def _note(connection: sa.Connection, policy_id: str, action: str, note: str, now_ms: int) -> None:
    note_event(connection, policy_id, action, ACTOR, now_ms, note or None)
