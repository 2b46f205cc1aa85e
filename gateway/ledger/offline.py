"""Capped open mode: journaled spending of opted-in tenants while the ledger is unavailable.

Each process may spend `outage_cap_usd` per outage for all such tenants together; beyond that they get 503 like all
others. Spending is written to a journal and synced to disk before a call leaves and when its bill arrives. When the
database is back the journal is posted: each turn as its own reservation and bill, with anything beyond its accounts'
funds as an `overage`. The journal of a dead process is posted by the next process that finds it.

    reserve (journal, fsync) --> settle (journal, fsync) --> post (ledger) --> file removed
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct, structs
from sqlalchemy import Connection, select

from gateway.clock import Clock, NewId
from gateway.database.database import Database
from gateway.database.tables import decisions, holds
from gateway.errors import LedgerUnavailable
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import (
    Balance,
    Refused,
    Release,
    Reserve,
    Reserved,
    Resolved,
    SessionClosed,
    SessionTerms,
    Settle,
    TenantMissing,
)

_log = logging.getLogger("seqroute.ledger")
DOWN_S = 2.0
"""Time after a failure during which turns of open tenants do not wait for the database."""
POSTING_LEASE_MS = 60_000
CLOSED_SESSION = "outage"
"""Session that receives the turns of sessions closed meanwhile."""


@dataclass(frozen=True, slots=True)
class _Spent:
    """One dispatched attempt: its hold, its cost without a bill, and its bill."""

    hold: Reserve
    checkpoint_nanousd: int
    bill: Settle | None = None
    released: bool = False


class OfflineLedger:
    """Replacement for the ledger during an outage: the same `reserve`, `settle` and `release`."""

    def __init__(self, directory: Path, *, cap_nanousd: int, clock: Clock, new_id: NewId) -> None:
        self._directory = directory
        self._cap_nanousd = cap_nanousd
        self._clock = clock
        self._new_id = new_id
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._spent: dict[str, _Spent] = {}
        self._journal: _Journal | None = None
        self._noticed_s = float("-inf")
        self._posting = False
        self._unposted: frozenset[str] = frozenset()
        """What was logged about journals that cannot be posted."""

    def allows(self, outage: str) -> bool:
        """True when a tenant with this `outage` setting may be served now."""
        return outage == "open" and not self._posting and self.balance.available_nanousd > 0

    def notice(self) -> None:
        """Record that the ledger did not answer just now."""
        self._noticed_s = self._clock()

    @property
    def noticed(self) -> bool:
        """True shortly after a failure: no need to ask the ledger again."""
        return self._clock() - self._noticed_s < DOWN_S

    @property
    def balance(self) -> Balance:
        """This process's allowance in this outage, as an account."""
        held_nanousd = sum(spent.hold.amount_nanousd for spent in self._spent.values() if spent.bill is None)
        spent_nanousd = sum(spent.bill.amount_nanousd for spent in self._spent.values() if spent.bill is not None)
        return Balance(self._cap_nanousd, held_nanousd, spent_nanousd)

    async def reserve(self, op: Reserve) -> Reserved | Refused:
        """Hold against the cap, journaled before the call leaves.

        A cancelled caller holds nothing. Raises LedgerUnavailable when the journal cannot be written.
        """
        if op.decision is not None:
            self._rows[op.decision_id] = op.decision
        balance = self.balance
        if balance.available_nanousd < op.amount_nanousd:
            return Refused("tenant", balance, balance.reserved_nanousd > 0)
        hold = structs.replace(op, decision=self._rows.get(op.decision_id), idempotency=None, checkpoint_nanousd=None)
        spent = self._spent[op.hold_id] = _Spent(hold, op.checkpoint_nanousd or 0)
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, _line_of(spent)))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            await self.release(Release(op.hold_id))
            raise
        except OSError as error:
            del self._spent[op.hold_id]
            _log.error("the outage journal in %s cannot be written: %s", self._directory, error.strerror)
            raise LedgerUnavailable(
                "neither the ledger nor its journal can be written", headers={"Retry-After": "5"}
            ) from error
        return Reserved(0, self.balance, self.balance)

    async def settle(self, op: Settle) -> Resolved:
        """Journal the bill; kept in memory when the disk fails."""
        spent = self._spent[op.hold_id]
        cost_nanousd = min(op.amount_nanousd, spent.hold.amount_nanousd)
        self._spent[op.hold_id] = replace(spent, checkpoint_nanousd=cost_nanousd, bill=op)
        await self._try_write({"bill": structs.replace(op, answer=None)})
        return Resolved("settle", 0, self.balance, self.balance)

    async def release(self, op: Release) -> Resolved:
        """Give a hold back: nothing was billed."""
        if self._spent.pop(op.hold_id, None) is not None:
            await self._try_write({"released": op.hold_id})
        return Resolved("release", 0, self.balance, self.balance)

    async def post(self, ledger: Ledger, database: Database) -> int:
        """Post the journals of this and dead processes to the ledger; return the number of turns.

        Raises LedgerUnavailable in another outage; then nothing is lost, and nothing is posted twice. A journal of
        another process that cannot be read or removed is named once, and tried again.
        """
        if self._posting or self._running():
            return 0
        self._posting = True
        try:
            posted = await self._post_all(self._spent.values(), ledger, database)
            self._spent.clear()
            self._rows.clear()
            if self._journal is not None:
                journal, self._journal = self._journal, None
                try:
                    await asyncio.to_thread(journal.remove)
                finally:
                    journal.close()
            posted += await self._post_left_behind(ledger, database)
        finally:
            self._posting = False
        return posted

    async def _post_left_behind(self, ledger: Ledger, database: Database) -> int:
        """Post the journals of dead processes."""
        posted, problems = 0, set()
        for path in await asyncio.to_thread(_journals_in, self._directory):
            try:
                journal = await asyncio.to_thread(_Journal.adopt, path)
                if journal is None:
                    continue
                try:
                    posted += await self._post_all(await asyncio.to_thread(journal.entries), ledger, database)
                    await asyncio.to_thread(journal.remove)
                finally:
                    journal.close()
            except OSError as error:
                needed = f"user {os.geteuid()} must be able to read, write and remove it"
                problems.add(f"{path}: {error.strerror}; {needed}")
            except _NoJournal as error:
                problems.add(f"{path}: {error}")
        for problem in sorted(problems - self._unposted):
            _log.error("the outage journal of another process cannot be taken over: %s", problem)
        self._unposted = frozenset(problems)
        return posted

    def _running(self) -> bool:
        """True while turns of the outage still run: their bills must come first."""
        return any(spent.bill is None for spent in self._spent.values())

    async def _post_all(self, entries: Any, ledger: Ledger, database: Database) -> int:
        waiting = [entry for entry in entries if not entry.released]
        for entry in waiting:
            await self._post(entry, ledger, database)
        if waiting:
            _log.warning("posted %d turns that were served while the ledger was unavailable", len(waiting))
        return len(waiting)

    async def _post(self, entry: _Spent, ledger: Ledger, database: Database) -> None:
        """Post one attempt once: an existing hold was posted before, or is settled by its bill."""
        hold = entry.hold
        bill = entry.bill or Settle(
            hold.hold_id, entry.checkpoint_nanousd, "estimated", decision={"status": "orphaned"}
        )

        def known(connection: Connection) -> tuple[bool, bool]:
            held = connection.execute(select(holds.c.hold_id).where(holds.c.hold_id == hold.hold_id)).first()
            logged = connection.execute(
                select(decisions.c.decision_id).where(decisions.c.decision_id == hold.decision_id)
            ).first()
            return held is not None, logged is not None

        held, logged = await database.read(known)
        if not held and not await self._hold(structs.replace(hold, decision=None) if logged else hold, bill, ledger):
            return
        # The session's memory was not readable during the outage, so it is not overwritten.
        await ledger.settle(structs.replace(bill, session_memory=None))

    async def _hold(self, hold: Reserve, bill: Settle, ledger: Ledger) -> bool:
        """Reserve the bill; what the accounts cannot cover becomes an overage when it is settled."""
        wanted = structs.replace(hold, amount_nanousd=bill.amount_nanousd, ttl_ms=POSTING_LEASE_MS)
        for _ in range(3):
            outcome = await ledger.reserve(wanted)
            if isinstance(outcome, Reserved):
                return True
            if isinstance(outcome, SessionClosed):
                wanted = structs.replace(wanted, session_id=CLOSED_SESSION)
            elif isinstance(outcome, Refused) and wanted.amount_nanousd:
                wanted = structs.replace(wanted, amount_nanousd=0)
            elif isinstance(outcome, TenantMissing):
                _log.error(
                    "tenant %s no longer exists; %d nano-USD cannot be posted", hold.tenant_id, bill.amount_nanousd
                )
                return False
            else:
                break
        raise LedgerUnavailable("an outage's bill cannot be posted to an exhausted account; it is retried")

    async def _try_write(self, line: Mapping[str, Any]) -> None:
        try:
            await asyncio.to_thread(self._write, line)
        except OSError as error:
            _log.error(
                "the outage journal in %s cannot be written: %s; a crash now would post an estimate",
                self._directory,
                error.strerror,
            )

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._journal is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._journal = _Journal.create(self._directory / f"{self._new_id('outage')}.jsonl")
        self._journal.append(orjson.dumps(line, default=_as_json) + b"\n")


class _NoJournal(ValueError):
    """A file that is no journal of this version."""


class _Journal:
    """A locked file of JSON lines; the kernel drops the lock when its process dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path) -> _Journal:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return cls(path, descriptor)

    @classmethod
    def adopt(cls, path: Path) -> _Journal | None:
        """The journal of a dead process; None while its process lives."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def append(self, line: bytes) -> None:
        os.write(self._descriptor, line)
        os.fsync(self._descriptor)

    def remove(self) -> None:
        """Remove the posted journal; where that is not allowed, it is empty at least."""
        os.ftruncate(self._descriptor, 0)
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)

    def entries(self) -> list[_Spent]:
        """The attempts in the file, bills joined to their holds; ignores a truncated last line.

        Raises OSError, and _NoJournal for lines that are not this version's.
        """
        try:
            return self._entries()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _NoJournal("its content is not a journal of this version") from error

    def _entries(self) -> list[_Spent]:
        found: dict[str, _Spent] = {}
        for line in self._path.read_bytes().split(b"\n"):
            try:
                row: dict[str, Any] = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if "hold" in row:
                hold = _reserve_of(row["hold"])
                found[hold.hold_id] = _Spent(hold, row["checkpoint_nanousd"])
            elif "bill" in row:
                bill = Settle(**row["bill"])
                found[bill.hold_id] = replace(found[bill.hold_id], bill=bill)
            elif "released" in row:
                found[row["released"]] = replace(found[row["released"]], released=True)
        return list(found.values())


def _journals_in(directory: Path) -> list[Path]:
    try:
        names = os.listdir(directory)
    except OSError:  # there is none, or it is not ours: then this process writes none there either
        return []
    return sorted(directory / name for name in names if fnmatch(name, "outage_*.jsonl"))


def _line_of(spent: _Spent) -> dict[str, Any]:
    """A hold as a journal line."""
    hold = structs.asdict(spent.hold)
    del hold["checkpoint_nanousd"]
    return {"hold": hold, "checkpoint_nanousd": spent.checkpoint_nanousd}


def _reserve_of(row: Mapping[str, Any]) -> Reserve:
    decision = row["decision"]
    return Reserve(
        **{
            **row,
            "terms": SessionTerms(**row["terms"]),
            "decision": None if decision is None else {name: _text_as_bytes(value) for name, value in decision.items()},
        }
    )


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Struct):
        return structs.asdict(value)
    raise TypeError(f"an outage journal holds JSON, bytes and structs, not {type(value).__name__}")


def _text_as_bytes(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value
