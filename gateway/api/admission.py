"""Admission: early refusals, queueing, and a fast path for the busiest routes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.health import Lifecycle
from gateway.api.refusals import refusal
from gateway.api.server import Shedding
from gateway.api.slots import RETRY_LATER, RunningSlot, Slots
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
from gateway.request_ids import REQUEST, REQUEST_ID_HEADER, RequestIds

Endpoint = Callable[[Request], Awaitable[ASGIApp]]
TenantOf = Callable[[Mapping[str, str]], str]
FREE_BODY_BYTES = 64 * 2**10
"""Uncounted part of every body: the server buffers it anyway before it applies back-pressure."""
_MACHINES = (
    "/livez", "/readyz", "/metrics", "/openapi.json",
    "/health", "/health/liveliness", "/health/liveness", "/health/readiness",
)  # fmt: skip
MACHINES = frozenset(("/", *_MACHINES, *(f"/v1{path}" for path in _MACHINES)))
"""Routes that need neither key nor ledger and are answered even under overload."""


class Bodies:
    """Counts bytes of buffered request bodies; a tenant may hold at most half of the limit."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._held_bytes = 0
        self._of: Counter[str] = Counter()

    def hold(self, tenant: str, size: int) -> None:
        """Count received bytes. Raises RateLimited, Overloaded; then none of them is counted."""
        if self._of[tenant] + size > self._total_bytes / 2:
            raise RateLimited(
                f"the bodies of this tenant's concurrent requests exceed {self._total_bytes // 2} bytes; try again",
                headers=RETRY_LATER,
            )
        if self._held_bytes + size > self._total_bytes:
            raise Overloaded("too many large requests at once; try again", headers=RETRY_LATER)
        self._held_bytes += size
        self._of[tenant] += size

    def drop(self, tenant: str, size: int) -> None:
        """Stop counting bytes that `hold` counted."""
        self._held_bytes -= size
        self._of[tenant] -= size
        if self._of[tenant] <= 0:
            del self._of[tenant]


class Admission:
    """Outermost ASGI layer: refuses while starting or draining; a complete request takes a slot.

    `direct` holds the endpoints of the busiest routes by method and path; they are called without the application's
    layers, with the same result. `tenant_of` returns the tenant of a recently looked-up key, from headers.
    """

    def __init__(
        self,
        app: ASGIApp,
        lifecycle: Lifecycle,
        slots: Slots,
        bodies: Bodies,
        tenant_of: TenantOf = lambda headers: "",
        direct: Mapping[tuple[str, str], Endpoint] = MappingProxyType({}),
        cors_origins: Sequence[str] = (),
        on_refusal: Callable[[str], None] = lambda code: None,
    ) -> None:
        self.app = app
        # No credentials: browsers send no cookies, so a page can use only the key that it was given.
        self._for_browsers = CORSMiddleware(
            self._admit, allow_origins=cors_origins, allow_methods=("GET", "POST"), allow_headers=("*",),
            expose_headers=("*",),
        ) if cors_origins else None  # fmt: skip
        self._direct = direct
        self._lifecycle = lifecycle
        self._slots = slots
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
        visit = _Visit(scope, receive, self._slots, self._bodies, self._tenant_of)
        try:
            self._check(scope)
        except GatewayError as error:
            self._on_refusal(error.code)
            await refusal(scope["path"], error)(scope, receive, send)
            return
        endpoint = self._direct.get((scope["method"], scope["path"]))
        REQUEST.set(visit)
        try:
            await visit.begin()
            if endpoint is None:
                await self.app(scope, visit.receive, send)
            else:
                await self._answer(endpoint, scope, visit.receive, send)
        except _NotBegun as stopped:
            self._on_refusal(stopped.error.code)
            await refusal(scope["path"], stopped.error)(scope, receive, send)
        except asyncio.CancelledError:
            if not self._lifecycle.draining:
                raise
            # The drain time is over. A response that has started can only be cut off.
            with contextlib.suppress(RuntimeError):
                await refusal(scope["path"], _draining())(scope, receive, send)
                self._on_refusal(Draining.code)
        finally:
            visit.end()

    async def _answer(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Call an endpoint and render errors like the application's exception handlers."""
        try:
            answer = await endpoint(Request(scope, receive))
        except GatewayError as error:
            self._on_refusal(error.code)
            answer = refusal(scope["path"], error)
        except Exception:
            self._on_refusal(InternalError.code)
            await refusal(scope["path"], InternalError())(scope, receive, send)
            raise  # the server logs it
        await answer(scope, receive, send)

    def shed(self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> GatewayError | None:
        """The error of a turn that can be refused unparsed; None when the normal path must decide.

        Applies to known tenants under overload: the same response as the normal path, at a fraction of its cost.
        """
        if not self._slots.is_crowded:
            return None
        if method != b"POST" or b"%" in url or self._for_browsers is not None or not self._lifecycle.ready:
            return None
        if url.startswith((b"/admin", b"/v1/admin", b"/ui")) or not url.startswith(b"/"):
            return None
        named = _told(headers)
        tenant = self._tenant_of(named)
        if not tenant:
            return None
        error = self._slots.foresee(tenant, patience_s(named))
        if error is not None:
            self._on_refusal(error.code)
        return error

    def shedding(self) -> Shedding:
        """The server's part: refusals before a request is parsed."""
        return Shedding(self.shed, tuple(_TOLD), lambda: self._slots.is_crowded)

    def _check(self, scope: Scope) -> None:
        """Raise the errors that need no part of the body."""
        if self._lifecycle.draining:
            raise _draining()
        if not self._lifecycle.started:
            raise LedgerUnavailable("the ledger is not available yet", headers={"Retry-After": "1"})
        if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
            raise InvalidRequest("the address: expected no NUL character, which no id contains")

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the lifespan. An unusable database is reported as one line, without a traceback."""

        async def send_reason(message: Message) -> None:
            if isinstance(sys.exception(), DatabaseStartError):
                message = {**message, "message": f"database: {sys.exception()}"}
            await send(message)

        with contextlib.suppress(DatabaseStartError):
            await self.app(scope, receive, send_reason)


_PATIENCE = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Seconds that the official SDKs of OpenAI and Anthropic wait for an answer, by their own account."""
_TOLD = frozenset((b"authorization", b"x-api-key", b"x-tenant-id", *(name.encode() for name in _PATIENCE)))


def _told(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that admission reads."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _TOLD}


def patience_s(headers: Mapping[str, str]) -> float:
    """Seconds for which the client waits for its answer; infinite when it does not say."""
    for name in _PATIENCE:
        if name in headers:
            with contextlib.suppress(ValueError):
                if (seconds := float(headers[name])) > 0:
                    return seconds
    return math.inf


class _NotBegun(Exception):
    """The request was refused before any endpoint answered."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(error.message)
        self.error = error


class _Visit(RequestIds):
    """One request: takes a slot when its body has arrived, counts its bytes, returns both at its end."""

    __slots__ = (
        "_bodies",
        "_counted",
        "_receive",
        "_scope",
        "_size",
        "_slot",
        "_slots",
        "_tenant",
        "_tenant_of",
        "_told",
        "_whole",
    )

    def __init__(self, scope: Scope, receive: Receive, slots: Slots, bodies: Bodies, tenant_of: TenantOf) -> None:
        super().__init__((scope.get("extensions") or {}).get(REQUEST_ID_HEADER))
        self._scope = scope
        self._receive = receive
        self._slots = slots
        self._bodies = bodies
        self._tenant_of = tenant_of
        self._told = _told(scope["headers"])
        self._tenant = ""
        self._size = self._counted = 0
        self._whole = False
        self._slot: RunningSlot | None = None

    async def begin(self) -> None:
        """Check the limits; take a slot for a request without a body. Operators' requests need none.

        Raises _NotBegun when the request would be refused after reading: it is not read.
        """
        if _is_operators(self._scope["path"]):
            self._whole = True
            return
        headers = dict(self._scope["headers"])
        try:
            tenant = self._payer()
            if tenant:
                self._slots.check(tenant, patience_s(self._told))
            if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
                await self._take_slot()
        except GatewayError as error:
            raise _NotBegun(error) from None

    async def receive(self) -> Message:
        """The next message. Raises GatewayError inside the reading endpoint, which returns it."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._count(len(message.get("body", b"")))
            if not self._whole and not message.get("more_body", False):
                await self._take_slot()
        return message

    def end(self) -> None:
        if self._slot is not None:
            self._slots.give_back(self._slot)
        if self._counted:
            self._bodies.drop(self._payer(), self._counted)

    async def _take_slot(self) -> None:
        self._whole = True
        self._slot = await self._slots.take(self._payer(), patience_s(self._told))

    def call_left(self) -> None:
        if self._slot is not None:
            self._slots.started(self._slot)

    def _count(self, size: int) -> None:
        self._size += size
        more = max(0, self._size - FREE_BODY_BYTES) - self._counted
        if more > 0:
            self._bodies.hold(self._payer(), more)
            self._counted += more

    def _payer(self) -> str:
        """The tenant if known; unchanged from the first counted byte to the end."""
        if not self._tenant and self._slot is None and not self._counted:
            self._tenant = self._tenant_of(self._told)
        return self._tenant


def call_left() -> None:
    """Report that the current request's call was sent, so that the next request may start."""
    visit = REQUEST.get()
    if isinstance(visit, _Visit):
        visit.call_left()


def _is_operators(path: str) -> bool:
    """Whether an address belongs to operators, who are served even when no slot is free."""
    return path.removeprefix("/v1").startswith(("/admin/", "/ui/")) or path == "/ui"


def _draining() -> Draining:
    return Draining("this replica is shutting down; try another", headers={"Retry-After": "1"})
