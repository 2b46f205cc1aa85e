"""Policy registry: the policies table with its stages, and the slot that serves them.

The CLI, the admin API, the nightly job and the end of a trial change stages here; every replica polls the table and
follows within about a second. There is at most one champion, canary and shadow; without a champion the shipped
network serves. Only people replace a pinned champion.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, Row, insert, select, update

from gateway.config.settings import PolicySettings
from gateway.database.database import Database
from gateway.database.tables import policies, policy_events
from gateway.errors import InvalidRequest, NotFound
from policy.exploration import Exploration
from policy.manifest import CheckpointError
from policy.mdp import PolicyFault
from policy.reload import PRETRAINED, CheckpointRef, HotSwap, LoadedPolicy, ServingPolicies, StagedPolicies
from policy.rules import builtin_rules
from policy.text import TEXT_VERSION

_log = logging.getLogger("seqroute.policies")
Stage = Literal["champion", "canary", "shadow"]
ACTIONS = ("promote", "canary", "shadow", "pin", "unpin", "rollback")
STAGING = frozenset({"promote", "canary", "shadow", "pin"})
"""The actions after which a policy decides."""
_SERVING_STAGES: tuple[Stage, ...] = ("champion", "canary", "shadow")
BUILT_IN = frozenset(builtin_rules()) | {PRETRAINED}
"""Policies that need no checkpoint from the operator: the rules and the shipped network."""
MAX_EVENTS = 50
LISTED = 200


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """One row of the policies table; `report` is the gate's verdict with its numbers."""

    policy_id: str
    kind: str
    stage: str
    path: str | None
    manifest_sha256: str | None
    report: Mapping[str, Any]
    created_at_ms: int
    staged_at_ms: int
    pinned: bool = False


class PolicyRegistry:
    """Serving slot of one worker, synchronised with the policies table."""

    def __init__(self, settings: PolicySettings, database: Database, text_version: str = TEXT_VERSION) -> None:
        self._database = database
        self._slot = HotSwap(settings.directory, Exploration(floor=settings.exploration_floor), text_version)
        self._problems: tuple[str, ...] = ()

    @property
    def rule(self) -> LoadedPolicy:
        """The built-in rule, always loaded."""
        return self._slot.rule

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each staged policy that could not be loaded."""
        return self._problems

    def lineup(self) -> ServingPolicies:
        """The policies that serve now."""
        return self._slot.lineup

    async def act_on(self, policy_id: str, action: str, *, actor: str, now_ms: int) -> PolicyRecord | None:
        """Perform an action as `act_on` does, and follow it at once.

        Raises InvalidRequest instead of staging a policy whose checkpoint cannot serve here.
        """
        if action in STAGING:
            wanted = await self._database.read(lambda c: checkpoint_of(c, policy_id))
            await asyncio.to_thread(refuse_unusable, self._slot, wanted)
        done = await self._database.write(lambda c: act_on(c, policy_id, action, actor=actor, now_ms=now_ms))
        await self.refresh()
        return done

    async def refresh(self) -> None:
        """Load the staged policies; one that fails is logged once, and the previous one stays."""
        serving = self._slot.lineup.champion.reference.policy_id
        wanted = await self._database.read(lambda c: wanted_policies(c, serving))
        done = await asyncio.to_thread(self._slot.refresh, wanted)
        if done.changed:
            _log.info("policy %s serves", self._slot.lineup.champion.policy.policy_id)
        for problem in done.problems:
            if problem not in self._problems:
                _log.error("policy not served: %s", problem)
        self._problems = done.problems


def wanted_policies(connection: Connection, serving: str = "") -> StagedPolicies:
    """The staged policies of the table, and whether the champion `serving` was rejected."""
    p = policies.c
    rows = connection.execute(
        select(p.stage, p.policy_id, p.manifest_sha256).where(p.stage.in_(_SERVING_STAGES) | (p.policy_id == serving))
    ).all()
    staged = {row.stage: CheckpointRef(row.policy_id, row.manifest_sha256) for row in rows}
    return StagedPolicies(
        champion=staged.get("champion"),
        canary=staged.get("canary"),
        shadow=staged.get("shadow"),
        withdrawn=any(row.policy_id == serving and row.stage == "rejected" for row in rows),
    )


def checkpoint_of(connection: Connection, policy_id: str) -> CheckpointRef:
    """The checkpoint of a policy; a built-in one needs no row. Raises NotFound."""
    if policy_id in BUILT_IN:
        return CheckpointRef(policy_id)
    return CheckpointRef(policy_id, get_policy(connection, policy_id).manifest_sha256)


def refuse_unusable(slot: HotSwap, wanted: CheckpointRef) -> None:
    """Raise InvalidRequest for a checkpoint that cannot serve, with the reason."""
    try:
        slot.check(wanted)
    except (CheckpointError, PolicyFault) as error:
        raise InvalidRequest(f"policy {wanted.policy_id}: its checkpoint cannot be used: {error}") from error


def list_policies(connection: Connection) -> list[PolicyRecord]:
    """The policies that were staged last, newest first."""
    query = select(policies).order_by(policies.c.staged_at_ms.desc(), policies.c.policy_id).limit(LISTED)
    return [_record(row) for row in connection.execute(query)]


def get_policy(connection: Connection, policy_id: str) -> PolicyRecord:
    """One policy by its id. Raises NotFound."""
    row = connection.execute(select(policies).where(policies.c.policy_id == policy_id)).first()
    if row is None:
        raise NotFound("policy: no such policy")
    return _record(row)


def holder_of(connection: Connection, stage: str) -> PolicyRecord | None:
    """The policy on a stage; among several the most recently staged."""
    query = select(policies).where(policies.c.stage == stage).order_by(policies.c.staged_at_ms.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else _record(row)


def champion_of(connection: Connection) -> PolicyRecord | None:
    """The champion; None when the shipped network serves."""
    return holder_of(connection, "champion")


def stage_policy(
    connection: Connection,
    policy_id: str,
    stage: Stage,
    *,
    actor: str,
    now_ms: int,
    action: str | None = None,
    note: str | None = None,
) -> PolicyRecord:
    """Put a policy on a stage in place of its holder. Raises NotFound, InvalidRequest.

    Ends a pin. Built-in rules and the shipped network need no checkpoint: their rows are created on first staging.
    """
    _ensure_builtin_row(connection, policy_id, now_ms)
    record = get_policy(connection, policy_id)
    if record.stage == stage:
        return record
    if record.stage == "rejected" and record.path is None and policy_id not in BUILT_IN:
        raise InvalidRequest(f"policy {policy_id}: the gate refused it, and its checkpoint was not kept")
    step_back = "retired" if stage == "champion" else "candidate"
    holders = update(policies).where(policies.c.stage == stage)
    connection.execute(holders.values(stage=step_back, staged_at_ms=now_ms, pinned=0))
    connection.execute(
        update(policies).where(policies.c.policy_id == policy_id).values(stage=stage, staged_at_ms=now_ms, pinned=0)
    )
    note_event(connection, policy_id, action or stage, actor, now_ms, note)
    return get_policy(connection, policy_id)


def pin_policy(connection: Connection, policy_id: str, *, actor: str, now_ms: int) -> PolicyRecord:
    """Make a policy the champion that only people can replace. Raises NotFound."""
    stage_policy(connection, policy_id, "champion", actor=actor, now_ms=now_ms, action="promote")
    return _set_pin(connection, policy_id, True, actor, now_ms)


def unpin_policy(connection: Connection, policy_id: str, *, actor: str, now_ms: int) -> PolicyRecord:
    """End a pin; the policy serves until it is replaced. Raises NotFound."""
    return _set_pin(connection, policy_id, False, actor, now_ms)


def _set_pin(connection: Connection, policy_id: str, pinned: bool, actor: str, now_ms: int) -> PolicyRecord:
    changed = connection.execute(
        update(policies)
        .where(policies.c.policy_id == policy_id, policies.c.pinned == int(not pinned))
        .values(pinned=int(pinned))
    )
    if changed.rowcount:
        note_event(connection, policy_id, "pin" if pinned else "unpin", actor, now_ms)
    return get_policy(connection, policy_id)


def act_on(connection: Connection, policy_id: str, action: str, *, actor: str, now_ms: int) -> PolicyRecord | None:
    """Perform an action of ACTIONS; a rollback returns the new champion.

    Raises NotFound, also for an unknown action, and InvalidRequest.
    """
    if action == "pin":
        return pin_policy(connection, policy_id, actor=actor, now_ms=now_ms)
    if action == "unpin":
        return unpin_policy(connection, policy_id, actor=actor, now_ms=now_ms)
    if action == "rollback":
        if get_policy(connection, policy_id).stage == "champion":
            return roll_back(connection, actor=actor, now_ms=now_ms)
        reject_policy(connection, policy_id, actor=actor, now_ms=now_ms)
        return champion_of(connection)
    stages: Mapping[str, Stage] = {"promote": "champion", "canary": "canary", "shadow": "shadow"}
    if action not in stages:
        raise NotFound(f"policy: expected one of {', '.join(ACTIONS)}")
    return stage_policy(connection, policy_id, stages[action], actor=actor, now_ms=now_ms, action=action)


def roll_back(connection: Connection, *, actor: str, now_ms: int, note: str | None = None) -> PolicyRecord | None:
    """Reject the champion and reinstate the one before it.

    Returns None when the shipped network serves then. Raises InvalidRequest when there is no champion.
    """
    champion = champion_of(connection)
    if champion is None:
        raise InvalidRequest("policies: no champion to roll back; the shipped network already serves")
    reject_policy(connection, champion.policy_id, actor=actor, now_ms=now_ms, note=note)
    previous = holder_of(connection, "retired")
    if previous is None:
        return None
    return stage_policy(connection, previous.policy_id, "champion", actor=actor, now_ms=now_ms, action="reinstate")


def reject_policy(
    connection: Connection, policy_id: str, *, actor: str, now_ms: int, note: str | None = None
) -> PolicyRecord:
    """Take a policy off its stage until someone promotes it by hand. Raises NotFound."""
    get_policy(connection, policy_id)
    connection.execute(
        update(policies)
        .where(policies.c.policy_id == policy_id)
        .values(stage="rejected", staged_at_ms=now_ms, pinned=0)
    )
    note_event(connection, policy_id, "rollback", actor, now_ms, note)
    return get_policy(connection, policy_id)


def note_event(
    connection: Connection, policy_id: str, action: str, actor: str, now_ms: int, note: str | None = None
) -> None:
    """Append an event to a policy's history."""
    connection.execute(
        insert(policy_events).values(
            policy_id=policy_id, action=action, actor=actor, note=note[:2000] if note else None, created_at_ms=now_ms
        )
    )


def list_events(connection: Connection, policy_id: str) -> list[dict[str, Any]]:
    """The history of a policy, newest first."""
    e = policy_events.c
    query = select(e.action, e.actor, e.note, e.created_at_ms).where(e.policy_id == policy_id)
    return [
        {"action": row.action, "actor": row.actor, "note": row.note, "created_at_ms": row.created_at_ms}
        for row in connection.execute(query.order_by(e.event_id.desc()).limit(MAX_EVENTS))
    ]


def _ensure_builtin_row(connection: Connection, policy_id: str, now_ms: int) -> None:
    if policy_id not in BUILT_IN:
        return
    kind = "network" if policy_id == PRETRAINED else "rule"
    if connection.execute(select(policies.c.policy_id).where(policies.c.policy_id == policy_id)).first() is None:
        connection.execute(
            insert(policies).values(
                policy_id=policy_id, kind=kind, stage="candidate", created_at_ms=now_ms, staged_at_ms=now_ms
            )
        )


def describe(record: PolicyRecord) -> dict[str, Any]:
    """A policy as the admin API and `seqroute policies` show it."""
    return {
        "policy_id": record.policy_id,
        "kind": record.kind,
        "stage": record.stage,
        "pinned": record.pinned,
        "path": record.path,
        "manifest_sha256": record.manifest_sha256,
        "report": dict(record.report),
        "created_at_ms": record.created_at_ms,
        "staged_at_ms": record.staged_at_ms,
    }


def _record(row: Row[Any]) -> PolicyRecord:
    return PolicyRecord(
        policy_id=row.policy_id,
        kind=row.kind,
        stage=row.stage,
        path=row.path,
        manifest_sha256=row.manifest_sha256,
        report=orjson.loads(row.report),
        created_at_ms=row.created_at_ms,
        staged_at_ms=row.staged_at_ms,
        pinned=bool(row.pinned),
    )
