"""Make a policy the champion: the folder first, whole and synced; then, in one transaction, the row that makes it seen.

A process that dies in between leaves a folder that no row names: no gateway ever loads it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway import tables
from policy.checkpoint import CheckpointError, Recipe, load, save

ACTOR = "nightly"


def write_folder(directory: Path, recipe: Recipe, params: Mapping[str, Mapping[str, Any]]) -> str:
    """The checkpoint in `directory`/<policy_id>, fsynced; returns its manifest's SHA-256. Safe to repeat.

    A folder left by a run that died is kept when it verifies, and replaced when it does not; no row names it yet.
    """
    target = directory / recipe.policy_id
    if target.exists():
        try:
            return load(target).sha256
        except CheckpointError:
            shutil.rmtree(target)
    return save(target, recipe, params)


def promote(
    connection: sa.Connection, recipe: Recipe, path: Path, sha256: str, report: Mapping[str, Any], *, now_ms: int
) -> None:
    """Inside the caller's transaction: the old champion retires, this policy is champion, both are noted."""
    p = tables.policies
    retired = connection.execute(sa.select(p.c.policy_id).where(p.c.stage == "champion")).scalars().all()
    connection.execute(sa.update(p).where(p.c.stage == "champion").values(stage="retired", staged_at_ms=now_ms))
    _insert(connection, recipe, "champion", str(path), sha256, report, now_ms)
    for policy_id in retired:
        _note(connection, policy_id, "retire", f"replaced by {recipe.policy_id}", now_ms)
    _note(connection, recipe.policy_id, "champion", "; ".join(report.get("reasons", [])), now_ms)


def serving_champion(connection: sa.Connection) -> tuple[str, str | None] | None:
    """(policy id, manifest's SHA-256) of the champion; None while the rule serves."""
    p = tables.policies
    row = connection.execute(sa.select(p.c.policy_id, p.c.manifest_sha256).where(p.c.stage == "champion")).first()
    return None if row is None else (row[0], row[1])


def reject(connection: sa.Connection, recipe: Recipe, report: Mapping[str, Any], *, now_ms: int) -> None:
    """Note a candidate that the gate refused, so that `seqroute policies list` can say why."""
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
    connection.execute(sa.delete(p).where(p.c.policy_id == recipe.policy_id, p.c.stage == "rejected"))
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
    connection.execute(
        sa.insert(tables.policy_events).values(
            policy_id=policy_id, action=action, actor=ACTOR, note=note[:2000] or None, created_at_ms=now_ms
        )
    )
