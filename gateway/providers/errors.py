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
paying twice, `on_same_key` whether the key that failed may be tried again. The words of an answer to the client are
written here; of the provider's own only names and numbers enter them (`gateway.providers.told`), because a text that
echoes the request's headers would put its own key there.
"""

from __future__ import annotations

from typing import Self

from gateway.catalog.usage import ReportedUsage, Usage
from gateway.errors import GatewayError, RateLimited, UpstreamError, UpstreamRejected, UpstreamTimeout
from gateway.providers.told import NOTHING_TOLD, Told

MAX_RETRY_AFTER_S = 60.0


class UpstreamFault(Exception):
    """Base. `status` is the provider's HTTP status (0: none came), `retry_after_s` its wish, clamped to a minute.

    `code` is what clients know the failure by; `told` what the provider said of it, `address` who could not be reached.
    """

    dispatched: bool = True
    retryable: bool = False
    usage: ReportedUsage = None
    """What the provider says that the failed call used."""
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
        told: Told = NOTHING_TOLD,
        address: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.code = told.known or code
        self.told = told
        self.address = address
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
        return _rejected(self, 400)


class RejectedFault(UpstreamFault):
    dispatched, retryable = False, False

    def answer(self) -> GatewayError:
        return _rejected(self, self.status)


class CredentialFault(UpstreamFault):
    """Retryable on another deployment: its key is another one. To the client it is our fault, not his."""

    dispatched, retryable, on_same_key = False, True, False


class ThrottledFault(UpstreamFault):
    dispatched, retryable = False, True

    def answer(self) -> GatewayError:
        if self.code == "insufficient_quota":
            words = f"{self.message}; the gateway's account with the provider is used up"
            never = {"x-should-retry": "false"}
            return UpstreamRejected(words, status=429, code=self.code, type=self.code, headers=never)
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


def _rejected(fault: UpstreamFault, status: int) -> GatewayError:
    """The provider's verdict, under the code that clients act on, where it has one."""
    if not fault.code:
        return UpstreamRejected(fault.message, status=status, param=fault.told.param or None)
    param = fault.told.param or None
    words = {"content_filter": "the provider's content filter refused the request"}.get(fault.code, fault.message)
    if fault.code == "context_length_exceeded":
        words, param, status = _overflow_words(fault.told), param or "messages", 400
    elif fault.code == "content_filter":
        status = 400
    return UpstreamRejected(words, status=status, code=fault.code, param=param)


def _overflow_words(told: Told) -> str:
    """Worded as OpenAI does: clients that compact their history look for it."""
    if told.limit_tokens is None:
        return "the request exceeds the model's maximum context length; shorten the messages or lower max_tokens"
    needed = "" if told.asked_tokens is None else f", and the request needs {told.asked_tokens} tokens"
    return (
        f"This model's maximum context length is {told.limit_tokens} tokens{needed}; "
        "shorten the messages or lower max_tokens"
    )


def fault_from_status(
    status: int, retry_after_s: float | None = None, code: str = "", told: Told = NOTHING_TOLD
) -> UpstreamFault:
    """The fault for an error status, before any token was sent. `code` is known already, `told` what its body said.

    408, 499, 504 and 524 come from middle boxes that gave up on a provider that may be still at work: ambiguous.
    """
    said = f"the provider answered with status {status}"
    kind, why = _kind_of(status)
    if told.overflows and kind not in (CredentialFault, ThrottledFault):
        kind = RejectedFault  # whatever the status: the next attempt would be as long
    elif told.known == "content_filter" and (kind is FailedFault or status == 403):
        kind = RejectedFault
        why = ": it refused the request"
    elif told.known == "insufficient_quota" and kind is RejectedFault:
        kind, why = _kind_of(402)
    fault = kind(f"{said}{why}", status=status, retry_after_s=retry_after_s, code=code, told=told)
    if fault.code == "insufficient_quota":
        fault.on_same_key = False
    return fault


def _kind_of(status: int) -> tuple[type[UpstreamFault], str]:
    if status in (408, 499, 504, 524):
        return TimeoutFault, ": it gave up waiting"
    if status == 402:
        # Passed on, it would look like the session's budget.
        return CredentialFault, ": the gateway's account with it is used up"
    if status in (401, 403):
        return CredentialFault, ": it refused the gateway's credentials"
    if status == 429:
        return ThrottledFault, ": too many requests"
    return (RejectedFault, ": it refused the request") if 400 <= status < 500 else (FailedFault, "")
