"""All errors that clients can receive; `as_body` gives OpenAI's JSON shape.

    GatewayError
    +-- InternalError            500   a bug in the gateway
    +-- InvalidRequest           400   malformed or out of range; before any reservation
    |     +-- ContextLengthExceeded
    +-- InvalidApiKey            401
    +-- SessionBudgetExceeded    402
    |     +-- ParentBudgetExceeded
    +-- TenantBudgetExceeded     402
    |     +-- KeyBudgetExceeded
    +-- RequestBudgetExceeded    402
    +-- Forbidden                403
    +-- NotFound                 404
    |     +-- ModelNotFound
    +-- MethodNotAllowed         405
    +-- RequestTimeout           408
    +-- IdempotencyInFlight      409
    +-- ChargeResolved           409
    +-- SessionPaused            409
    +-- RequestTooLarge          413
    +-- UnsupportedMediaType     415
    +-- IdempotencyMismatch      422
    +-- RateLimited              429
    +-- HeadersTooLarge          431
    +-- UpstreamRejected         4xx   the provider refused the request
    +-- UpstreamError            502
    +-- UpstreamTimeout          504
    +-- Unavailable              503
        +-- LedgerUnavailable
        |     +-- LedgerUnsure
        +-- Overloaded
        |     +-- ProviderOverloaded
        +-- Draining

Messages never contain text of an upstream or a database, or a caller's secret: a provider that echoes the request's
headers would leak its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class GatewayError(Exception):
    """Base of all errors that become an HTTP response."""

    status: ClassVar[int] = 500
    code: str = "internal_error"
    type: str = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers: dict[str, str] = dict(headers or {})
        self.details: dict[str, Any] = dict(details or {})

    def as_body(self) -> dict[str, Any]:
        """OpenAI's error object, with `details` as additional fields."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | self.details}


class InternalError(GatewayError):
    """A bug in the gateway, never caused by a client's input alone.

    The server closes the connection after it, so a client must not use it again.
    """

    def __init__(self) -> None:
        super().__init__("internal error", headers={"Connection": "close"})


class InvalidRequest(GatewayError):
    """The request is malformed or out of range; nothing was reserved."""

    status, code, type = 400, "invalid_request", "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt is too long for every eligible model; clients shorten it and retry."""

    code = "context_length_exceeded"


class InvalidApiKey(GatewayError):
    """The API key is missing, unknown, revoked or expired."""

    status, code, type = 401, "invalid_api_key", "authentication_error"


class SessionBudgetExceeded(GatewayError):
    """The session's budget is spent."""

    status, code, type = 402, "session_budget_exceeded", "insufficient_quota"


class ParentBudgetExceeded(SessionBudgetExceeded):
    """The budget of a session above is spent."""


class TenantBudgetExceeded(GatewayError):
    """The tenant's budget is spent."""

    status, code, type = 402, "tenant_budget_exceeded", "insufficient_quota"


class KeyBudgetExceeded(TenantBudgetExceeded):
    """The key's budget is spent.

    The operator raises it, like the tenant's, so both have the code that clients know.
    """


class RequestBudgetExceeded(GatewayError):
    """No answer fits the request's own limit (X-Route-Max-USD)."""

    status, code, type = 402, "request_budget_exceeded", "insufficient_quota"


class Forbidden(GatewayError):
    """The key is valid but lacks the right."""

    status, code, type = 403, "forbidden", "permission_error"


class NotFound(GatewayError):
    """No such object, or it belongs to another tenant."""

    status, code, type = 404, "not_found", "invalid_request_error"


class ModelNotFound(NotFound):
    """No such model, or the caller may not use it."""

    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    """The route exists with other methods."""

    status, code, type = 405, "method_not_allowed", "invalid_request_error"


class RequestTimeout(GatewayError):
    """The request did not arrive completely in time."""

    status, code, type = 408, "request_timeout", "invalid_request_error"


class IdempotencyInFlight(GatewayError):
    """An earlier request with this idempotency key is still running."""

    status, code, type = 409, "idempotency_in_flight", "invalid_request_error"


class ChargeResolved(GatewayError):
    """The charge was settled or released before, in another way."""

    status, code, type = 409, "charge_resolved", "invalid_request_error"


class SessionPaused(GatewayError):
    """The session takes no turns until it is resumed."""

    status, code, type = 409, "session_paused", "invalid_request_error"


class RequestTooLarge(GatewayError):
    """The body exceeds the configured size."""

    status, code, type = 413, "request_too_large", "invalid_request_error"


class UnsupportedMediaType(GatewayError):
    """The body is not uncompressed JSON."""

    status, code, type = 415, "unsupported_media_type", "invalid_request_error"


class IdempotencyMismatch(GatewayError):
    """An earlier request with this idempotency key had another body."""

    status, code, type = 422, "idempotency_mismatch", "invalid_request_error"


class RateLimited(GatewayError):
    """A rate or concurrency limit is reached, or money is held by other turns."""

    status, code, type = 429, "rate_limited", "rate_limit_error"


class HeadersTooLarge(GatewayError):
    """The request's head exceeds the configured size."""

    status, code, type = 431, "headers_too_large", "invalid_request_error"


class UpstreamRejected(GatewayError):
    """The provider refused the request; its status and known codes are passed on, not its text."""

    status, code, type = 400, "upstream_rejected", "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, param=param, headers=headers)
        self.rejected_status = status
        if code is not None:
            self.code = code
        if type is not None:
            self.type = type


class UpstreamError(GatewayError):
    """No provider answered, after retries and fallbacks."""

    status, code, type = 502, "upstream_error", "server_error"


class UpstreamTimeout(GatewayError):
    """The provider did not answer in time, after retries and fallbacks."""

    status, code, type = 504, "upstream_timeout", "server_error"


class Unavailable(GatewayError):
    """The gateway cannot serve the request now; retry later."""

    status, code, type = 503, "unavailable", "server_error"


class LedgerUnavailable(Unavailable):
    """The database cannot answer now."""

    code = "ledger_unavailable"


class LedgerUnsure(LedgerUnavailable):
    """The connection died during the operation, which may be committed now or later."""


class Overloaded(Unavailable):
    """The gateway has too much concurrent work."""

    code = "overloaded"


class ProviderOverloaded(Overloaded):
    """Every provider that could answer has too much work, after retries and fallbacks."""


class Draining(Unavailable):
    """The gateway is shutting down."""

    code = "draining"


def http_status(error: GatewayError) -> int:
    """The HTTP status of an error; for a rejected request the provider's."""
    return error.rejected_status if isinstance(error, UpstreamRejected) else error.status
