"""What can go wrong with one upstream attempt, in one tree.

    UpstreamFault
    +-- ConnectFault      never reached the provider: refused, DNS, TLS, connect or pool timeout
    +-- CallRefused       we did not send it: LiteLLM or our allow-list refused the arguments
    +-- RejectedFault     4xx: the provider refused the request itself
    +-- CredentialFault   401, 402, 403: the provider refused *our* key or account
    +-- ThrottledFault    429
    +-- FailedFault       5xx, or an error event instead of an answer
    +-- TimeoutFault      no answer, or no further chunk, in time
    +-- BrokenFault       reset, cut short, not JSON, too large, no real end
        +-- BrokenMidAnswer   an error event after the answer had begun

`dispatched` says whether the provider may have billed, `retryable` whether another attempt may be made without
paying twice. The words of an answer to the client are written here; a provider's text never enters them, because
one that echoes the request's headers would put its own key there.
"""

from __future__ import annotations

from typing import Self

from gateway.catalog.usage import ReportedUsage, Usage
from gateway.errors import GatewayError, RateLimited, UpstreamError, UpstreamRejected, UpstreamTimeout

MAX_RETRY_AFTER_S = 60.0


class UpstreamFault(Exception):
    """Base. `status` is the provider's HTTP status (0: none came), `retry_after_s` its wish, clamped to a minute."""

    dispatched: bool = True
    retryable: bool = False
    usage: ReportedUsage = None
    """What the provider says that the failed call used."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retry_after_s: float | None = None,
        dispatched: bool | None = None,
        retryable: bool | None = None,
        code: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.code = code
        if dispatched is not None:
            self.dispatched = dispatched
        if retryable is not None:
            self.retryable = retryable

    def billed(self, usage: ReportedUsage) -> Self:
        """This fault of a call that used something all the same: it is paid, so it is not made again."""
        if usage is not None and usage != Usage(0, 0):
            self.usage, self.dispatched, self.retryable = usage, True, False
        return self

    def answer(self) -> GatewayError:
        """The error to give the client when no further attempt is made."""
        return UpstreamError(self.message, headers=self._retry_headers())

    def _retry_headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, round(self.retry_after_s)))}


class ConnectFault(UpstreamFault):
    dispatched, retryable = False, True


class CallRefused(UpstreamFault):
    dispatched, retryable = False, False

    def answer(self) -> GatewayError:
        return UpstreamRejected(self.message, status=400)


class RejectedFault(UpstreamFault):
    dispatched, retryable = False, False

    def answer(self) -> GatewayError:
        return UpstreamRejected(self.message, status=self.status)


class CredentialFault(UpstreamFault):
    """Retryable on another deployment: its key is another one. To the client it is our fault, not his."""

    dispatched, retryable = False, True


class ThrottledFault(UpstreamFault):
    dispatched, retryable = False, True

    def answer(self) -> GatewayError:
        return RateLimited(self.message, headers={"Retry-After": "1"} | self._retry_headers())


class FailedFault(UpstreamFault):
    dispatched, retryable = False, True


class TimeoutFault(UpstreamFault):
    dispatched, retryable = True, False

    def answer(self) -> GatewayError:
        return UpstreamTimeout(self.message)


class BrokenFault(UpstreamFault):
    dispatched, retryable = True, False


class BrokenMidAnswer(BrokenFault):
    """The provider reported an error in the middle of its answer: the client is told what `meaning` would tell it."""

    def __init__(self, meaning: UpstreamFault) -> None:
        super().__init__("the provider reported an error in the middle of the answer", status=meaning.status)
        self.meaning = meaning

    def answer(self) -> GatewayError:
        return self.meaning.answer()


def fault_from_status(status: int, retry_after_s: float | None = None, code: str = "") -> UpstreamFault:
    """The fault for an error status, before any token was sent.

    408, 499, 504 and 524 come from middle boxes that gave up on a provider that may be still at work: ambiguous.
    """
    said = f"the provider answered with status {status}"
    if status in (408, 499, 504, 524):
        return TimeoutFault(f"{said}: it gave up waiting", status=status, retry_after_s=retry_after_s, code=code)
    if status in (401, 402, 403):
        # 402 is the gateway's account with the provider; passed on, it would look like the session's budget.
        return CredentialFault(f"{said}: it refused the gateway's credentials", status=status, code=code)
    if status == 429:
        return ThrottledFault(f"{said}: too many requests", status=status, retry_after_s=retry_after_s, code=code)
    if 400 <= status < 500:
        return RejectedFault(f"{said}: it refused the request", status=status, code=code)
    return FailedFault(said, status=status, retry_after_s=retry_after_s, code=code)
