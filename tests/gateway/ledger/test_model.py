"""The ledger against a model in plain Python: any sequence of operations, the same answers and the same balances."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from gateway.accounts.keys import get_key
from gateway.accounts.sessions import change_session
from gateway.accounts.tenants import grant_to_tenant
from gateway.catalog.usage import UsageSource
from gateway.errors import InvalidRequest
from gateway.ledger.types import Balance, Checkpoint, ParentRefused, Refused, Reserve, Reserved
from tests.harness.auditor import assert_ledger_sound
from tests.harness.money import TTL_MS, Bench, Hands, start_bench, stop_bench
from tests.harness.postgres import TestDatabases

T = TypeVar("T")
HOUR_MS = 3_600_000
AMOUNTS = st.sampled_from([0, 1, 7, 50, 99, 400])
PARENTS = {"child": "a", "twin": "a", "grandchild": "child"}


@dataclass
class Account:
    """One account of the model. `enough` and `add` are all the arithmetic there is."""

    granted: int
    reserved: int = 0
    spent: int = 0
    overage: int = 0
    own_limit: bool = True
    kept: int = 0
    asked: list[int] = field(default_factory=list)
    """The ceilings of headers so far, the last one at the end."""
    by_hand: bool = False
    times_by_hand: int = 0

    def balance(self) -> Balance:
        return Balance(self.granted, self.reserved, self.spent, self.overage)

    @property
    def available(self) -> int:
        return self.granted - self.reserved - self.spent

    def free(self, kept: int | None = None) -> int:
        """What a turn may hold beside what is kept for a last answer."""
        beside = self.available - (self.kept if kept is None else kept)
        return self.available if self.available < 0 else max(0, beside)


@dataclass
class Held:
    op: Reserve
    accounts: list[Account]
    state: str = "open"
    dispatched: bool = False
    checkpoint: int = 0
    expires_ms: int = 0
    posted: int = 0
    late: bool = False
    swept_in: int = 0
    """The end of the tenant's window in which the sweeper posted it."""


@dataclass
class Model:
    """What the ledger promises, without a database."""

    tenant: Account
    key: Account
    sessions: dict[str, Account] = field(default_factory=dict)
    holds: dict[str, Held] = field(default_factory=dict)
    reset_ms: int = 0

    def reserve(self, op: Reserve, now_ms: int) -> str:
        self.turn_windows(now_ms)
        known = self.sessions.get(op.session_id)
        session = known or Account(op.terms.default_nanousd)
        above = self.above(op.session_id)
        if PARENTS.get(op.session_id) is not None and not above:
            return "unknown"
        in_force = self._header_in_force(op, session)
        granted, own_limit = self._granted(op, known, above, in_force)
        kept = session.kept if op.kept_nanousd is None else op.kept_nanousd and max(session.kept, op.kept_nanousd)
        beside = 0 if op.closing else kept
        if replace(session, granted=granted).free(beside) < op.amount_nanousd:
            return "session"
        if any(account.free() < op.amount_nanousd for account in above):
            return "parent"
        if op.key_id is not None and self.key.free(beside) < op.amount_nanousd:
            return "key"
        if self.tenant.free(beside) < op.amount_nanousd:
            return "tenant"
        session.granted, session.kept = granted, kept
        session.own_limit = own_limit
        if (ceiling := op.terms.ceiling_nanousd) is not None:
            session.asked = [*(value for value in session.asked if value != ceiling), ceiling]
            session.by_hand = session.by_hand and in_force is None
        self.sessions[op.session_id] = session
        accounts = [session, *above, self.tenant] + ([self.key] if op.key_id is not None else [])
        for account in accounts:
            account.reserved += op.amount_nanousd
        checkpoint = min(op.checkpoint_nanousd or 0, op.amount_nanousd)
        dispatched = op.checkpoint_nanousd is not None
        self.holds[op.hold_id] = Held(op, accounts, "open", dispatched, checkpoint, now_ms + op.ttl_ms)
        return "reserved"

    def above(self, session_id: str) -> list[Account]:
        """The accounts of the sessions above one, its parent first; empty while the parent does not exist."""
        found = []
        while (parent := PARENTS.get(session_id)) is not None and parent in self.sessions:
            found.append(self.sessions[parent])
            session_id = parent
        return found

    def balance(self, session_id: str) -> Balance:
        """A session's balance, as the ledger tells it with an operation."""
        above = self.above(session_id)
        least = min(account.free() for account in above) if above else None
        return structs.replace(self.sessions[session_id].balance(), above_nanousd=least)

    def _header_in_force(self, op: Reserve, session: Account) -> int | None:
        """The turn's ceiling, unless it repeats one or came before the budget was set by hand."""
        ceiling, terms = op.terms.ceiling_nanousd, op.terms
        if terms.times_by_hand != session.times_by_hand:
            return None
        return None if session.by_hand and ceiling in session.asked else ceiling

    def set_by_hand(self, session_id: str, budget: int) -> None:
        """The budget is set otherwise than by a header, and passed on to those below without a limit."""
        above = self.above(session_id)
        session = self.sessions.setdefault(session_id, Account(budget))
        used = session.reserved + session.spent
        if above:
            budget = min(budget, used + max(0, min(account.free() for account in above)))
        session.granted, session.own_limit = max(budget, min(session.granted, used)), True
        session.by_hand, session.times_by_hand = True, session.times_by_hand + 1
        raised = [session_id]
        for name in ("child", "twin", "grandchild"):
            below = self.sessions.get(name)
            if below is not None and not below.own_limit and (parent := PARENTS[name]) in raised:
                below.granted = max(below.granted, self.sessions[parent].granted)
                raised.append(name)

    def _granted(
        self, op: Reserve, known: Account | None, above: list[Account], ceiling: int | None
    ) -> tuple[int, bool]:
        """What the session's budget is with this turn, and whether that is its own."""
        session = known or Account(above[0].granted if above else op.terms.default_nanousd, own_limit=not above)
        used = session.reserved + session.spent
        if ceiling is None:
            grows = above and not session.own_limit
            return (max(session.granted, above[0].granted) if grows else session.granted), session.own_limit
        if above:
            room = max(0, min(account.free() for account in above))
            ceiling = min(ceiling, max(session.granted if session.own_limit else 0, used + room))
        return (ceiling if known is None else max(ceiling, min(session.granted, used))), True

    def settle(self, hold_id: str, bill: int, exact: bool) -> tuple[str, int]:
        held = self.holds[hold_id]
        if held.state == "open":
            self._end(held, "settled", bill, over := max(0, bill - held.op.amount_nanousd))
            return "settle", over
        if held.state in ("expired", "orphaned") and not held.late:
            if bill < held.posted and exact:
                self._give_back(held, held.posted - bill)
                return "refund", 0
            owed = max(0, bill - held.posted)
            fits = max(0, min(owed, *(account.available for account in held.accounts)))
            held.late = True
            for account in held.accounts:
                account.spent += owed
                account.overage += owed - fits
            held.posted += owed
            return "late_post", owed - fits
        return "already", 0

    def release(self, hold_id: str) -> str:
        held = self.holds[hold_id]
        if held.state == "orphaned" and not held.late and held.posted:
            self._give_back(held, held.posted)
            return "refund"
        if held.state != "open":
            return "already"
        self._end(held, "released", 0, 0)
        return "release"

    def sweep(self, now_ms: int) -> tuple[int, int]:
        expired = orphaned = 0
        for held in self.holds.values():
            if held.state == "open" and held.expires_ms <= now_ms:
                posted = held.checkpoint if held.dispatched else 0
                self._end(held, "orphaned" if held.dispatched else "expired", posted, 0)
                orphaned += held.dispatched
                expired += not held.dispatched
                held.swept_in = self.reset_ms
        self.turn_windows(now_ms)
        return expired, orphaned

    def turn_windows(self, now_ms: int) -> None:
        """The tenant's budget starts again every full hour; the key's and the sessions' never do."""
        if now_ms >= self.reset_ms:
            self.tenant.spent = self.tenant.overage = 0
            self.reset_ms = (now_ms // HOUR_MS + 1) * HOUR_MS

    def _give_back(self, held: Held, excess: int) -> None:
        """The tenant's window may have started again since: then it does not count that money any more."""
        held.late = True
        held.posted -= excess
        for account in held.accounts:
            if account is not self.tenant or held.swept_in == self.reset_ms:
                account.spent -= excess

    def _end(self, held: Held, state: str, posted: int, over: int) -> None:
        held.state, held.posted = state, posted
        for account in held.accounts:
            account.reserved -= held.op.amount_nanousd
            account.spent += posted
            account.overage += over


class LedgerMachine(RuleBasedStateMachine):
    """Set `url` in a subclass; each run has a tenant of its own."""

    url = ""
    runs = 0
    holds: Bundle[Reserve] = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        self.name = f"run{type(self).runs}"
        self.runner = asyncio.Runner()
        # Every run starts a year after the last one, so that nothing of it is due any more.
        hands = Hands(at_ms=1_800_000_000_000 + type(self).runs * 365 * 24 * HOUR_MS)
        hands.numbers = iter(range(type(self).runs * 10**6, 10**12))
        self.bench: Bench = self.do(start_bench(self.url, hands=hands))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize(tenant=st.sampled_from([100, 900, 10_000]), key=st.sampled_from([60, 2_000]))
    def open(self, tenant: int, key: int) -> None:
        self.do(self.bench.tenant(self.name, tenant, window="1h"))
        self.key_id = self.do(self.bench.key(self.name, budget_nanousd=key)).key_id
        self.model = Model(Account(tenant), Account(key))
        self.model.turn_windows(self.bench.hands.at_ms)

    @rule(
        target=holds, amount=AMOUNTS, session=st.sampled_from(["a", "b", "child", "twin", "grandchild"]),
        keyed=st.booleans(),
        ceiling=st.sampled_from([None, None, 0, 120, 700]), dispatch=st.none() | AMOUNTS,
        kept=st.sampled_from([None, None, 0, 30, 90]), closing=st.booleans(), late=st.sampled_from([0, 0, 0, 1]),
    )  # fmt: skip
    def reserve(
        self, amount: int, session: str, keyed: bool, ceiling: int | None, dispatch: int | None, kept: int | None,
        closing: bool, late: int,
    ) -> Any:  # fmt: skip
        known = self.model.sessions.get(session)
        key = self.key_id if keyed else None
        op = self.bench.asking(
            amount, session=session, tenant=self.name, ceiling=ceiling, default=500, key=key, dispatch=dispatch,
            parent=PARENTS.get(session), kept=kept, closing=closing,
            times_by_hand=max(0, known.times_by_hand - late) if known is not None else 0,
        )  # fmt: skip
        expected = self.model.reserve(op, self.bench.hands.at_ms)
        outcome = self.do(self.bench.ledger.reserve(op))
        if expected == "reserved":
            assert isinstance(outcome, Reserved)
            assert outcome.session == self.model.balance(session)
            assert outcome.tenant == self.model.tenant.balance()
            return op
        if expected == "unknown":
            assert outcome == ParentRefused("unknown")
            return multiple()
        assert isinstance(outcome, Refused)
        assert outcome.account == expected
        assert outcome.free_nanousd < amount
        return multiple()

    @rule(op=holds, bill=AMOUNTS, exact=st.booleans())
    def settle(self, op: Reserve, bill: int, exact: bool) -> None:
        kind, over = self.model.settle(op.hold_id, bill, exact)
        source: UsageSource = "reported" if exact else "estimated"
        resolved = self.do(self.bench.ledger.settle(self.bench.bill(op, bill, source)))
        assert (resolved.kind, resolved.overage_nanousd) == (kind, over)
        assert resolved.session == self.model.balance(op.session_id)
        assert resolved.tenant == self.model.tenant.balance()

    @rule(op=holds)
    def release(self, op: Reserve) -> None:
        assert self.do(self.bench.ledger.release(self.bench.back(op))).kind == self.model.release(op.hold_id)

    @rule(op=holds, checkpoint=AMOUNTS)
    def stream(self, op: Reserve, checkpoint: int) -> None:
        expires_ms = self.bench.hands.at_ms + TTL_MS
        self.do(self.bench.ledger.checkpoint([Checkpoint(op.hold_id, checkpoint, TTL_MS)]))
        held = self.model.holds[op.hold_id]
        if held.state == "open":
            held.dispatched = True
            held.checkpoint = min(max(held.checkpoint, checkpoint), op.amount_nanousd)
            held.expires_ms = max(held.expires_ms, expires_ms)

    @rule(op=consumes(holds))
    def forget(self, op: Reserve) -> None:
        """Its process is gone: nobody will speak of this hold again."""

    @rule(passed_ms=st.sampled_from([1, TTL_MS // 2, TTL_MS, HOUR_MS]))
    def time_passes_and_the_sweeper_comes(self, passed_ms: int) -> None:
        self.bench.hands.at_ms += passed_ms
        expected = self.model.sweep(self.bench.hands.at_ms)
        swept = self.do(self.bench.sweep(self.bench.hands.at_ms))
        assert (swept.expired, swept.orphaned) == expected

    @rule(session=st.sampled_from(["a", "b", "child", "grandchild"]), budget=st.sampled_from([0, 90, 300, 700]))
    def set_by_hand(self, session: str, budget: int) -> None:
        if session in PARENTS and session not in self.model.sessions:
            return
        self.model.set_by_hand(session, budget)
        self.do(
            self.bench.database.write(
                lambda connection: change_session(
                    connection, self.name, session, default_nanousd=500, budget_nanousd=budget, actor="model",
                    now_ms=self.bench.hands.at_ms,
                )
            )
        )  # fmt: skip

    @rule(change=st.sampled_from([-500, -30, 40, 1_000]))
    def grant(self, change: int) -> None:
        tenant = self.model.tenant
        wanted = tenant.granted + change
        allowed = wanted >= 0 and (change > 0 or wanted >= tenant.reserved + tenant.spent)

        def granting(connection: Any) -> Any:
            return grant_to_tenant(connection, self.name, change, actor="model", now_ms=self.bench.hands.at_ms)

        if not allowed:
            with pytest.raises(InvalidRequest):
                self.do(self.bench.database.write(granting))
            return
        assert self.do(self.bench.database.write(granting)).balance == Balance(
            wanted, tenant.reserved, tenant.spent, tenant.overage
        )
        tenant.granted = wanted

    @invariant()
    def balances_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        for session_id, account in self.model.sessions.items():
            row = self.do(self.bench.session(session_id, tenant=self.name))
            assert row is not None
            assert row.balance == account.balance()
            above = self.model.balance(session_id).above_nanousd
            assert (None if row.chain is None else row.chain.available_nanousd) == above
            assert row.tenant == self.model.tenant.balance()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            key = self.do(self.bench.database.read(lambda connection: get_key(connection, self.key_id)))
            assert key.balance == self.model.key.balance()
            self.do(assert_ledger_sound(self.bench.database, at_ms=self.bench.hands.at_ms))
            for held in self.model.holds.values():
                if held.state == "open":
                    self.do(self.bench.ledger.release(self.bench.back(held.op)))
        self.do(stop_bench(self.bench))
        self.runner.close()


def check(url: str, examples: int) -> None:
    machine = type("Machine", (LedgerMachine,), {"url": url, "runs": 0})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def test_sqlite_does_what_the_model_says(sqlite_url: str) -> None:
    check(sqlite_url, 40)


def test_postgres_does_what_the_model_says(postgres_databases: TestDatabases) -> None:
    name, url = postgres_databases.create()
    check(url, 25)
    postgres_databases.drop(name)
