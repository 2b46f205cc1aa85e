"""Faults of one upstream attempt.

    UpstreamFault
    +-- ConnectFault      never reached the provider: refused, DNS, TLS, connect or pool timeout
    +-- CallRefused       we did not send it: LiteLLM or our allow-list refused the arguments
    |   +-- MessagesRefused  its provider has no form for the messages
    +-- RejectedFault     4xx: the provider refused the request itself
    |   +-- DialectFault  its server does not have the client's dialect
    +-- CredentialFault   401, 402, 403: the provider refused *our* key or account
    +-- ThrottledFault    429
    +-- FailedFault       5xx, or an error event instead of an answer
    +-- TimeoutFault      no response, or no further chunk, in time
    +-- BrokenFault       reset, cut off, not JSON, too large, without a proper end
        +-- BrokenMidAnswer   an error event after the response had started

`dispatched`: the provider may have billed the call. `retryable`: another attempt cannot pay twice. `on_same_key`: the
failed key may be tried again. Messages for clients are written here; of the provider's message only identifiers and
numbers are used (`gateway.providers.reported_error`), because it may echo the request's headers, and so the key.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from gateway.catalog.usage import ReportedUsage, Usage
from gateway.errors import (
    GatewayError,
    ProviderOverloaded,
    RateLimited,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.providers.meanings import QUOTA
from gateway.providers.reported_error import NO_REPORT, ReportedError

MAX_RETRY_AFTER_S = 86_400.0
OVERLOADED_STATUSES = (498, 529)
"""Groq's status (its flex tier has no capacity), and Anthropic's, which others have adopted."""


_PASSING = (409, 425)
"""Conflict and too early: states of the provider's that pass."""
_LOCKED = 423
_TOO_LARGE = 413
"""Groq's status for a request that alone is above the limit per minute."""
AWS_CREDENTIALS = "aws_access_key_id and aws_secret_access_key, aws_profile_name, or aws_role_name that may be assumed"
AWS_REGION = "aws_region_name"
GOOGLE_CREDENTIALS = "vertex_credentials"
AZURE_CREDENTIALS = "an api_key, an azure_ad_token, or tenant_id, client_id and client_secret"


def credentials_of(error: BaseException) -> str | None:
    """The credentials, or the region, that a cloud's library could not find, or not use."""
    module = type(error).__module__
    if module.startswith("google.auth."):
        return GOOGLE_CREDENTIALS
    if not module.startswith("botocore.exceptions"):
        return None
    return AWS_REGION if "Region" in type(error).__name__ else AWS_CREDENTIALS


class UpstreamFault(Exception):
    """Base class. `status` is the provider's HTTP status, or 0 without a response.

    `retry_after_s` is at most a day; `code` is for clients, `reported` the provider's error, `address` the host
    that could not be reached.
    """

    dispatched: bool = True
    retryable: bool = False
    usage: ReportedUsage = None
    """Usage that the provider reported for the failed call."""
    on_same_key: bool = True

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retry_after_s: float | None = None,
        dispatched: bool | None = None,
        retryable: bool | None = None,
        code: str = "",
        reported: ReportedError = NO_REPORT,
        address: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        asked_s = reported.retry_after_s if retry_after_s is None else retry_after_s
        self.retry_after_s = None if asked_s is None else min(asked_s, MAX_RETRY_AFTER_S)
        self.code = reported.known or code
        self.reported = reported
        self.address = address
        if dispatched is not None:
            self.dispatched = dispatched
        if retryable is not None:
            self.retryable = retryable

    def billed(self, usage: ReportedUsage) -> Self:
        """Add reported usage: the failed call is paid for, so it is not retried."""
        if usage is not None and usage != Usage(0, 0):
            self.usage, self.dispatched, self.retryable = usage, True, False
        return self

    def answer(self) -> GatewayError:
        """The error for the client when no further attempt is made."""
        return UpstreamError(self.message, headers=self._retry_headers())

    def _retry_headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, round(self.retry_after_s)))}


class ConnectFault(UpstreamFault):
    """The provider was not reached."""

    dispatched, retryable = False, True


class CallRefused(UpstreamFault):
    """The gateway or LiteLLM refused the call before sending it."""

    dispatched, retryable = False, False

    def answer(self) -> GatewayError:
        return _rejected(self, 400)

    @classmethod
    def of(cls, param: str, why: str = "the model's provider does not accept this parameter") -> Self:
        """The refusal of one parameter, by its name."""
        return cls(f"{param}: {why}", status=400, reported=ReportedError(param=param))


class MessagesRefused(CallRefused):
    """The messages have no form at this provider; another may have one for them."""

    part = ""
    """The kind of the part that its form has no place for, if it is one."""

    def losing(self, part: str) -> Self:
        """Name the kind of a part that it has no place for."""
        self.part = part
        return self


class RejectedFault(UpstreamFault):
    """The provider refused the request itself."""

    dispatched, retryable = False, False

    def answer(self) -> GatewayError:
        return _rejected(self, self.status)


class DialectFault(RejectedFault):
    """The deployment's server has no such route; that it has was only likely.

    `refusal`: the client's error, which names what needs the dialect.
    """

    def __init__(self, status: int, refusal: GatewayError, reported: ReportedError) -> None:
        super().__init__(
            f"the provider answered with status {status}: it has no such route", status=status, reported=reported
        )
        self._refusal = refusal

    def answer(self) -> GatewayError:
        """The refusal."""
        return self._refusal


class CredentialFault(UpstreamFault):
    """The provider refused our key or account. Retryable on a deployment with another key."""

    dispatched, retryable, on_same_key = False, True, False

    @classmethod
    def missing(cls, expected: str) -> Self:
        """The fault of a call for which the gateway has no credentials that it can use."""
        return cls(
            f"the gateway has no credentials for the model's provider: expected {expected} in the deployment's "
            "litellm_params, or those of the gateway's environment"
        )

    def answer(self) -> GatewayError:
        if self.code == QUOTA:
            return _used_up(self)
        if self.code == "model_not_found":  # a model that the account may not use
            return _rejected(self, 404)
        return super().answer()


class ThrottledFault(UpstreamFault):
    """The provider's rate limit or quota is used up."""

    dispatched, retryable = False, True

    def answer(self) -> GatewayError:
        if self.code == QUOTA:
            return _used_up(self)
        return RateLimited(self.message, headers={"Retry-After": "1"} | self._retry_headers())


class FailedFault(UpstreamFault):
    """The provider failed before it answered."""

    dispatched, retryable = False, True

    def answer(self) -> GatewayError:
        if self.status in OVERLOADED_STATUSES or self.reported.overloads:
            return ProviderOverloaded(self.message, headers={"Retry-After": "5"} | self._retry_headers())
        return super().answer()


class TimeoutFault(UpstreamFault):
    """The provider did not answer in time; it may still bill the call."""

    dispatched, retryable = True, False

    def answer(self) -> GatewayError:
        return UpstreamTimeout(self.message)


class BrokenFault(UpstreamFault):
    """The response broke off or was unreadable; the provider may bill it."""

    dispatched, retryable = True, False


class BrokenMidAnswer(BrokenFault):
    """An error that the provider reported after its response had started."""

    def __init__(self, meaning: UpstreamFault) -> None:
        super().__init__(
            "the provider reported an error in the middle of the answer",
            status=meaning.status,
            reported=meaning.reported,
        )
        self.meaning = meaning

    def answer(self) -> GatewayError:
        """The client's error of `meaning`."""
        return self.meaning.answer()


def _used_up(fault: UpstreamFault) -> GatewayError:
    """OpenAI's error for an account without money, which clients do not repeat."""
    words = f"the provider answered with status {fault.status}: the gateway's account with the provider is used up"
    never = {"x-should-retry": "false"}
    return UpstreamRejected(words, status=429, code=fault.code, type=fault.code, headers=never)


def _rejected(fault: UpstreamFault, status: int) -> GatewayError:
    """The provider's refusal, with a code that clients handle, if known."""
    if not fault.code:
        return UpstreamRejected(fault.message, status=status, param=fault.reported.param or None)
    param = fault.reported.param or None
    words = {"content_filter": "the provider's content filter refused the request"}.get(fault.code, fault.message)
    if fault.code == "context_length_exceeded":
        words, param, status = _overflow_words(fault.reported), param or "messages", 400
    elif fault.code == "content_filter":
        status = 400
    return UpstreamRejected(words, status=status, code=fault.code, param=param)


def _overflow_words(reported: ReportedError) -> str:
    """OpenAI's wording, which clients look for to compact their history."""
    if reported.limit_tokens is None:
        return "the request exceeds the model's maximum context length; shorten the messages or lower max_tokens"
    needed = "" if reported.asked_tokens is None else f", and the request needs {reported.asked_tokens} tokens"
    return (
        f"This model's maximum context length is {reported.limit_tokens} tokens{needed}; "
        "shorten the messages or lower max_tokens"
    )


def fault_from_status(
    status: int, retry_after_s: float | None = None, code: str = "", reported: ReportedError = NO_REPORT
) -> UpstreamFault:
    """The fault for an error status; `reported` is the error in its body.

    A refused request whose error names another kind of failure is one of that kind. As OpenAI's SDK and LiteLLM do, 409
    and 425 are tried again, and 423 when the provider says when. 408, 499, 504 and 524 come from proxies that stopped
    waiting while the provider may still be working: ambiguous.
    """
    summary = f"the provider answered with status {status}"
    kind, why = _kind_of(status)
    if kind is RejectedFault and reported.known == QUOTA and not reported.means:
        reported = replace(reported, known="")  # words that the client may have written
    if kind is RejectedFault and reported.known in ("", "rate_limit_exceeded") and reported.means:
        kind, why = _kind_of(reported.means)
    if reported.overflows and kind not in (CredentialFault, ThrottledFault):
        kind = RejectedFault  # for any status: a retry would be equally long
    elif reported.known == "content_filter" and (kind is FailedFault or status == 403):
        kind = RejectedFault
        why = ": it refused the request"
    elif kind is FailedFault and (status in OVERLOADED_STATUSES or reported.overloads):
        why = ": it is overloaded"
    elif reported.known == QUOTA and kind is RejectedFault:
        kind, why = _kind_of(402)
    fault = kind(f"{summary}{why}", status=status, retry_after_s=retry_after_s, code=code, reported=reported)
    if fault.code == QUOTA or (status == _TOO_LARGE and kind is ThrottledFault):
        fault.on_same_key = False
    elif kind is RejectedFault and not fault.code:
        fault.retryable = status in _PASSING or (status == _LOCKED and fault.retry_after_s is not None)
    return fault


def _kind_of(status: int) -> tuple[type[UpstreamFault], str]:
    if status in (408, 499, 504, 524):
        return TimeoutFault, ": it gave up waiting"
    if status == 402:
        # Passed on, a 402 would look like the session's budget.
        return CredentialFault, ": the gateway's account with it is used up"
    if status in (401, 403):
        return CredentialFault, ": it refused the gateway's credentials"
    if status == 429:
        return ThrottledFault, ": too many requests"
    if 400 <= status < 500 and status not in OVERLOADED_STATUSES:
        return RejectedFault, ": it refused the request"
    return FailedFault, ""
