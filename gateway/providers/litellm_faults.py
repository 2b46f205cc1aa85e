"""The fault of a call that failed in LiteLLM.

It is read from what the provider answered, else from LiteLLM's exception.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gateway.catalog.usage_reading import read_usage
from gateway.providers.attachments import LOST, kind_at
from gateway.providers.call import Call
from gateway.providers.errors import (
    BrokenFault,
    CallRefused,
    CredentialFault,
    FailedFault,
    MessagesRefused,
    UpstreamFault,
    credentials_of,
)
from gateway.providers.exchange import Exchange
from gateway.providers.exchange_faults import exchange_fault
from gateway.providers.history import broken_arguments
from gateway.providers.inband import broken_off, reported_in

_log = logging.getLogger("seqroute.providers")

_QUOTED = re.compile(r"['`](\w+)['`]")
_WRITES_MESSAGES = "litellm.litellm_core_utils.prompt_templates."
_UNTRANSLATED = (
    "the messages cannot be written in the form of the model's provider; expected the call of every tool result before "
    "it, and types of pictures and files that the provider takes"
)


def fault_of_call(
    exchange: Exchange,
    error: Exception,
    call: Call,
    messages: Sequence[Mapping[str, Any]],
    code: str,
    refused_tool: Callable[[], str | None],
) -> UpstreamFault:
    """The fault of a failed call with these outgoing messages.

    `code`: what LiteLLM recognised in its exception. `refused_tool`: the place of a tool that it cannot translate.
    """
    if isinstance(error, UpstreamFault):
        return error
    if exchange.lost is not None:
        return MessagesRefused.of(exchange.lost, LOST).losing(kind_at(call.messages, exchange.lost))
    seen = exchange_fault(exchange, code)
    if seen is not None:
        return broken_off(exchange) if exchange.streaming and type(seen) is BrokenFault else seen
    if exchange.status:
        unread = BrokenFault("the provider's answer was not a chat completion", status=exchange.status)
        fault = reported_in(exchange) or unread
        # Of a stream the report is joined with what came before (UpstreamStream).
        return fault if exchange.streaming else fault.billed(read_usage(exchange.reported().report))
    missing = next((each.name for each in _chain(error) if isinstance(each, ModuleNotFoundError)), None)
    if exchange.attempts == 0 and missing is not None:
        _log.error("a call needs the Python package %s, which is not installed beside the gateway", missing)
        return FailedFault("the model's provider needs a Python package that the gateway lacks", retryable=False)
    lacking = next((text for each in _chain(error) if (text := credentials_of(each))), None)
    if exchange.attempts == 0 and lacking is not None:
        _log.error("a call for %s has no credentials: %s", call.litellm_model[:120], type(error).__name__)
        return CredentialFault.missing(lacking)
    status = getattr(error, "status_code", 0)
    status = status if isinstance(status, int) else 0
    name = _refused_name(error, call) if exchange.attempts == 0 else None
    if name is not None:
        return CallRefused.of(name)
    where = broken_arguments(messages) if exchange.attempts == 0 else None
    if where is not None:
        return MessagesRefused.of(where, "expected JSON, which the model's provider needs")
    tool = refused_tool() if exchange.attempts == 0 else None
    if tool is not None:
        return MessagesRefused.of(tool, "the model's provider does not support this schema")
    if exchange.attempts == 0 and exchange.attached:
        return MessagesRefused.of(next(iter(exchange.attached)), LOST)  # LiteLLM's code gave up over it
    if exchange.attempts == 0 and (status == 400 or code):
        return CallRefused("the model's provider does not accept this request", status=400, code=code)
    if exchange.attempts == 0 and _in_messages(error):
        return MessagesRefused(_UNTRANSLATED, status=400)
    _log.warning("call failed inside LiteLLM: %s", type(error).__name__)
    return FailedFault("the provider could not be called", dispatched=exchange.reached, retryable=False)


def _refused_name(error: BaseException, call: Call) -> str | None:
    """The caller's parameter that LiteLLM, or the SDK that it calls, does not know."""
    for each in _chain(error):
        if isinstance(each, TypeError) or type(each).__name__ == "UnsupportedParamsError":
            named = _QUOTED.findall(str(each))
            return next((name for name in named if name in call.params or name in call.extras), None)
    return None


def _in_messages(error: BaseException) -> bool:
    """True if LiteLLM failed while it wrote the messages in the provider's form."""
    return any(
        str(frame.f_globals.get("__name__")).startswith(_WRITES_MESSAGES)
        for each in _chain(error)
        for frame, _ in traceback.walk_tb(each.__traceback__)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
