"""Ledger on Postgres: JSON encoding of operations and answers of `seqroute_apply`.

Checkpoints and reads take no tenant lock and have a queue of their own, apart from the tenants'.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import structs
from sqlalchemy import Connection, func, select

from gateway.database.postgres import PostgresDatabase, database_now_ms
from gateway.database.tables import holds, keys, tenants
from gateway.ledger.backend import LedgerBackend
from gateway.ledger.lease_watch import OpenLease
from gateway.ledger.postgres_batches import BatchCommitter
from gateway.ledger.rates import Counted, Limited, TurnLimits, limited, reading
from gateway.ledger.records import (
    CHARGE_PREFIX,
    SESSION_FACTS,
    AccountSnapshot,
    Chain,
    SessionRow,
    UnknownHold,
    abandon,
    decision_row,
    forget,
    known_beginning,
    outcome_columns,
)
from gateway.ledger.types import (
    Balance,
    BodyMismatch,
    Checkpoint,
    InFlight,
    KnownBeginning,
    ParentRefused,
    Refused,
    Release,
    Replay,
    Reserve,
    Reserved,
    ReserveOutcome,
    ResetWindow,
    Resolved,
    SessionClosed,
    Settle,
    SoughtBeginning,
    TenantMissing,
)

REMEMBERED_HOLDS = 100_000
UNLOCKED = "\x00beside"
"""Queue of the operations that lock no tenant: checkpoints, reads."""
_FACTS_BEFORE_TIME = SESSION_FACTS.index("parent_session_id")
"""In a snapshot's answer the time follows these facts; those of the tree, which came later, follow the time."""


class PostgresLedger(LedgerBackend):
    """The backend on Postgres; keeps each hold's tenant, to settle it in the tenant's queue."""

    clock_may_be_set = True  # leases end by the database's clock

    def __init__(self, database: PostgresDatabase, *, max_waiting: int) -> None:
        self._database = database
        self._groups = BatchCommitter(database.url, max_waiting=max_waiting)
        self._tenant_of: OrderedDict[str, str] = OrderedDict()

    async def start(self) -> None:
        await self._groups.start()

    async def close(self) -> None:
        await self._groups.close()

    def reserve(self, op: Reserve) -> asyncio.Future[ReserveOutcome]:
        self._remember(op.hold_id, op.tenant_id)
        sent: dict[str, Any] = {
            "op": "reserve",
            "again": op.repeatable,
            "hold_id": op.hold_id,
            "attempt_id": op.attempt_id,
            "decision_id": op.decision_id,
            "session_id": op.session_id,
            "key_id": op.key_id,
            "model": op.model,
            "amount": op.amount_nanousd,
            "ttl_ms": op.ttl_ms,
            "checkpoint": op.checkpoint_nanousd,
            "first_nanousd": op.terms.default_nanousd,
            "ceiling_nanousd": op.terms.ceiling_nanousd,
            "asked": None if op.terms.ceiling_nanousd is None else op.terms.asked,
            "times_by_hand": op.terms.times_by_hand,
            "expected_turns": op.terms.expected_turns,
            "max_turns": op.terms.max_turns,
            "parent_session_id": op.parent_session_id,
            "kept": op.kept_nanousd,
            "closing": op.closing,
        }
        if op.decision is not None:
            sent["decision"] = _json_row(decision_row(op))
        if op.idempotency is not None:
            sent["claim_key"] = op.idempotency.key
            sent["claim_sha"] = op.idempotency.body_sha256.hex()
            sent["claim_kept_ms"] = op.idempotency.kept_ms
        if op.limits is not None:
            sent |= _sent_limits(op.limits)
        return self._money(op.tenant_id, sent, lambda answer: _reserve_outcome(op, answer))

    def settle(self, op: Settle, *, again: bool = False) -> asyncio.Future[Resolved]:
        outcome = outcome_columns(op.decision)
        outcome.setdefault("usage_source", op.usage_source)
        sent: dict[str, Any] = {
            "op": "settle",
            "again": again,
            "hold_id": op.hold_id,
            "amount": op.amount_nanousd,
            "usage_source": op.usage_source,
            "memory": op.session_memory,
            "close_session": op.close_session,
            "tokens": op.tokens,
        }
        if op.answer is not None:
            sent["answer_status"] = op.answer.status
            sent["answer_headers"] = json.dumps(dict(op.answer.headers))
            sent["answer_body"] = base64.b64encode(op.answer.body).decode()
        return self._resolve(op, sent, outcome)

    def release(self, op: Release, *, again: bool = False) -> asyncio.Future[Resolved]:
        sent: dict[str, Any] = {
            "op": "release",
            "again": again,
            "hold_id": op.hold_id,
            "drop_claim": op.drop_idempotency,
        }
        return self._resolve(op, sent, outcome_columns(op.decision))

    def checkpoint(self, points: tuple[Checkpoint, ...]) -> asyncio.Future[None]:
        """One future for all points; it completes with the last."""
        futures: list[asyncio.Future[Any]] = []
        for point in points:
            sent = {
                "op": "checkpoint",
                "hold_id": point.hold_id,
                "amount": point.checkpoint_nanousd,
                "ttl_ms": point.ttl_ms,
            }
            futures.append(self._groups.submit(UNLOCKED, sent, bool, locking=False))
        return asyncio.ensure_future(_all(futures))

    def sweep_hold(self, hold_id: str, lease_ms: int) -> asyncio.Future[str | None]:
        sent = {"op": "sweep", "hold_id": hold_id, "lease_ms": lease_ms}
        return self._money(self._forget(hold_id), sent, _sweep_outcome, hold_id=hold_id)

    def reset_window(self, op: ResetWindow) -> asyncio.Future[bool]:
        return self._money(op.tenant_id, {"op": "reset", "key_id": op.key_id}, bool)

    def snapshot(self, tenant_id: str, session_id: str) -> asyncio.Future[AccountSnapshot | None]:
        sent = {"op": "family", "tenant_id": tenant_id, "session_id": session_id}
        return self._groups.submit(UNLOCKED, sent, lambda row: _snapshot(tenant_id, row), locking=False)

    def idempotent(
        self, tenant_id: str, key: str, body_sha256: bytes
    ) -> asyncio.Future[Replay | InFlight | BodyMismatch | None]:
        sent = {"op": "claim", "tenant_id": tenant_id, "claim_key": key}
        return self._groups.submit(
            UNLOCKED, sent, lambda row: None if row is None else _claim(row, body_sha256), locking=False
        )

    def beginnings(
        self, tenant_id: str, key_id: str, sought: Sequence[SoughtBeginning]
    ) -> asyncio.Future[list[KnownBeginning]]:
        sent = {
            "op": "beginnings",
            "tenant_id": tenant_id,
            "key_id": key_id,
            "digests": [beginning.digest for beginning in sought],
            "answers": [beginning.answer for beginning in sought],
        }
        return self._groups.submit(UNLOCKED, sent, lambda rows: [known_beginning(row) for row in rows], locking=False)

    async def open_leases(self, limit: int, *, ahead_ms: int, beyond_ms: int) -> list[OpenLease]:

        def find(connection: Connection) -> list[OpenLease]:
            now_ms = database_now_ms(connection)
            ends_ms = holds.c.expires_at_ms
            # A charge may be held for longer than any turn's lease, and is not renewed.
            of_turn = func.substr(holds.c.hold_id, 1, len(CHARGE_PREFIX)) != CHARGE_PREFIX
            beyond = of_turn & (ends_ms > now_ms + beyond_ms)
            rows = connection.execute(
                select(holds.c.hold_id, holds.c.tenant_id, ends_ms)
                .where(holds.c.state == "open", (ends_ms <= now_ms + ahead_ms) | beyond)
                .order_by(ends_ms)
                .limit(limit)
            ).all()
            for hold_id, tenant_id, _ in rows:
                self._remember(hold_id, tenant_id)
            return [OpenLease(hold_id, end_ms, end_ms - now_ms) for hold_id, _, end_ms in rows]

        return await self._database.read(find)

    async def due_windows(self, limit: int) -> list[ResetWindow]:

        def find(connection: Connection) -> list[ResetWindow]:
            now_ms = database_now_ms(connection)
            payers = connection.execute(select(tenants.c.tenant_id).where(tenants.c.reset_at_ms <= now_ms).limit(limit))
            resets = [ResetWindow(row.tenant_id, None) for row in payers]
            owned = connection.execute(
                select(keys.c.tenant_id, keys.c.key_id).where(keys.c.reset_at_ms <= now_ms).limit(limit)
            )
            resets += [ResetWindow(row.tenant_id, row.key_id) for row in owned]
            return resets

        return await self._database.read(find)

    async def tidy(self, abandoned_after_ms: int) -> tuple[int, int]:

        def clean(connection: Connection) -> tuple[int, int]:
            now_ms = database_now_ms(connection)
            bounds = {"now": now_ms, "before": now_ms - abandoned_after_ms}
            return connection.execute(abandon(), bounds).rowcount, connection.execute(forget(), bounds).rowcount

        return await self._database.write(clean)

    def _money(
        self,
        tenant_id: str | None,
        sent: dict[str, Any],
        read: Callable[[Any], Any],
        *,
        hold_id: str = "",
        must: bool = False,
    ) -> asyncio.Future[Any]:
        """Submit to the tenant's queue; a hold of unknown tenant goes alone, and the function finds its tenant."""
        key = tenant_id if tenant_id is not None else f"\x00hold:{hold_id}"
        return self._groups.submit(key, sent | {"tenant_id": tenant_id}, read, locking=True, must=must)

    def _resolve(self, op: Settle | Release, sent: dict[str, Any], outcome: dict[str, Any]) -> asyncio.Future[Resolved]:
        sent["decision"] = _json_row(outcome)
        if op.beginning is not None:
            sent["beginning"] = structs.asdict(op.beginning) | {"opening": int(op.beginning.opening)}
        tenant_id = self._tenant_of.get(op.hold_id)
        return self._money(tenant_id, sent, lambda answer: self._resolved(op, answer), hold_id=op.hold_id, must=True)

    def _resolved(self, op: Settle | Release, answer: list[Any]) -> Resolved:
        if answer[0] == "unknown_hold":
            raise UnknownHold(op.hold_id)
        self._forget(op.hold_id)
        return Resolved(answer[0], answer[1], _session(answer[2:6], answer[10]), Balance(*answer[6:10]))

    def _remember(self, hold_id: str, tenant_id: str) -> None:
        self._tenant_of[hold_id] = tenant_id
        if len(self._tenant_of) > REMEMBERED_HOLDS:
            self._tenant_of.popitem(last=False)

    def _forget(self, hold_id: str) -> str | None:
        return self._tenant_of.pop(hold_id, None)


async def _all(futures: list[asyncio.Future[Any]]) -> None:
    for future in futures:
        await asyncio.shield(future)


def _json_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns as `jsonb_populate_record` reads them: bytes in Postgres' hex format."""
    return {
        name: "\\x" + value.hex() if isinstance(value, bytes) else value
        for name, value in row.items()
        if value is not None
    }


def _reserve_outcome(op: Reserve, answer: list[Any]) -> ReserveOutcome:
    match answer:
        case ["reserved", turn, *money] if len(money) == 9:
            return Reserved(turn, _session(money[:4], money[8]), Balance(*money[4:8]))
        case ["reserved", turn, *money, done, now_s]:
            assert op.limits is not None
            sums = [Counted(*each) for each in done]
            told = reading(list(zip(op.limits.accounts, sums, strict=True)), now_s)
            return Reserved(turn, _session(money[:4], money[8]), Balance(*money[4:8]), told)
        case ["limited", account, resource, seconds, now_s]:
            return _limited(op.limits, account, resource, seconds, now_s)
        case ["refused", account, *money, kept]:
            balance = Balance(*money)
            return Refused(account, balance, balance.reserved_nanousd > 0, kept)
        case ["parent", reason]:
            return ParentRefused(reason)
        case ["closed", reason]:
            return SessionClosed(reason)
        case ["tenant_missing"]:
            return TenantMissing(op.tenant_id)
        case ["claim", *_]:
            assert op.idempotency is not None
            return _claim(answer, op.idempotency.body_sha256)
    raise ValueError(f"seqroute_apply: no such answer to reserve: {answer[:1]}")


def _sent_limits(limits: TurnLimits) -> dict[str, Any]:
    accounts = [
        {
            "counter": each.counter,
            "account": each.account,
            "rpm": each.quota.rpm,
            "tpm": each.quota.tpm,
            "parallel": each.quota.parallel,
        }
        for each in limits.accounts
    ]
    return {
        "limits": accounts,
        "limit_mask": limits.mask,
        "limit_key": limits.key_id,
        "limit_tokens": limits.tokens,
    }


def _limited(limits: TurnLimits | None, account: str, resource: Any, seconds: list[Any], now_s: int) -> Limited:
    assert limits is not None
    (found,) = [each for each in limits.accounts if each.account == account]
    return limited(limits, found, resource, [(second, requests, tokens) for second, requests, tokens in seconds], now_s)


def _claim(answer: list[Any], body_sha256: bytes) -> Replay | InFlight | BodyMismatch:
    _, sha256, decision_id, status, headers, body = answer
    if bytes.fromhex(sha256) != body_sha256:
        return BodyMismatch(decision_id)
    if status is None:
        return InFlight(decision_id)
    return Replay(status, json.loads(headers), base64.b64decode(body))


def _sweep_outcome(answer: list[Any]) -> str | None:
    return answer[0] if answer[0] in ("expire", "orphan_post") else None


def _session(money: list[int], above_nanousd: int | None) -> Balance:
    granted, reserved, spent, overage = money
    return Balance(granted, reserved, spent, overage, above_nanousd)


def _snapshot(tenant_id: str, row: list[Any] | None) -> AccountSnapshot | None:
    if row is None:
        return None
    tenant, session_id, own, facts = Balance(*row[:4]), row[4], row[5:9], row[9:]
    first, (at_ms, *tree, chain) = facts[:_FACTS_BEFORE_TIME], facts[_FACTS_BEFORE_TIME:]
    if session_id is None:
        return AccountSnapshot(tenant, None, at_ms)
    named = dict(zip(SESSION_FACTS, [*first, *tree], strict=True))
    above = None if chain is None else Chain(*chain)
    session = SessionRow(tenant_id, session_id, Balance(*own), **named, tenant=tenant, chain=above)
    return AccountSnapshot(tenant, session, at_ms)
