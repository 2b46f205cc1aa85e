"""Tenants, keys and sessions as accounts: what may be changed, by whom it was, and what is refused whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy import update as sa_update

from gateway.accounts import keys, tenants
from gateway.accounts import sessions as session_accounts
from gateway.database.database import transaction
from gateway.database.tables import keys as keys_table
from gateway.database.tables import tenants as tenants_table
from gateway.errors import InvalidRequest, NotFound
from gateway.ledger.types import Balance, Refused, Reserved
from gateway.money import MAX_NANOUSD
from tests.harness.ledger_rows import list_entries, list_trail
from tests.harness.money import START_MS, Bench, open_bench, race, replica

DAY_MS = 86_400_000


async def write(bench: Bench, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    def run(connection: Connection) -> Any:
        return function(connection, *arguments, **more)

    return await bench.database.write(run)


def by(actor: str = "key_admin") -> dict[str, Any]:
    return {"actor": actor, "now_ms": START_MS}


async def test_the_gateway_s_own_tenant_takes_neither_a_client_s_name_nor_its_money(database_url: str) -> None:
    """Clients may have had the name before it was refused; their ids are made."""

    def named_before(connection: Connection) -> None:
        connection.execute(sa_update(tenants_table).where(tenants_table.c.tenant_id == "acme").values(name="judge"))

    own = tenants.JUDGE_TENANT
    async with open_bench(database_url, budget_nanousd=1_000) as bench:
        await write(bench, named_before)
        await write(bench, tenants.ensure_own, own, 500, START_MS)
        await write(bench, tenants.ensure_own, own, 700, START_MS)
        assert (await bench.show()).balance.granted_nanousd == 1_000
        made = await bench.database.read(lambda connection: tenants.get_tenant(connection, own))
        assert (made.name, made.balance.granted_nanousd) == ("judge~gateway", 700)
        with pytest.raises(InvalidRequest, match="tenant of the gateway itself"):
            await write(bench, tenants.patch_tenant, "acme", {"name": "judge~gateway"}, **by())
        found = await bench.database.read(lambda connection: tenants.find_client(connection, "judge"))
        assert found is not None
        assert found.tenant_id == "acme"


async def test_the_judge_keeps_the_tenant_that_it_had_under_its_plain_name(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        own: dict[str, Any] = {"budget_nanousd": 500, **by("judge")}
        await write(bench, tenants.create_tenant, "judge", "judge", **own)
        await write(bench, tenants.ensure_own, "judge", 700, START_MS)
        kept = await bench.database.read(lambda connection: tenants.get_tenant(connection, "judge"))
        assert (kept.name, kept.balance.granted_nanousd) == ("judge", 700)
        assert await bench.database.read(lambda connection: tenants.find_client(connection, "judge")) is None


async def test_every_change_of_a_budget_is_an_entry_and_leaves_a_trail(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=1_000) as bench:
        await write(bench, tenants.grant_to_tenant, "acme", 500, **by())
        await write(bench, tenants.grant_to_tenant, "acme", -300, **by())
        await write(bench, tenants.patch_tenant, "acme", {"budget_nanousd": 2_000, "outage": "open"}, **by("cli"))
        tenant = await bench.show()
        assert (tenant.balance, tenant.outage) == (Balance(2_000, 0, 0), "open")
        entries = await bench.database.read(lambda connection: list_entries(connection, tenant_id="acme"))
        assert [(entry.kind, entry.amount_nanousd) for entry in entries] == [
            ("grant", 1_000),
            ("grant", 500),
            ("grant", -300),
            ("grant", 800),
        ]
        trail = await bench.database.read(lambda connection: list_trail(connection, subject="acme"))
        assert [(event.actor, event.action) for event in trail] == [
            ("cli", "tenant.change"),
            ("key_admin", "tenant.revoke"),
            ("key_admin", "tenant.grant"),
            ("test", "tenant.create"),
        ]
        assert trail[0].before is not None
        assert trail[0].after is not None
        assert trail[0].before["balance"]["granted_nanousd"] == 1_200
        assert trail[0].after["balance"]["granted_nanousd"] == 2_000


@pytest.mark.parametrize(
    "changes",
    [
        {"budget_nanousd": -1}, {"budget_nanousd": MAX_NANOUSD + 1}, {"budget_nanousd": 1.5}, {"budget_nanousd": True},
        {"budget_nanousd": 149}, {"window": "1y"}, {"outage": "half"}, {"models": "gpt"}, {"models": [""]},
        {"name": ""}, {"store_text": 1}, {"spent_nanousd": 0}, {"max_session_nanousd": -5}, {"name": "other"},
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_and_nothing_changes(sqlite_url: str, changes: dict[str, Any]) -> None:
    async with open_bench(sqlite_url, budget_nanousd=1_000) as bench:
        await bench.tenant("other")
        op = await bench.held(150)  # 100 spent, 50 reserved: a budget below 150 is no budget
        await bench.ledger.settle(bench.bill(op, 100))
        await bench.held(50)
        before = await bench.show()
        with pytest.raises(InvalidRequest):
            await write(bench, tenants.patch_tenant, "acme", {"store_text": True} | changes, **by())
        assert await bench.show() == before


async def test_a_grant_cannot_overflow_and_a_revocation_cannot_take_what_is_spent(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=1_000) as bench:
        await bench.held(900)
        for change in (MAX_NANOUSD, 2**63, -101, -5_000):
            with pytest.raises(InvalidRequest):
                await write(bench, tenants.grant_to_tenant, "acme", change, **by())
        assert (await bench.show()).balance == Balance(1_000, 900, 0)


async def test_budget_changes_race_with_turns_and_nothing_is_lost(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=10_000) as bench:

        async def agent(name: str) -> int:
            done = 0
            for _ in range(8):
                op, outcome = await bench.reserve(10, session=name)
                if isinstance(outcome, Reserved):
                    await bench.ledger.settle(bench.bill(op, 10))
                    done += 1
            return done

        async def operator() -> None:
            for _ in range(20):
                await write(bench, tenants.grant_to_tenant, "acme", 7, **by())
                await write(bench, tenants.grant_to_tenant, "acme", -3, **by())

        done = await race(*(agent(f"s{n}") for n in range(10)), operator(), operator())
        assert (await bench.show()).balance == Balance(10_000 + 2 * 20 * 4, 0, 10 * sum(done[:10]))


async def test_names_and_ids_are_taken_once(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await write(bench, tenants.patch_tenant, "acme", {"name": "Acme"}, **by())
        taken = (("acme", "new"), ("Acme", "new"), ("new", "acme"), ("new", "Acme"))
        for tenant_id, name in (*taken, ("no spaces", "x"), ("x" * 65, "x")):
            with pytest.raises(InvalidRequest):
                await write(bench, tenants.create_tenant, tenant_id, name, budget_nanousd=1, **by())
        with pytest.raises(NotFound):
            await bench.show("nobody")
        await write(bench, tenants.create_tenant, "other", "other", budget_nanousd=1, **by())
        with pytest.raises(InvalidRequest, match='"acme" is taken'):
            await write(bench, tenants.patch_tenant, "other", {"name": "acme"}, **by())
        made = await race(
            *(write(bench, tenants.ensure_tenant, "fresh", "fresh", budget_nanousd=5, **by()) for _ in range(10))
        )
        assert {tenant.balance for tenant in made} == {Balance(5, 0, 0)}
        listed = await bench.database.read(tenants.list_tenants)
        assert {tenant.tenant_id for tenant in listed} == {"acme", "fresh", "other"}


async def test_a_name_and_an_id_given_at_once_are_never_the_same(database_url: str) -> None:
    """No unique index compares the two columns: the transactions do."""

    async def create(tenant_id: str, name: str) -> bool:
        try:
            await write(bench, tenants.create_tenant, tenant_id, name, budget_nanousd=1, **by())
        except InvalidRequest:
            return False
        return True

    async def rename(tenant_id: str, name: str) -> bool:
        try:
            await write(bench, tenants.patch_tenant, tenant_id, {"name": name}, **by())
        except InvalidRequest:
            return False
        return True

    async with open_bench(database_url) as bench:
        await bench.tenant("renamed")
        for n in range(10):
            assert sorted(await race(create(f"x{n}", f"y{n}"), create(f"z{n}", f"x{n}"))) == [False, True]
            assert sorted(await race(rename("renamed", f"r{n}"), create(f"r{n}", f"s{n}"))) == [False, True]


# -- keys ---------------------------------------------------------------------------------------------------------


async def test_a_key_is_random_shown_once_and_stored_as_its_hash(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        new = await write(bench, keys.create_key, "key_1", "acme", role="service", models=["small"], **by())
        assert new.secret.startswith("sk-")
        assert len(new.secret) == 3 + 43  # 32 bytes in base64 without padding
        assert new.secret not in repr(new)
        stored = await bench.database.read(lambda connection: connection.execute(select(keys_table)).one())
        assert bytes(stored.key_sha256) == hashlib.sha256(new.secret.encode()).digest()
        assert all(new.secret not in str(value) for value in stored)
        owner = await bench.database.read(lambda c: keys.lookup_key(c, keys.key_digest(new.secret)))
        assert owner is not None
        assert (owner.key, owner.tenant.tenant_id, owner.key.models) == (new.key, "acme", ("small",))
        assert await bench.database.read(lambda c: keys.lookup_key(c, keys.key_digest(new.secret + "x"))) is None
        assert keys.key_digest("sk-\udc80") != keys.key_digest("sk-?")


async def test_revoked_expired_and_rotated_keys_open_nothing(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        old = await write(bench, keys.create_key, "key_1", "acme", expires_at_ms=START_MS + 10, **by())
        assert old.key.usable(START_MS + 9)
        assert not old.key.usable(START_MS + 10)
        new = await write(bench, keys.rotate_key, "key_1", grace_ms=5, **by())
        found = await bench.database.read(lambda c: keys.lookup_key(c, keys.key_digest(old.secret)))
        assert found is not None
        assert (found.key.key_id, found.key.expires_at_ms) == ("key_1", START_MS + 5)
        assert await bench.database.read(lambda c: keys.find_key_id(c, new.secret)) == "key_1"
        again = await write(bench, keys.rotate_key, "key_1", **by())
        with pytest.raises(NotFound):
            await bench.database.read(lambda c: keys.find_key_id(c, new.secret))
        revoked = await write(bench, keys.revoke_key, "key_1", **by())
        assert not revoked.usable(START_MS)
        assert await write(bench, keys.revoke_key, "key_1", actor="x", now_ms=START_MS + 99) == revoked
        with pytest.raises(InvalidRequest, match="revoked"):
            await write(bench, keys.rotate_key, "key_1", **by())
        trail = await bench.database.read(list_trail)
        assert not any(secret in str(trail) for secret in (old.secret, new.secret, again.secret))
        assert [event.action for event in trail][:2] == ["key.revoke", "key.rotate"]


@pytest.mark.parametrize(
    "requested",
    [{"role": "root"}, {"expires_at_ms": START_MS}, {"budget_nanousd": -1}, {"window": "30d"}, {"models": ["x" * 257]}],
)
async def test_a_key_that_cannot_be_is_refused(sqlite_url: str, requested: dict[str, Any]) -> None:
    async with open_bench(sqlite_url) as bench:
        with pytest.raises(InvalidRequest):
            await write(bench, keys.create_key, "key_1", "acme", **requested, **by())
        with pytest.raises(NotFound):
            await write(bench, keys.create_key, "key_1", "nobody", **by())
        assert await bench.database.read(keys.list_keys) == []


async def test_a_key_s_budget_can_be_given_changed_and_taken_away(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        key = await bench.key()
        await write(bench, keys.set_key_budget, key.key_id, 100, window="1d", **by())
        held = await bench.held(60, key=key.key_id)
        assert isinstance((await bench.reserve(41, key=key.key_id))[1], Refused)
        with pytest.raises(InvalidRequest):
            await write(bench, keys.set_key_budget, key.key_id, 59, **by())
        freed = await write(bench, keys.set_key_budget, key.key_id, None, **by())
        assert (freed.balance, freed.window) == (None, None)
        assert isinstance((await bench.reserve(5_000, key=key.key_id))[1], Reserved)
        await bench.ledger.settle(bench.bill(held, 60))  # the hold was made on the key's account, and ends there


# -- sessions -----------------------------------------------------------------------------------------------------


async def test_a_session_is_opened_raised_lowered_and_closed(database_url: str) -> None:
    async with open_bench(database_url) as bench:

        async def change(**more: Any) -> Any:
            return await write(
                bench,
                session_accounts.change_session,
                "acme",
                "s1",
                default_nanousd=500,
                max_nanousd=9_000,
                **more,
                **by(),
            )

        assert (await change()).balance == Balance(500, 0, 0)
        assert (await change(budget_nanousd=800, expected_turns=12)).expected_turns == 12
        await bench.held(300)
        assert (await change(budget_nanousd=10)).balance == Balance(300, 300, 0)
        assert (await change(budget_nanousd=9_000)).balance == Balance(9_000, 300, 0)
        assert (await change(state="closed")).state == "closed"
        for requested in ({"budget_nanousd": 9_001}, {"budget_nanousd": -1}, {"state": "half"}, {"expected_turns": 0}):
            with pytest.raises(InvalidRequest):
                await change(**requested)
        with pytest.raises(NotFound):
            await bench.database.read(lambda c: session_accounts.get_session(c, "acme", "s2"))


async def test_the_same_session_id_under_two_tenants_is_two_sessions(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.tenant("rival")
        await bench.held(10, ceiling=100)
        await bench.held(20, ceiling=200, tenant="rival")
        listed = await bench.database.read(lambda c: session_accounts.list_sessions(c, "rival"))
        assert [session.balance for session in listed] == [Balance(200, 20, 0)]


# -- windows ------------------------------------------------------------------------------------------------------


async def test_a_window_starts_again_at_its_boundary_and_what_is_reserved_stays_reserved(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.tenant("daily", 1_000, window="1d")
        boundary_ms = (await bench.show("daily")).reset_at_ms
        assert boundary_ms == int(datetime(2027, 1, 16, tzinfo=UTC).timestamp()) * 1000
        spent = await bench.held(700, tenant="daily")
        await bench.ledger.settle(bench.bill(spent, 700))
        running = await bench.held(200, tenant="daily", ttl_ms=9 * DAY_MS)
        assert isinstance((await bench.reserve(200, tenant="daily"))[1], Refused)
        assert (await bench.sweep(boundary_ms - 1)).reset == 0
        assert (await bench.sweep(boundary_ms)).reset == 1
        assert (await bench.sweep(boundary_ms)).reset == 0
        assert (await bench.show("daily")).balance == Balance(1_000, 200, 0)
        await bench.ledger.settle(bench.bill(running, 150))
        tenant = await bench.show("daily")
        assert (tenant.balance, tenant.reset_at_ms) == (Balance(1_000, 0, 150), boundary_ms + DAY_MS)


async def test_a_turn_at_the_boundary_does_not_wait_for_the_sweeper(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.tenant("daily", 1_000, window="1d")
        key = await bench.key("daily", budget_nanousd=500, window="12h")
        op = await bench.held(500, tenant="daily", key=key.key_id)
        await bench.ledger.settle(bench.bill(op, 600))
        assert isinstance((await bench.reserve(450, tenant="daily", key=key.key_id))[1], Refused)
        bench.hands.at_ms = START_MS + DAY_MS
        _, outcome = await bench.reserve(450, tenant="daily", key=key.key_id)
        assert isinstance(outcome, Reserved)
        assert outcome.tenant == Balance(1_000, 450, 0)


async def test_two_replicas_that_reset_under_load_lose_no_new_spending(postgres_url: str) -> None:
    async with open_bench(postgres_url) as one, replica(postgres_url, one.hands) as two:
        for n in range(20):
            await one.tenant(f"t{n}", 10_000, window="1d")
            op = await one.held(100, tenant=f"t{n}")
            await one.ledger.settle(one.bill(op, 100))
        one.hands.at_ms = START_MS + DAY_MS

        async def turn(bench: Bench, n: int) -> None:
            op = await bench.held(30, tenant=f"t{n}", session=f"s{bench is one}")
            await bench.ledger.settle(bench.bill(op, 30))

        results = await race(
            *(turn(bench, n) for n in range(20) for bench in (one, two)),
            *(b.ledger.sweep() for b in (one, two)),
        )
        assert len(results) == 42
        for n in range(20):
            assert (await one.show(f"t{n}")).balance == Balance(10_000, 0, 60)
        resets = await one.database.read(
            lambda c: c.execute(text("SELECT count(*) FROM ledger_entries WHERE kind = 'reset'")).scalar_one()
        )
        assert resets == 20


async def test_a_changed_window_ends_at_its_own_boundary(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        changed = await write(bench, tenants.patch_tenant, "acme", {"window": "1mo"}, **by())
        assert changed.reset_at_ms == int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1000
        changed = await write(bench, tenants.patch_tenant, "acme", {"window": None}, **by())
        assert (changed.window, changed.reset_at_ms) == (None, None)


@pytest.mark.parametrize(
    ("tenant_id", "name", "param"),
    [
        ("judge", "acme", "tenant_id"),
        ("ten_1", "judge", "name"),
        ("second~answers", "acme", "tenant_id"),
        ("ten_1", "second~answers", "name"),
    ],
)
async def test_the_gateway_s_own_tenants_are_no_client_s(
    database_url: str, tenant_id: str, name: str, param: str
) -> None:
    with transaction(database_url) as connection:
        with pytest.raises(InvalidRequest) as refused:
            tenants.create_tenant(connection, tenant_id, name, budget_nanousd=1, actor="t", now_ms=1)
        assert refused.value.param == param
        tenants.create_tenant(connection, "ten_2", "acme", budget_nanousd=1, actor="t", now_ms=1)
        with pytest.raises(InvalidRequest):
            tenants.patch_tenant(connection, "ten_2", {"name": "judge"}, actor="t", now_ms=1)
