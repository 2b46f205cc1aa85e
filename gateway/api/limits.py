"""The front door: what is refused before any of it is read, what waits, and the short way to the busiest routes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.health import Lifecycle
from gateway.api.places import RETRY_LATER, Place, Places
from gateway.api.refusals import refusal
from gateway.database.database import DatabaseStartError
from gateway.errors import (
    Draining,
    GatewayError,
    InternalError,
    InvalidRequest,
    LedgerUnavailable,
    Overloaded,
    RateLimited,
)

Endpoint = Callable[[Request], Awaitable[ASGIApp]]
TenantOf = Callable[[Mapping[str, str]], str]
FREE_BODY_BYTES = 64 * 2**10
"""Of every body: what the server holds anyway before it asks the client to wait."""
MACHINES = frozenset(
    (
        "/", "/livez", "/readyz", "/metrics", "/openapi.json",
        "/health", "/health/liveliness", "/health/liveness", "/health/readiness",
    )
)  # fmt: skip
"""What needs neither a key nor the ledger, and must be answered however busy this process is."""


class Bodies:
    """Bytes of request bodies that this process holds; no tenant may have more than half of them."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._held_bytes = 0
        self._of: Counter[str] = Counter()

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def hold(self, tenant: str, size: int) -> None:
        """Count bytes that came. Raises RateLimited, Overloaded; then none of them is counted."""
        if self._of[tenant] + size > self._total_bytes / 2:
            raise RateLimited(
                f"the bodies of this tenant's requests under way exceed {self._total_bytes // 2} bytes; try again",
                headers=RETRY_LATER,
            )
        if self._held_bytes + size > self._total_bytes:
            raise Overloaded("too many large requests at once; try again", headers=RETRY_LATER)
        self._held_bytes += size
        self._of[tenant] += size

    def drop(self, tenant: str, size: int) -> None:
        self._held_bytes -= size
        self._of[tenant] -= size
        if self._of[tenant] <= 0:
            del self._of[tenant]


class Admission:
    """Pure ASGI, outermost. While draining or starting nothing is taken; a place is, once a request is there whole.

    `direct` are the endpoints of the busiest routes, by method and path: they are asked without a walk through the
    application's layers, and answer the same. `tenant_of` tells from headers whose key was looked up a moment ago.
    """

    def __init__(
        self,
        app: ASGIApp,
        lifecycle: Lifecycle,
        places: Places,
        bodies: Bodies,
        tenant_of: TenantOf = lambda headers: "",
        direct: Mapping[tuple[str, str], Endpoint] = MappingProxyType({}),
        cors_origins: Sequence[str] = (),
        on_refusal: Callable[[str], None] = lambda code: None,
    ) -> None:
        self.app = app
        # No credentials: a browser sends no cookie along, so a page can use only the key that it was given.
        self._for_browsers = CORSMiddleware(
            self._admit, allow_origins=cors_origins, allow_methods=("GET", "POST"), allow_headers=("*",),
            expose_headers=("*",),
        ) if cors_origins else None  # fmt: skip
        self._direct = direct
        self._lifecycle = lifecycle
        self._places = places
        self._bodies = bodies
        self._tenant_of = tenant_of
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif self._for_browsers is not None and scope["type"] == "http" and not _is_operators(scope["path"]):
            await self._for_browsers(scope, receive, send)
        else:
            await self._admit(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in MACHINES:
            await self.app(scope, receive, send)
            return
        visit = _Visit(scope, receive, self._places, self._bodies, self._tenant_of)
        try:
            self._check(scope)
        except GatewayError as error:
            self._on_refusal(error.code)
            await refusal(scope["path"], error)(scope, receive, send)
            return
        endpoint = self._direct.get((scope["method"], scope["path"]))
        _VISIT.set(visit)
        try:
            await visit.begin()
            if endpoint is None:
                await self.app(scope, visit.receive, send)
            else:
                await _answer(endpoint, scope, visit.receive, send)
        except _NotBegun as stopped:
            await refusal(scope["path"], stopped.error)(scope, receive, send)
        except asyncio.CancelledError:
            if not self._lifecycle.draining:
                raise
            # The time to drain is up. An answer that has begun can only be cut.
            with contextlib.suppress(RuntimeError):
                await refusal(scope["path"], _draining())(scope, receive, send)
        finally:
            visit.end()
            if visit.refused is not None:
                self._on_refusal(visit.refused)

    def shed(self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> GatewayError | None:
        """Why a turn is refused before anything is made of its request; None where the long way must decide.

        Of a known tenant, while too many wait: the same answer as by the long way, for a fraction of its cost.
        """
        if method != b"POST" or b"%" in url or self._for_browsers is not None or not self._lifecycle.ready:
            return None
        if url.startswith((b"/admin", b"/v1/admin", b"/ui")) or not url.startswith(b"/"):
            return None
        tenant = self._tenant_of(_whose(headers))
        if not tenant:
            return None
        try:
            self._places.check(tenant)
        except GatewayError as error:
            self._on_refusal(error.code)
            return error
        return None

    def _check(self, scope: Scope) -> None:
        """Raise what can be told without reading anything."""
        if self._lifecycle.draining:
            raise _draining()
        if not self._lifecycle.started:
            raise LedgerUnavailable("the ledger is not available yet", headers={"Retry-After": "1"})
        if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
            raise InvalidRequest("the address: expected no NUL, which no id has and no database takes")

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and end. A database that cannot be served from is one line for the operator, without a traceback."""

        async def told(message: Message) -> None:
            if isinstance(sys.exception(), DatabaseStartError):
                message = {**message, "message": f"database: {sys.exception()}"}
            await send(message)

        with contextlib.suppress(DatabaseStartError):
            await self.app(scope, receive, told)


_WHOSE = (b"authorization", b"x-api-key", b"x-tenant-id")


def _whose(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _WHOSE}


class _NotBegun(Exception):
    """A request was refused before anything else could answer it."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(error.message)
        self.error = error


class _Visit:
    """One request: takes a place when its body is there, counts the body's bytes, gives both back at its end."""

    __slots__ = (
        "_bodies",
        "_counted",
        "_place",
        "_places",
        "_receive",
        "_scope",
        "_size",
        "_tenant",
        "_tenant_of",
        "_whole",
        "refused",
    )

    def __init__(self, scope: Scope, receive: Receive, places: Places, bodies: Bodies, tenant_of: TenantOf) -> None:
        self._scope = scope
        self._receive = receive
        self._places = places
        self._bodies = bodies
        self._tenant_of = tenant_of
        self._tenant = ""
        self._size = self._counted = 0
        self._whole = False
        self._place: Place | None = None
        self.refused: str | None = None

    async def begin(self) -> None:
        """What has no body is there already; what an operator asks for waits for nobody's turns.

        Raises _NotBegun for what would be refused once it was read: it is not read.
        """
        if _is_operators(self._scope["path"]):
            self._whole = True
            return
        headers = dict(self._scope["headers"])
        try:
            tenant = self._payer()
            if tenant:
                self._places.check(tenant)
            if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
                await self._take_place()
        except GatewayError as error:
            self.refused = error.code
            raise _NotBegun(error) from None

    async def receive(self) -> Message:
        """The next message. Raises GatewayError inside the endpoint that reads, which answers with it."""
        message = await self._receive()
        if message["type"] == "http.request":
            try:
                self._count(len(message.get("body", b"")))
                if not self._whole and not message.get("more_body", False):
                    await self._take_place()
            except GatewayError as error:
                self.refused = error.code
                raise
        return message

    def end(self) -> None:
        if self._place is not None:
            self._places.give_back(self._place)
        if self._counted:
            self._bodies.drop(self._payer(), self._counted)

    async def _take_place(self) -> None:
        self._whole = True
        self._place = await self._places.take(self._payer())

    def call_left(self) -> None:
        if self._place is not None:
            self._places.started(self._place)

    def _count(self, size: int) -> None:
        self._size += size
        more = max(0, self._size - FREE_BODY_BYTES) - self._counted
        if more > 0:
            self._bodies.hold(self._payer(), more)
            self._counted += more

    def _payer(self) -> str:
        """The tenant as far as it is known; the same from the first byte counted to the end."""
        if not self._tenant and self._place is None and not self._counted:
            self._tenant = self._tenant_of(_whose(self._scope["headers"]))
        return self._tenant


_VISIT: ContextVar[_Visit | None] = ContextVar("visit", default=None)
"""The request that this task, or the one that began it, answers."""


def call_left() -> None:
    """Whatever request is being answered here: its call is on its way, so that the next one may be started."""
    visit = _VISIT.get()
    if visit is not None:
        visit.call_left()


def _is_operators(path: str) -> bool:
    """Whether an address is for those who run the gateway: their pages are its own, and they get in when it is full."""
    return path.removeprefix("/v1").startswith(("/admin/", "/ui/")) or path == "/ui"


def _draining() -> Draining:
    return Draining("this replica is shutting down; try another", headers={"Retry-After": "1"})


async def _answer(endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
    """What the application's exception handlers would make of it, without them."""
    try:
        answer = await endpoint(Request(scope, receive))
    except GatewayError as error:
        answer = refusal(scope["path"], error)
    except Exception:
        await refusal(scope["path"], InternalError("internal error"))(scope, receive, send)
        raise  # the server writes it into its log
    await answer(scope, receive, send)
