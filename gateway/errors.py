"""Every error a client can meet, in one tree; `as_body` gives OpenAI's JSON shape.

    GatewayError
    +-- InternalError            500   a defect of ours
    +-- InvalidRequest           400   malformed or out of range; before any reservation
    |     +-- ContextLengthExceeded
    +-- InvalidApiKey            401
    +-- SessionBudgetExceeded    402
    +-- TenantBudgetExceeded     402
    +-- RequestBudgetExceeded    402
    +-- Forbidden                403
    +-- NotFound                 404
    |     +-- ModelNotFound
    +-- MethodNotAllowed         405
    +-- RequestTimeout           408
    +-- IdempotencyInFlight      409
    +-- RequestTooLarge          413
    +-- UnsupportedMediaType     415
    +-- IdempotencyMismatch      422
    +-- RateLimited              429
    +-- HeadersTooLarge          431
    +-- UpstreamRejected         4xx   the provider's own verdict on the request
    +-- UpstreamError            502
    +-- UpstreamTimeout          504
    +-- Unavailable              503
        +-- LedgerUnavailable
        |     +-- LedgerUnsure
        +-- Overloaded
        +-- Draining

Messages are written here or by the raiser from its own words. Text of an upstream, of a database or of a caller's
secret never enters one: a provider that echoes the request's headers would put its own key there.
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
        """OpenAI's error object; `details` adds fields of ours beside the four fixed ones."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | self.details}


class InternalError(GatewayError):
    """A defect of the gateway; never the answer to what a client sent."""


class InvalidRequest(GatewayError):
    status, code, type = 400, "invalid_request", "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt is longer than what the models that could answer read; clients shorten it and ask again."""

    code = "context_length_exceeded"


class InvalidApiKey(GatewayError):
    status, code, type = 401, "invalid_api_key", "authentication_error"


class SessionBudgetExceeded(GatewayError):
    status, code, type = 402, "session_budget_exceeded", "insufficient_quota"


class TenantBudgetExceeded(GatewayError):
    status, code, type = 402, "tenant_budget_exceeded", "insufficient_quota"


class RequestBudgetExceeded(GatewayError):
    status, code, type = 402, "request_budget_exceeded", "insufficient_quota"


class Forbidden(GatewayError):
    status, code, type = 403, "forbidden", "permission_error"


class NotFound(GatewayError):
    status, code, type = 404, "not_found", "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    status, code, type = 405, "method_not_allowed", "invalid_request_error"


class RequestTimeout(GatewayError):
    """The request did not arrive whole in time."""

    status, code, type = 408, "request_timeout", "invalid_request_error"


class IdempotencyInFlight(GatewayError):
    status, code, type = 409, "idempotency_in_flight", "invalid_request_error"


class RequestTooLarge(GatewayError):
    status, code, type = 413, "request_too_large", "invalid_request_error"


class UnsupportedMediaType(GatewayError):
    status, code, type = 415, "unsupported_media_type", "invalid_request_error"


class IdempotencyMismatch(GatewayError):
    status, code, type = 422, "idempotency_mismatch", "invalid_request_error"


class RateLimited(GatewayError):
    status, code, type = 429, "rate_limited", "rate_limit_error"


class HeadersTooLarge(GatewayError):
    status, code, type = 431, "headers_too_large", "invalid_request_error"


class UpstreamRejected(GatewayError):
    """The provider refused the request itself; its status and a code that clients know are passed on, not its words."""

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
    status, code, type = 502, "upstream_error", "server_error"


class UpstreamTimeout(GatewayError):
    status, code, type = 504, "upstream_timeout", "server_error"


class Unavailable(GatewayError):
    status, code, type = 503, "unavailable", "server_error"


class LedgerUnavailable(Unavailable):
    code = "ledger_unavailable"


class LedgerUnsure(LedgerUnavailable):
    """The connection died under the operation: it may have been committed, or may still be."""


class Overloaded(Unavailable):
    code = "overloaded"


class Draining(Unavailable):
    code = "draining"


def http_status(error: GatewayError) -> int:
    """The status to answer with; a rejected request carries the provider's."""
    return error.rejected_status if isinstance(error, UpstreamRejected) else error.status
