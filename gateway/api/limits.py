"""The front door: what is refused before any of it is read, and the short way to the busiest routes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.health import Lifecycle
from gateway.database.database import DatabaseStartError
from gateway.errors import Draining, GatewayError, InternalError, InvalidRequest, LedgerUnavailable, Overloaded
from gateway.http import error_response

Endpoint = Callable[[Request], Awaitable[ASGIApp]]


class Admission:
    """Pure ASGI, outermost: refuses work while draining or beyond the parallel limit, before reading any of it.

    `direct` are the endpoints of the busiest routes, by method and path: they are asked without a walk through the
    application's layers, and answer the same.
    """

    def __init__(
        self,
        app: ASGIApp,
        lifecycle: Lifecycle,
        parallel_limit: int,
        direct: Mapping[tuple[str, str], Endpoint] = MappingProxyType({}),
    ) -> None:
        self.app = app
        self._direct = direct
        self._lifecycle = lifecycle
        self._parallel_limit = parallel_limit
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if scope["type"] != "http" or scope["path"] in ("/livez", "/readyz", "/metrics"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        endpoint = self._direct.get((scope["method"], scope["path"]))
        self._active += 1
        try:
            if endpoint is None:
                await self.app(scope, receive, send)
            else:
                await _answer(endpoint, scope, receive, send)
        finally:
            self._active -= 1

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and end. A database that cannot be served from is one line for the operator, without a traceback."""

        async def told(message: Message) -> None:
            if isinstance(sys.exception(), DatabaseStartError):
                message = {**message, "message": f"database: {sys.exception()}"}
            await send(message)

        with contextlib.suppress(DatabaseStartError):
            await self.app(scope, receive, told)

    def _refusal(self, scope: Scope) -> GatewayError | None:
        if self._lifecycle.draining:
            return Draining("this replica is shutting down; try another", headers={"Retry-After": "1"})
        if not self._lifecycle.started:
            return LedgerUnavailable("the ledger is not available yet", headers={"Retry-After": "1"})
        if self._active >= self._parallel_limit:
            return Overloaded("too many requests at once; try again", headers={"Retry-After": "1"})
        if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
            return InvalidRequest("the address: expected no NUL, which no id has and no database takes")
        return None


async def _answer(endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
    """What the application's exception handlers would make of it, without them."""
    try:
        answer = await endpoint(Request(scope, receive))
    except GatewayError as error:
        answer = error_response(error)
    except Exception:
        await error_response(InternalError("internal error"))(scope, receive, send)
        raise  # the server writes it into its log
    await answer(scope, receive, send)
