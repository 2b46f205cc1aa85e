"""Authentication: the API key decides the tenant, always.

Keys are looked up by their SHA-256, which is also the cache key. The master key is the admin key and calls the API as
the tenant `default`. A key of role `service` may act for other tenants by header, and create them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from gateway.accounts import keys, tenants
from gateway.accounts.jwt import MAX_TOKEN_CHARS, Identity, TokenVerifier, looks_like_token
from gateway.accounts.tenants import Tenant
from gateway.clock import Clock, NewId, elapsed_s, now_ms
from gateway.config.settings import NO_LIMITS, RateQuota
from gateway.config.values import Secret
from gateway.database.database import Database
from gateway.errors import Forbidden, InvalidApiKey, InvalidRequest, LedgerUnavailable, Overloaded
from gateway.http import read_budget
from gateway.request_ids import note_tenant

DEFAULT_TENANT = "default"
MASTER_KEY_ID = "key_master"
OWN_ORIGINS = {"key_judge": "judge", "key_second": tenants.SECOND}
"""Origin of the gateway's own turns (gateway/turn/judge.py, second_answers.py) by keys that no client can present."""
JUDGE_KEY_ID, SECOND_KEY_ID = OWN_ORIGINS
CACHE_S = 2.0
"""Validity of a cached key; a revocation reaches every replica within this time."""
CACHE_KEYS = 10_000
OUTAGE_KEY_S = 900.0
"""Validity of a cached key in an outage, for a tenant with `"outage": "open"`."""
LOOKUP_TIMEOUT_S = 5.0
"""A database silent for longer is an outage (503); reports may take longer."""
MAX_KEY_CHARS = 512
MAX_UNCACHED_LOOKUPS = 4
"""Concurrent look-ups of uncached keys: a flood of guesses must not block known keys."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller and the tenant that pays."""

    tenant_id: str
    key_id: str
    role: str
    has_budget: bool
    key_models: frozenset[str] | None
    tenant_models: frozenset[str] | None = None
    max_session_nanousd: int | None = None
    outage: str = "closed"
    store_text: bool = False
    wrap_up: bool | None = None
    """Whether the tenant's sessions end with a last answer; None: as configured."""
    tenant_quota: RateQuota = NO_LIMITS
    key_quota: RateQuota = NO_LIMITS
    tenant_soft_nanousd: int | None = None
    key_over_soft: bool = False
    """Whether the key had spent more than its soft budget when it was looked up."""

    @property
    def is_admin(self) -> bool:
        """True for the master key and keys of role admin."""
        return self.role == "admin"

    @property
    def is_own(self) -> bool:
        """True for the gateway itself."""
        return self.key_id in OWN_ORIGINS

    @property
    def is_second(self) -> bool:
        """True for second answers."""
        return self.key_id == SECOND_KEY_ID

    @property
    def origin(self) -> str | None:
        """Origin of turns that are not a client's: "judge", "second" or "admin"; else None.

        The master key is a client too: it calls as the tenant `default`, and small installations have no other key.
        """
        if self.is_own:
            return OWN_ORIGINS[self.key_id]
        return "admin" if self.is_admin and self.key_id != MASTER_KEY_ID else None


class Authenticator:
    """Authenticator of request headers, with a short-lived cache of keys."""

    def __init__(
        self,
        database: Database,
        master_key: Secret,
        clock: Clock,
        new_id: NewId,
        elapsed: Clock = elapsed_s,
        tokens: TokenVerifier | None = None,
    ) -> None:
        """`elapsed` measures the age of what is cached: a wall clock that is set must not extend a revoked key."""
        self._tokens = tokens
        self._database = database
        self._master_sha256 = keys.key_digest(master_key.reveal())
        self._clock = clock
        self._elapsed = elapsed
        self._new_id = new_id
        self._cache: OrderedDict[bytes, tuple[float, Caller, float]] = OrderedDict()
        self._down_until_s = 0.0
        self._lookups: dict[bytes, asyncio.Task[Caller]] = {}
        self._uncached_lookups = asyncio.Semaphore(MAX_UNCACHED_LOOKUPS)

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        """A caller that may spend: not read-only. Raises InvalidApiKey, Forbidden, InvalidRequest.

        A service key opens the tenant that its headers name, and sets the budget that they name.
        """
        caller = await self._payer(headers, reads=False)
        if caller.role == "read-only":
            raise Forbidden("this key is read-only and cannot spend")
        return caller

    async def reader(self, headers: Mapping[str, str]) -> Caller:
        """A caller of any role, acting for another tenant when a service key's headers name one.

        Nothing is written: a tenant that does not exist has nothing to read.
        """
        return await self._payer(headers, reads=True)

    async def _payer(self, headers: Mapping[str, str], *, reads: bool) -> Caller:
        caller = await self._acting(await self._own(headers), headers, reads=reads)
        note_tenant(caller.tenant_id)
        return caller

    async def _acting(self, caller: Caller, headers: Mapping[str, str], *, reads: bool) -> Caller:
        wanted = _named_tenant(headers)
        budget_nanousd = read_budget(headers, "X-Tenant-Budget-USD")
        if wanted is None and budget_nanousd is None:
            return caller
        if caller.role != "service":
            raise Forbidden("X-Tenant-Id and X-Tenant-Budget-USD need a key of role service")
        if wanted is None:
            raise InvalidRequest("X-Tenant-Budget-USD: expected X-Tenant-Id as well", param="X-Tenant-Id")
        if not tenants.TENANT_NAME.fullmatch(wanted):
            raise InvalidRequest(f"X-Tenant-Id: expected {tenants.EXPECTED_NAME}", param="X-Tenant-Id")
        if reads:
            return await self._reading_for(caller, wanted)
        return await self._acting_for(caller, wanted, budget_nanousd)

    async def admin(self, headers: Mapping[str, str]) -> Caller:
        """A caller with the master key or role admin. Raises InvalidApiKey, Forbidden."""
        caller = await self._own(headers)
        if not caller.is_admin:
            raise Forbidden("this needs the master key or a key of role admin")
        return caller

    def known_tenant(self, headers: Mapping[str, str]) -> str:
        """The tenant of a cached key, otherwise "": for fair queueing, not for authentication."""
        try:
            digest = keys.key_digest(_bearer(headers))
        except (InvalidApiKey, InvalidRequest):
            return ""
        cached = self._cache.get(digest)
        if cached is None:
            return ""
        caller = cached[1]
        wanted = _named_tenant(headers) if caller.role == "service" else None
        if wanted is None:
            return caller.tenant_id
        acting = self._cache.get(_acting_digest(caller, wanted))
        return wanted if acting is None else acting[1].tenant_id

    def forget(self) -> None:
        """Clear the cache after a change, so that every key is looked up again."""
        self._cache.clear()
        self._lookups.clear()

    async def _own(self, headers: Mapping[str, str]) -> Caller:
        bearer = _bearer(headers)
        digest = keys.key_digest(bearer)
        now_s = self._elapsed()
        cached = self._cache.get(digest)
        if cached is not None and cached[0] > now_s:
            return cached[1]
        if now_s < self._down_until_s and (known := self._cached_in_outage(digest)) is not None:
            return known
        # Concurrent requests with one key share a look-up, rather than flood the database when the cache expires.
        lookup = self._lookups.get(digest)
        if lookup is None:
            lookup = self._lookups[digest] = asyncio.get_running_loop().create_task(self._look_up(digest, bearer))
            lookup.add_done_callback(lambda done: self._lookup_done(digest, done))
        return await asyncio.shield(lookup)

    def _lookup_done(self, digest: bytes, lookup: asyncio.Task[Caller]) -> None:
        if self._lookups.get(digest) is lookup:
            del self._lookups[digest]
        if not lookup.cancelled():
            lookup.exception()  # raised in the waiting requests; read here in case none is left

    async def _look_up(self, digest: bytes, bearer: str) -> Caller:
        if self._tokens is not None and looks_like_token(bearer):
            identity = await self._tokens.identify(bearer)
            return await self._read_owner(digest, lambda connection: self._holder_of(connection, identity))
        if hmac.compare_digest(digest, self._master_sha256):
            return await self._read_owner(digest, self._master)
        if digest in self._cache:
            return await self._read_owner(digest, lambda connection: self._owner_of(connection, digest))
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                await self._uncached_lookups.acquire()
        except TimeoutError:
            raise Overloaded("too many unknown keys at once; try again", headers={"Retry-After": "2"}) from None
        try:
            return await self._read_owner(digest, lambda connection: self._owner_of(connection, digest))
        finally:
            self._uncached_lookups.release()

    async def _read_owner(self, digest: bytes, read: Callable[[Connection], tuple[Caller, float]]) -> Caller:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                caller, lasts_s = await self._database.read(read)
        except (TimeoutError, LedgerUnavailable) as error:
            self._down_until_s = self._elapsed() + CACHE_S
            if (known := self._cached_in_outage(digest)) is not None:
                return known
            if isinstance(error, LedgerUnavailable):
                raise
            raise LedgerUnavailable(
                "the key cannot be looked up now; try again", headers={"Retry-After": "2"}
            ) from error
        if self._lookups.get(digest) is asyncio.current_task():  # otherwise the result predates a change
            self._remember(digest, caller, lasts_s)
        return caller

    def _cached_in_outage(self, digest: bytes) -> Caller | None:
        """The owner of a recently cached key, if its tenant is served in an outage."""
        cached = self._cache.get(digest)
        if cached is None or cached[1].outage != "open":
            return None
        now_s = self._elapsed()
        return cached[1] if now_s < min(cached[0] + OUTAGE_KEY_S, cached[2]) else None

    def _remember(self, digest: bytes, caller: Caller, lasts_s: float = math.inf) -> None:
        now_s = self._elapsed()
        self._cache[digest] = (now_s + min(CACHE_S, lasts_s), caller, now_s + lasts_s)
        self._cache.move_to_end(digest)
        if len(self._cache) > CACHE_KEYS:
            self._cache.popitem(last=False)

    def _owner_of(self, connection: Connection, digest: bytes) -> tuple[Caller, float]:
        """The owner of a usable key, and for how many seconds the key remains valid."""
        at_ms = now_ms(self._clock)
        owner = keys.lookup_key(connection, digest)
        if owner is None or not owner.key.usable(at_ms):
            raise _unknown_key()
        key = owner.key
        caller = Caller(
            tenant_id=key.tenant_id,
            key_id=key.key_id,
            role=key.role,
            has_budget=key.balance is not None,
            key_models=_names(key.models),
            key_quota=key.quota,
            key_over_soft=key.over_soft_budget,
        )
        lasts_s = math.inf if key.expires_at_ms is None else (key.expires_at_ms - at_ms) / 1000
        return _with_tenant(caller, owner.tenant), lasts_s

    def _holder_of(self, connection: Connection, identity: Identity) -> tuple[Caller, float]:
        """The caller that a valid token speaks for, and for how many seconds."""
        tenant = tenants.find_client(connection, identity.tenant)
        if tenant is None:
            raise Forbidden(f'this token\'s tenant "{identity.tenant[:64]}" does not exist; create it first')
        caller = Caller(
            tenant_id=tenant.tenant_id, key_id=identity.key_id, role=identity.role, has_budget=False, key_models=None
        )
        return _with_tenant(caller, tenant), identity.valid_s

    def _master(self, connection: Connection) -> tuple[Caller, float]:
        tenant = tenants.get_tenant(connection, DEFAULT_TENANT)
        caller = Caller(tenant_id=DEFAULT_TENANT, key_id=MASTER_KEY_ID, role="admin", has_budget=False, key_models=None)
        return _with_tenant(caller, tenant), math.inf

    async def _reading_for(self, caller: Caller, wanted: str) -> Caller:
        """The caller as another tenant's reader. Raises InvalidRequest for the gateway's own tenants."""
        digest = _acting_digest(caller, wanted)
        cached = self._cache.get(digest)
        if cached is not None and cached[0] > self._elapsed():
            return cached[1]
        found = await self._database.read(lambda connection: tenants.find_client(connection, wanted))
        if found is None:
            tenants.refuse_own(wanted, "X-Tenant-Id")
            return replace(caller, tenant_id=wanted)  # not kept: the tenant's first turn gives it another id
        acting = _with_tenant(caller, found)
        self._remember(digest, acting)
        return acting

    async def _acting_for(self, caller: Caller, wanted: str, budget_nanousd: int | None) -> Caller:
        """The caller with another tenant's budget; creates an unknown tenant.

        Raises InvalidRequest for the gateway's own tenants.
        """
        digest = _acting_digest(caller, wanted)
        cached = self._cache.get(digest)
        if budget_nanousd is None and cached is not None and cached[0] > self._elapsed():
            return cached[1]

        def open_tenant(connection: Connection) -> Tenant:
            at_ms = now_ms(self._clock)
            found = tenants.find_client(connection, wanted)
            if found is None:
                tenants.refuse_own(wanted, "X-Tenant-Id")
                try:
                    found = tenants.create_tenant(
                        connection, self._new_id("ten"), wanted, budget_nanousd=budget_nanousd or 0,
                        actor=caller.key_id, now_ms=at_ms,
                    )  # fmt: skip
                except InvalidRequest:  # a concurrent turn of this new tenant created it
                    found = tenants.find_client(connection, wanted)
                    if found is None:
                        raise
            if budget_nanousd is None or budget_nanousd == found.balance.granted_nanousd:
                return found
            changes = {"budget_nanousd": budget_nanousd}
            try:
                return tenants.patch_tenant(connection, found.tenant_id, changes, actor=caller.key_id, now_ms=at_ms)
            except InvalidRequest as error:  # in the caller's own words
                name = "X-Tenant-Budget-USD"
                raise InvalidRequest(f"{name}: {error.message.removeprefix('budget: ')}", param=name) from None

        acting = _with_tenant(caller, await self._database.write(open_tenant))
        self._remember(digest, acting)
        return acting


def _named_tenant(headers: Mapping[str, str]) -> str | None:
    """The tenant that the headers name, in UTF-8; HTTP libraries read headers as latin-1."""
    named = headers.get("x-tenant-id")
    if named is None or named.isascii():
        return named
    try:
        return named.encode("latin-1").decode()
    except UnicodeError:
        return named


def _acting_digest(caller: Caller, wanted: str) -> bytes:
    return hashlib.sha256(f"{caller.key_id}\0{wanted}".encode()).digest()


def _bearer(headers: Mapping[str, str]) -> str:
    """The key in `Authorization: Bearer ...` or Anthropic's `x-api-key`. Raises InvalidApiKey, InvalidRequest."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    bearer = bearer.strip() if scheme.lower() == "bearer" else ""
    other = headers.get("x-api-key", "").strip()
    if bearer and other and bearer != other:
        raise InvalidRequest("Authorization, x-api-key: expected one key, got two", param="x-api-key")
    key = bearer or other
    if not 1 <= len(key) <= (MAX_TOKEN_CHARS if looks_like_token(key) else MAX_KEY_CHARS):
        raise _unknown_key()
    return key


def _unknown_key() -> InvalidApiKey:
    return InvalidApiKey("invalid API key: expected Authorization: Bearer sk-...")


def _with_tenant(caller: Caller, tenant: Tenant) -> Caller:
    """The caller with this tenant's budget and rules."""
    return replace(
        caller,
        tenant_id=tenant.tenant_id,
        tenant_models=_names(tenant.models),
        max_session_nanousd=tenant.max_session_nanousd,
        outage=tenant.outage,
        store_text=tenant.store_text,
        wrap_up=tenant.wrap_up,
        tenant_quota=tenant.quota,
        tenant_soft_nanousd=tenant.soft_budget_nanousd,
    )


def _names(models: Sequence[str] | None) -> frozenset[str] | None:
    return None if models is None else frozenset(models)
