"""Trials of staged policies: judged from the decision log, then rolled back or promoted.

A canary serves a fixed share of the sessions; the others are its concurrent control over the same models. Every
replica checks, one at a time; the first to find a trial over ends it by a conditional update of the policies table.
Verdicts (`gateway/policies/verdicts.py`) are not stored: each page that shows a policy recomputes them from the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, func, literal, or_, select, text

from gateway.clock import Clock, Uniform, now_ms
from gateway.config.settings import PolicySettings
from gateway.database.database import Database
from gateway.database.tables import decisions, feedback
from gateway.errors import LedgerUnavailable
from gateway.policies.confidence_sequences import Arm
from gateway.policies.registry import (
    PolicyRecord,
    champion_of,
    describe,
    get_policy,
    holder_of,
    list_events,
    reject_policy,
    roll_back,
    stage_policy,
)
from gateway.policies.verdicts import MEASURES, Arms, Verdict, judge_canary, judge_shadow, weigh_tenants
from policy.mdp import ONLY_AFFORDABLE

_log = logging.getLogger("seqroute.policies")
ACTOR = "trial"
CHECK_S = 10.0
MAX_CHECK_SHARE = 0.05
"""Share of one database reader that checks may use: on a long log they become less frequent."""
ADVISORY_LOCK_KEY = 0x5E9_0_0718
MS_PER_HOUR = 3_600_000
MAX_TURNS = 100_000
"""Only the newest turns are read, which bounds the work of a check on a busy gateway."""


# -- reading the log -----------------------------------------------------------------------------------------------


def read_arms(connection: Connection, policy_id: str, since_ms: int, *, max_turns: int = MAX_TURNS) -> Arms:
    """Both arms' sums over the sessions begun since then, without pinned turns and fallbacks.

    The sessions of one tree are one sample: an agent's helpers succeed or fail with it. A large tenant weighs less
    (`weigh_tenants`).
    """
    since_ms = _bounded(connection, since_ms, max_turns)
    d, f = decisions.c, feedback.c
    # A decision the policy failed to make carries its id as the shadow's: the failure counts for the policy.
    owed = and_(d.reason == "policy-fault", d.shadow_policy_id == policy_id)
    users = and_(d.reason.not_in(("pinned", "fallback")), d.origin.is_(None))
    ended = and_(d.status.in_(("completed", "failed", "truncated")), users)
    turns = (
        select(
            d.tenant_id,
            d.session_id,
            func.coalesce(func.max(d.root_session_id), d.session_id).label("root"),
            func.max(_flag(or_(d.policy_id == policy_id, owed))).label("canary"),
            func.max(_flag(d.policy_id != "rule:forced")).label("chosen"),
            func.max(_flag(d.previous_decision_id.is_(None))).label("begun"),
            func.sum(_flag(ended)).label("turns"),
            func.sum(case((ended, func.coalesce(d.cost_nanousd, 0)), else_=0)).label("cost"),
            func.sum(_flag(and_(ended, or_(d.status != "completed", d.reason == "policy-fault")))).label("failures"),
            func.sum(_flag(and_(ended, d.reason == ONLY_AFFORDABLE))).label("starved"),
        )
        .where(d.created_at_ms >= since_ms)
        .group_by(d.tenant_id, d.session_id)
        .subquery()
    )
    # A turn counts once, with the mean of its scores: thousands of scores for one turn decide nothing.
    of_turn = (
        select(f.tenant_id, f.session_id, func.avg(f.score).label("score"))
        .where(f.created_at_ms >= since_ms)
        .group_by(f.tenant_id, f.session_id, f.decision_id)
        .subquery()
    )
    g = of_turn.c
    scores = (
        select(g.tenant_id, g.session_id, func.count().label("graded"), func.sum(g.score).label("quality"))
        .group_by(g.tenant_id, g.session_id)
        .subquery()
    )
    t = turns.c
    joined = turns.outerjoin(scores, and_(t.tenant_id == scores.c.tenant_id, t.session_id == scores.c.session_id))
    each: dict[str, ColumnElement[Any]] = {name: t[name] for name in ("turns", "cost", "failures", "starved")}
    each |= {name: func.coalesce(scores.c[name], 0) for name in ("graded", "quality")}
    trees = (
        select(t.tenant_id, t.canary, *(func.sum(value).label(name) for name, value in each.items()))
        .select_from(joined)
        .where(t.chosen == 1, t.begun == 1, t.turns > 0)
        .group_by(t.tenant_id, t.root, t.canary)
        .subquery()
    )
    columns: list[ColumnElement[Any]] = [trees.c.tenant_id, trees.c.canary]
    for name in (m.name for m in MEASURES):
        y = trees.c[name] * literal(1.0)
        m = (trees.c.graded if name == "quality" else trees.c.turns) * literal(1.0)
        columns += [func.sum(_flag(m > 0)), func.sum(y), func.sum(m), func.sum(y * y), func.sum(y * m), func.sum(m * m)]
    query = select(*columns).group_by(trees.c.tenant_id, trees.c.canary)
    of_tenants: dict[str, dict[str, tuple[Arm, Arm]]] = {measure.name: {} for measure in MEASURES}
    for tenant_id, canary, *row in connection.execute(query):
        sums = [float(value or 0) for value in row]
        for i, measure in enumerate(MEASURES):
            arm = Arm(int(sums[6 * i]), *sums[6 * i + 1 : 6 * i + 6])
            of, beside = of_tenants[measure.name].get(tenant_id, (Arm(), Arm()))
            of_tenants[measure.name][tenant_id] = (arm, beside) if canary else (of, arm)
    found = {name: weigh_tenants(arms) for name, arms in of_tenants.items()}
    return Arms({name: arms[0] for name, arms in found.items()}, {name: arms[1] for name, arms in found.items()})


def read_shadow(connection: Connection, policy_id: str, since_ms: int) -> tuple[int, int]:
    """Turns decided by a policy since `since_ms`, and those that the shadow answered too."""
    since_ms = _bounded(connection, since_ms, MAX_TURNS)
    d = decisions.c
    query = select(
        func.count(), func.sum(_flag(and_(d.shadow_policy_id == policy_id, d.shadow_model.is_not(None))))
    ).where(d.created_at_ms >= since_ms, d.policy_id != "rule:forced")
    turns, answered = connection.execute(query).one()
    return int(turns), int(answered or 0)


def _flag(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def _bounded(connection: Connection, since_ms: int, max_turns: int) -> int:
    """`since_ms`, or the start of the newest `max_turns` turns if later; reads the time index only."""
    at = decisions.c.created_at_ms
    query = select(at).where(at >= since_ms).order_by(at.desc()).offset(max_turns).limit(1)
    later = connection.execute(query).scalar()
    return since_ms if later is None else int(later)


# -- acting on verdicts --------------------------------------------------------------------------------------------


def verdict_on(connection: Connection, record: PolicyRecord, settings: PolicySettings, at_ms: int) -> Verdict | None:
    """The current verdict on a staged policy; None when it is not on trial."""
    if record.stage == "shadow":
        return judge_shadow(*read_shadow(connection, record.policy_id, record.staged_at_ms))
    if record.stage == "canary" or (record.stage == "champion" and settings.mode == "canary"):
        hours = (at_ms - record.staged_at_ms) / MS_PER_HOUR
        arms = read_arms(connection, record.policy_id, record.staged_at_ms)
        return judge_canary(arms, hours=hours, least_hours=settings.canary_hours)
    return None


def describe_policy(connection: Connection, policy_id: str, settings: PolicySettings, at_ms: int) -> dict[str, Any]:
    """A policy with its current trial verdict and its history. Raises NotFound."""
    record = get_policy(connection, policy_id)
    verdict = verdict_on(connection, record, settings, at_ms)
    trial = None if verdict is None else verdict.describe()
    return describe(record) | {"trial": trial, "events": list_events(connection, policy_id)}


def look(connection: Connection, settings: PolicySettings, at_ms: int) -> list[tuple[PolicyRecord, Verdict]]:
    """Trials that are over by now; empty while another replica checks."""
    if connection.dialect.name == "postgresql":
        locked = connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK_KEY}).scalar()
        if not locked:
            return []
    found = []
    for record in on_trial(connection, settings):
        verdict = verdict_on(connection, record, settings, at_ms)
        if verdict is not None and verdict.outcome != "on trial":
            found.append((record, verdict))
    return found


def on_trial(connection: Connection, settings: PolicySettings) -> list[PolicyRecord]:
    """Canary and shadow; in mode `canary` the champion, serving a share, holder in for a canary."""
    canary, shadow = holder_of(connection, "canary"), holder_of(connection, "shadow")
    if canary is None and settings.mode == "canary":
        canary = champion_of(connection)
    return [record for record in (canary, shadow) if record is not None]


def act(
    connection: Connection, record: PolicyRecord, verdict: Verdict, settings: PolicySettings, at_ms: int
) -> str | None:
    """Apply a verdict unless the policy has changed stage meanwhile; return the action taken.

    Several replicas may reach the same verdict: the first changes the row, the others find it changed. A pinned
    champion stays, whether it regressed (mode `canary`) or a canary held.
    """
    holder = holder_of(connection, record.stage)
    if holder is None or (holder.policy_id, holder.staged_at_ms) != (record.policy_id, record.staged_at_ms):
        return None
    if holder.pinned:
        return None
    note = "; ".join(verdict.reasons)
    if verdict.outcome == "regressed":
        if record.stage == "champion":
            roll_back(connection, actor=ACTOR, now_ms=at_ms, note=note)
        else:
            reject_policy(connection, record.policy_id, actor=ACTOR, now_ms=at_ms, note=note)
        return "rollback"
    if verdict.outcome != "held" or not settings.auto_promote or record.stage == "champion":
        return None
    if record.stage == "shadow":
        if holder_of(connection, "canary") is not None:
            return None
        stage_policy(connection, record.policy_id, "canary", actor=ACTOR, now_ms=at_ms, note=note)
        return "canary"
    champion = champion_of(connection)
    if champion is not None and champion.pinned:
        return None
    stage_policy(connection, record.policy_id, "champion", actor=ACTOR, now_ms=at_ms, action="promote", note=note)
    return "promote"


async def watch_forever(
    database: Database,
    settings: Callable[[], PolicySettings],
    *,
    clock: Clock,
    uniform: Uniform,
    on_end: Callable[[str], None],
    ready: Callable[[], bool],
) -> None:
    """Check the trials until cancelled and end those that are over; waits out an outage."""
    took_s = 0.0
    while True:
        await asyncio.sleep(max(CHECK_S, took_s / MAX_CHECK_SHARE) * (0.75 + 0.25 * uniform()))
        if not ready():
            continue
        began_s = time.monotonic()
        try:
            for record, verdict, done in await look_once(database, settings(), clock):
                _log.warning("trial of %s: %s, %s", record.policy_id, done, "; ".join(verdict.reasons))
                on_end(done)
        except LedgerUnavailable:
            _log.warning("trials not checked: the database is unavailable")
        took_s = time.monotonic() - began_s


async def look_once(
    database: Database, settings: PolicySettings, clock: Clock
) -> list[tuple[PolicyRecord, Verdict, str]]:
    """Check once and return what was done.

    Reading and writing are separate transactions, so that a long read does not block the ledger's writer.
    """
    over = await database.read(lambda c: look(c, settings, now_ms(clock)))
    done = [
        (record, verdict, await _act_in_write(database, record, verdict, settings, clock)) for record, verdict in over
    ]
    return [(record, verdict, action) for record, verdict, action in done if action is not None]


async def _act_in_write(
    database: Database, record: PolicyRecord, verdict: Verdict, settings: PolicySettings, clock: Clock
) -> str | None:
    """`act` in its own write transaction."""
    return await database.write(lambda c: act(c, record, verdict, settings, now_ms(clock)))
