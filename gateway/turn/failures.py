"""Description of a failed attempt, for the log and for `explain`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence

from yarl import URL

from gateway.catalog.models import Deployment
from gateway.decisions.failures import FailedAttempt
from gateway.providers.errors import UpstreamFault
from gateway.providers.redaction import SECRET_NAME, without_secrets
from gateway.turn.context import Attempt

_log = logging.getLogger("seqroute.turn")


def failed_attempt(attempt: Attempt, fault: UpstreamFault, at_ms: int) -> FailedAttempt:
    """Describe an attempt that failed at `at_ms`, and log a line of names and numbers about it."""
    reported, deployment = fault.reported, attempt.deployment
    code = reported.code or fault.code
    _log.warning(
        "attempt failed: model=%s deployment=%s status=%s reason=%s type=%s code=%s param=%s address=%s",
        attempt.model,
        deployment.deployment_id,
        fault.status or "-",
        json.dumps(fault.message),
        reported.type or "-",
        code or "-",
        reported.param or "-",
        fault.address or "-",
    )
    return FailedAttempt(
        model=attempt.model,
        deployment=deployment.deployment_id,
        status=fault.status,
        reason=fault.message,
        type=reported.type,
        code=code,
        param=reported.param,
        provider_message=_words(attempt, reported.said) if reported.said else "",
        started_ms=attempt.sent_ms,
        ended_ms=at_ms,
    )


def _words(attempt: Attempt, said: str) -> str:
    """The provider's message without secrets; without the prompt where texts are not stored."""
    context = attempt.context
    kept = context.caller.store_text
    prompt = "" if kept else "\n".join(_texts([*context.chat.messages, dict(context.chat.params)]))
    return without_secrets(said, _secrets(attempt.deployment), prompt=prompt)


def _texts(value: object) -> Iterator[str]:
    """Every text of a request but pictures and other data."""
    if isinstance(value, str):
        if not value.startswith("data:"):
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def _secrets(deployment: Deployment) -> Iterator[str]:
    if deployment.api_key is not None:
        yield deployment.api_key.reveal()
    for value in deployment.extra_headers.values():
        yield value.reveal()
    for name, value in deployment.provider_params.items():
        if SECRET_NAME.search(name):
            yield value.reveal()
    if deployment.api_base is not None:
        address = URL(deployment.api_base)
        yield from filter(None, (address.user, address.password, *address.query.values()))
