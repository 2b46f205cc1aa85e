"""Who calls: the key decides the tenant, and nothing a caller sends beside it does."""

from __future__ import annotations

import ast
import asyncio
import base64
import inspect
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, update

from gateway.accounts import auth, keys, tenants
from gateway.accounts.auth import CACHE_S, DEFAULT_TENANT, Authenticator, _bearer
from gateway.accounts.jwt import Identity
from gateway.accounts.keys import NewKey
from gateway.clock import time_ordered_ids
from gateway.config.values import Secret
from gateway.database import tables
from gateway.database.database import Database
from gateway.errors import Forbidden, InvalidApiKey, InvalidRequest, LedgerUnavailable
from gateway.ledger.audit import audit
from gateway.ui import pages, sign_in

MASTER = "sk-master-of-these-tests-aF3k9Zq2"


class Time:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class House:
    """Tenants `default` and `acme`, an authenticator over them, and a wall clock and elapsed time to move."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock, self.elapsed = Time(), Time()
        self.new_id = time_ordered_ids(self.clock)
        self.auth = Authenticator(database, Secret(MASTER), self.clock, self.new_id, self.elapsed)

    def wait(self, seconds: float) -> None:
        """Let time pass, without anybody setting a clock."""
        self.clock.now_s += seconds
        self.elapsed.now_s += seconds

    async def key(self, role: str = "tenant", **options: Any) -> NewKey:
        def make(connection: Connection) -> NewKey:
            return keys.create_key(connection, self.new_id("key"), "acme", role=role, actor="test", now_ms=1, **options)

        return await self.database.write(make)

    async def tenant(self, tenant_id: str) -> tenants.Tenant:
        return await self.database.read(lambda c: tenants.get_tenant(c, tenant_id))


@asynccontextmanager
async def house(url: str, **acme: Any) -> AsyncIterator[House]:
    database = Database(url, serving=True)
    await database.start()

    def fill(connection: Connection) -> None:
        for name, rules in ((DEFAULT_TENANT, {}), ("acme", acme)):
            tenants.create_tenant(connection, name, name, budget_nanousd=1_000, actor="test", now_ms=1, **rules)

    try:
        await database.write(fill)
        yield House(database)
        assert await database.read(audit) == []
    finally:
        await database.close()


def bearer(secret: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"} | {name.replace("_", "-"): value for name, value in more.items()}


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_a_key_stands_for_its_tenant_with_the_tenant_s_rules(database_url: str) -> None:
    rules = {"models": ["small", "big"], "max_session_nanousd": 77, "store_text": True, "outage": "open"}
    async with house(database_url, **rules) as here:
        made = await here.key(models=["small"], budget_nanousd=5)
        caller = await here.auth.caller(bearer(made.secret))
        assert (caller.tenant_id, caller.key_id, caller.role) == ("acme", made.key.key_id, "tenant")
        assert (caller.key_models, caller.tenant_models) == (frozenset({"small"}), frozenset({"small", "big"}))
        assert (caller.max_session_nanousd, caller.store_text, caller.outage, caller.has_budget) == (
            77, True, "open", True,
        )  # fmt: skip
        master = await here.auth.admin(bearer(MASTER))
        assert (master.tenant_id, master.role, master.is_admin) == (DEFAULT_TENANT, "admin", True)


NONSENSE: list[Mapping[str, str]] = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": "Bearer null"},
    {"authorization": "Bearer sk-" + "x" * 600},
    {"authorization": "Bearer " + "x" * 2**20},
    {"authorization": "Bearer sk-\0"},
    {"authorization": "Bearer ключ"},
    {"authorization": "Bearer ' OR 1=1 --"},
    {"authorization": "Basic " + base64.b64encode(b"user:" + MASTER.encode()).decode()},
    {"authorization": MASTER},
    {"authorization": f"Bearer {MASTER}x"},
    {"authorization": f"Bearer {MASTER[:-1]}"},
    {"x-api-key": "sk-unknown"},
    {"cookie": f"key={MASTER}"},
]


async def test_whatever_is_no_key_is_refused_in_the_same_words_and_never_becomes_somebody(database_url: str) -> None:
    async with house(database_url) as here:
        words = set()
        for headers in NONSENSE:
            for ask in (here.auth.caller, here.auth.reader, here.auth.admin):
                with pytest.raises(InvalidApiKey) as refused:
                    await ask(headers)
                words.add((refused.value.message, refused.value.status))
        [(message, status)] = words
        assert status == 401
        assert MASTER[:6] not in message


async def test_anthropic_s_header_carries_a_key_too_and_the_scheme_s_case_does_not_matter(sqlite_url: str) -> None:
    async with house(sqlite_url) as here:
        made = await here.key()
        for headers in ({"x-api-key": made.secret}, {"authorization": f"bearer  {made.secret} "}):
            assert (await here.auth.caller(headers)).tenant_id == "acme"


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=60))
def test_whatever_the_authorization_header_holds_it_is_a_bounded_key_or_refused(value: str) -> None:
    try:
        key = _bearer({"authorization": value})
    except InvalidApiKey:
        return
    assert 1 <= len(key) <= 512
    assert keys.key_digest(key)


# -- roles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "spends", "administers"),
    [("tenant", True, False), ("service", True, False), ("admin", True, True), ("read-only", False, False)],
)
async def test_a_role_opens_its_own_doors_only(sqlite_url: str, role: str, spends: bool, administers: bool) -> None:
    async with house(sqlite_url) as here:
        headers = bearer((await here.key(role)).secret)
        assert (await here.auth.reader(headers)).tenant_id == "acme"
        for ask, may in ((here.auth.caller, spends), (here.auth.admin, administers)):
            if may:
                assert (await ask(headers)).role == role
            else:
                with pytest.raises(Forbidden):
                    await ask(headers)


# -- for other tenants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["tenant", "admin", "read-only"])
@pytest.mark.parametrize("header", [{"x-tenant-id": "acme"}, {"x-tenant-budget-usd": "1"}, {"x-tenant-id": ""}])
async def test_only_a_service_key_may_name_a_tenant(sqlite_url: str, role: str, header: dict[str, str]) -> None:
    async with house(sqlite_url) as here:
        with pytest.raises(Forbidden):
            await here.auth.reader(bearer((await here.key(role)).secret) | header)
        if role == "admin":
            with pytest.raises(Forbidden):
                await here.auth.reader(bearer(MASTER) | header)


async def test_a_service_key_opens_a_tenant_with_a_budget_and_pays_from_its_purse(database_url: str) -> None:
    async with house(database_url) as here:
        secret = (await here.key("service")).secret
        headers = bearer(secret, x_tenant_id="customer-1", x_tenant_budget_usd="0.5")
        caller = await here.auth.caller(headers)
        opened = await here.tenant(caller.tenant_id)
        assert (opened.name, opened.balance.granted_nanousd) == ("customer-1", 500_000_000)
        assert caller.tenant_id not in ("acme", "customer-1")
        assert (await here.auth.caller(bearer(secret, x_tenant_id="customer-1"))).tenant_id == caller.tenant_id
        assert (await here.auth.caller(bearer(secret))).tenant_id == "acme"
        assert (await here.auth.caller(bearer(secret, x_tenant_id="acme"))).tenant_id == "acme"
        raised = bearer(secret, x_tenant_id="customer-1", x_tenant_budget_usd="0.75")
        assert (await here.auth.caller(raised)).tenant_id == caller.tenant_id
        assert (await here.tenant(caller.tenant_id)).balance.granted_nanousd == 750_000_000


async def test_reading_for_a_tenant_opens_none_and_changes_no_budget(database_url: str) -> None:
    async with house(database_url) as here:
        named = bearer((await here.key("service", models=["small"])).secret, x_tenant_id="customer-1")
        reader = await here.auth.reader(named | {"x-tenant-budget-usd": "0.5"})
        assert (reader.tenant_id, reader.key_models) == ("customer-1", frozenset({"small"}))  # of which nothing exists
        assert len(await here.database.read(tenants.list_tenants)) == 2
        with pytest.raises(InvalidRequest, match="tenant of the gateway itself"):
            await here.auth.reader(named | {"x-tenant-id": "judge"})
        payer = await here.auth.caller(named | {"x-tenant-budget-usd": "0.25"})
        assert (await here.auth.reader(named | {"x-tenant-budget-usd": "0.5"})).tenant_id == payer.tenant_id
        assert (await here.tenant(payer.tenant_id)).balance.granted_nanousd == 250_000_000


@pytest.mark.parametrize("name", ["ann@example.com", "team+x", "日本", "a" * 128])
async def test_a_service_key_names_tenants_as_they_may_be_called(sqlite_url: str, name: str) -> None:
    """HTTP libraries read a header's UTF-8 as latin-1."""
    async with house(sqlite_url) as here:
        secret = (await here.key("service")).secret
        wire = name.encode().decode("latin-1")
        caller = await here.auth.caller(bearer(secret, x_tenant_id=wire, x_tenant_budget_usd="1"))
        assert (await here.tenant(caller.tenant_id)).name == name
        assert (await here.auth.caller(bearer(secret, x_tenant_id=wire))).tenant_id == caller.tenant_id
        assert here.auth.known_tenant(bearer(secret, x_tenant_id=wire)) == caller.tenant_id
        for wrong in ("a b", "a/b", "a" * 129, "", "a~b", "日本".encode("shift-jis").decode("latin-1")):
            with pytest.raises(InvalidRequest, match="X-Tenant-Id: expected 1 to 128 letters"):
                await here.auth.caller(bearer(secret, x_tenant_id=wrong))


async def test_nobody_spends_the_money_of_the_gateway_s_own_tenants(sqlite_url: str) -> None:
    async def identify(bearer: str) -> Identity:
        return Identity("ann", "judge", "tenant", 60.0)

    async with house(sqlite_url) as here:
        await here.database.write(lambda c: tenants.ensure_own(c, tenants.JUDGE_TENANT, 500, 1))
        verifier: Any = SimpleNamespace(identify=identify)
        by_token = Authenticator(here.database, Secret(MASTER), here.clock, here.new_id, here.elapsed, verifier)
        with pytest.raises(Forbidden, match="does not exist"):
            await by_token.caller(bearer("eyJhIjoxfQ.e30.x"))
        acting = bearer((await here.key("service")).secret, x_tenant_id="judge")
        with pytest.raises(InvalidRequest, match="tenant of the gateway itself"):
            await here.auth.caller(acting)
        # A client's tenant may have had the name before it was refused.
        named = update(tables.tenants).where(tables.tenants.c.tenant_id == "acme").values(name="judge")
        await here.database.write(lambda c: c.execute(named))
        assert (await by_token.caller(bearer("eyJhIjoyfQ.e30.x"))).tenant_id == "acme"
        assert (await here.auth.caller(acting)).tenant_id == "acme"


async def test_a_tenant_opened_without_a_budget_can_spend_nothing(sqlite_url: str) -> None:
    async with house(sqlite_url) as here:
        caller = await here.auth.caller(bearer((await here.key("service")).secret, x_tenant_id="customer-1"))
        assert (await here.tenant(caller.tenant_id)).balance.granted_nanousd == 0


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"x-tenant-budget-usd": "1"}, "X-Tenant-Id"),
        ({"x-tenant-id": "a b"}, "X-Tenant-Id"),
        ({"x-tenant-id": "judge"}, "X-Tenant-Id"),  # the gateway's own
        ({"x-tenant-id": "x" * 129}, "X-Tenant-Id"),
        ({"x-tenant-id": "a\0"}, "X-Tenant-Id"),
        ({"x-tenant-id": "c", "x-tenant-budget-usd": "-1"}, "X-Tenant-Budget-USD"),
        ({"x-tenant-id": "c", "x-tenant-budget-usd": "NaN"}, "X-Tenant-Budget-USD"),
    ],
)
async def test_a_bad_tenant_header_is_refused_by_name_and_opens_nothing(
    sqlite_url: str, headers: dict[str, str], param: str
) -> None:
    async with house(sqlite_url) as here:
        with pytest.raises(InvalidRequest) as refused:
            await here.auth.caller(bearer((await here.key("service")).secret) | headers)
        assert refused.value.param == param
        assert len(await here.database.read(tenants.list_tenants)) == 2


async def test_many_first_turns_of_a_new_tenant_at_once_all_meet_the_same_one(database_url: str) -> None:
    async with house(database_url) as here:
        headers = bearer((await here.key("service")).secret, x_tenant_id="customer-1", x_tenant_budget_usd="0.5")
        others = [Authenticator(here.database, Secret(MASTER), here.clock, here.new_id) for _ in range(8)]
        callers = await asyncio.gather(*(auth.caller(headers) for auth in others for _ in range(3)))
        assert len({caller.tenant_id for caller in callers}) == 1
        assert len(await here.database.read(tenants.list_tenants)) == 3
        assert (await here.tenant(callers[0].tenant_id)).balance.granted_nanousd == 500_000_000


# -- time --------------------------------------------------------------------------------------------------------------


async def test_a_revocation_elsewhere_is_known_here_within_the_cache_s_time(database_url: str) -> None:
    assert CACHE_S < 5.0
    async with house(database_url) as here:
        made = await here.key()
        await here.auth.caller(bearer(made.secret))
        await here.database.write(lambda c: keys.revoke_key(c, made.key.key_id, actor="test", now_ms=2))
        await here.auth.caller(bearer(made.secret))
        here.wait(CACHE_S)
        with pytest.raises(InvalidApiKey):
            await here.auth.caller(bearer(made.secret))


@pytest.mark.parametrize("step_s", [-86_400.0, -5.0, 3_600.0])
async def test_a_clock_that_is_set_makes_no_cached_key_younger_or_older(database_url: str, step_s: float) -> None:
    async with house(database_url) as here:
        made = await here.key()
        await here.auth.caller(bearer(made.secret))
        await here.database.write(lambda c: keys.revoke_key(c, made.key.key_id, actor="test", now_ms=2))
        here.clock.now_s += step_s
        await here.auth.caller(bearer(made.secret))
        here.elapsed.now_s += CACHE_S
        with pytest.raises(InvalidApiKey):
            await here.auth.caller(bearer(made.secret))


async def test_a_revocation_made_here_is_known_at_once(sqlite_url: str) -> None:
    async with house(sqlite_url) as here:
        made = await here.key()
        await here.auth.caller(bearer(made.secret))
        await here.database.write(lambda c: keys.revoke_key(c, made.key.key_id, actor="test", now_ms=2))
        here.auth.forget()
        with pytest.raises(InvalidApiKey):
            await here.auth.caller(bearer(made.secret))


async def test_a_key_ends_at_its_hour_whatever_is_cached(sqlite_url: str) -> None:
    async with house(sqlite_url) as here:
        made = await here.key(expires_at_ms=1_001_000)
        await here.auth.caller(bearer(made.secret))
        here.wait(1.0)
        with pytest.raises(InvalidApiKey):
            await here.auth.caller(bearer(made.secret))


async def test_a_rotated_key_s_old_secret_stops_and_its_new_one_is_the_same_caller(sqlite_url: str) -> None:
    async with house(sqlite_url) as here:
        old = await here.key()
        new = await here.database.write(lambda c: keys.rotate_key(c, old.key.key_id, actor="test", now_ms=2))
        here.auth.forget()
        assert (await here.auth.caller(bearer(new.secret))).key_id == old.key.key_id
        with pytest.raises(InvalidApiKey):
            await here.auth.caller(bearer(old.secret))


async def test_both_secrets_of_a_rotated_key_are_one_key_until_the_grace_period_ends(sqlite_url: str) -> None:
    async with house(sqlite_url) as here:
        old = await here.key(budget_nanousd=1_000, rpm=5)
        new = await here.database.write(
            lambda c: keys.rotate_key(c, old.key.key_id, actor="test", now_ms=1_000_000, grace_ms=5_000)
        )
        first = await here.auth.caller(bearer(old.secret))
        assert first == await here.auth.caller(bearer(new.secret))
        assert (first.key_id, first.has_budget, first.key_quota.rpm) == (old.key.key_id, True, 5)
        here.wait(5.0)
        with pytest.raises(InvalidApiKey):
            await here.auth.caller(bearer(old.secret))
        assert (await here.auth.caller(bearer(new.secret))).key_id == old.key.key_id


async def test_revoking_a_rotated_key_ends_its_earlier_secret_too(sqlite_url: str) -> None:
    async with house(sqlite_url) as here:
        old = await here.key()
        new = await here.database.write(
            lambda c: keys.rotate_key(c, old.key.key_id, actor="test", now_ms=1_000_000, grace_ms=60_000)
        )
        await here.database.write(lambda c: keys.revoke_key(c, old.key.key_id, actor="test", now_ms=2))
        for secret in (old.secret, new.secret):
            with pytest.raises(InvalidApiKey):
                await here.auth.caller(bearer(secret))


async def test_a_revoked_service_key_acts_for_nobody_any_more(sqlite_url: str) -> None:
    async with house(sqlite_url) as here:
        made = await here.key("service")
        headers = bearer(made.secret, x_tenant_id="customer-1", x_tenant_budget_usd="1")
        await here.auth.caller(headers)
        await here.database.write(lambda c: keys.revoke_key(c, made.key.key_id, actor="test", now_ms=2))
        here.wait(CACHE_S)
        with pytest.raises(InvalidApiKey):
            await here.auth.caller(headers)


async def test_a_database_that_is_away_is_503_and_never_401(sqlite_url: str) -> None:
    async with house(sqlite_url) as here:
        await here.database.close()
        with pytest.raises(LedgerUnavailable):
            await here.auth.caller(bearer("sk-anything"))
        await here.database.start()


class CountedReads:
    """Counts a database's reads, and holds them back until they may go on."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        self.may_go_on = asyncio.Event()
        read = database.read

        async def counted(run: Any) -> Any:
            self.reads += 1
            await self.may_go_on.wait()
            return await read(run)

        monkeypatch.setattr(database, "read", counted)


async def test_a_crowd_with_one_key_waits_for_one_look_up(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(sqlite_url) as home:
        key = (await home.key()).secret
        counted = CountedReads(home.database, monkeypatch)
        crowd = [asyncio.create_task(home.auth.caller(bearer(key))) for _ in range(100)]
        await asyncio.sleep(0)
        crowd[0].cancel()  # the first of them leaves, and the others are answered all the same
        await asyncio.sleep(0)
        counted.may_go_on.set()
        answers = await asyncio.gather(*crowd[1:])
        assert {caller.tenant_id for caller in answers} == {"acme"}
        assert counted.reads == 1


async def test_guessed_keys_by_the_hundred_keep_no_known_key_waiting(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(sqlite_url) as home:
        key = (await home.key()).secret
        await home.auth.caller(bearer(key))
        home.wait(CACHE_S + 1)
        counted = CountedReads(home.database, monkeypatch)
        guesses = [asyncio.create_task(home.auth.caller(bearer(f"sk-guess-{n}"))) for n in range(300)]
        known = asyncio.create_task(home.auth.caller(bearer(key)))
        await asyncio.sleep(0.01)
        assert counted.reads == 5  # four guesses, and the known one
        counted.may_go_on.set()
        assert (await known).tenant_id == "acme"
        refused = await asyncio.gather(*guesses, return_exceptions=True)
        assert {type(error) for error in refused} == {InvalidApiKey}


async def test_a_look_up_from_before_a_change_made_here_is_not_remembered(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(sqlite_url) as home:
        made = await home.key()
        counted = CountedReads(home.database, monkeypatch)
        before = asyncio.create_task(home.auth.caller(bearer(made.secret)))
        await asyncio.sleep(0)
        home.auth.forget()
        counted.may_go_on.set()
        await before
        await home.auth.caller(bearer(made.secret))
        assert counted.reads == 2


def test_what_is_compared_with_a_secret_is_compared_in_constant_time() -> None:
    """`==` ends at the first byte that differs; only the database, which looks digests up, may use it."""
    kept = ("digest", "sha256", "signature", "csrf")
    found = [
        ast.unparse(node)
        for module in (auth, keys, sign_in, pages)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq)
    ]
    assert [each for each in found if any(word in each for word in kept) and not each.startswith("keys.c.")] == []
