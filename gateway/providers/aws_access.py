"""Access to Bedrock: a token, the operator's header, a signature, or a placeholder."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.providers.call import NO_KEY, Call

_log = logging.getLogger("seqroute.providers")

ABSENT_S = 600.0
"""How long credentials that were not found are not looked for again: asking an instance's server may take seconds."""
_BEARER = "bearer "
_GIVEN = frozenset(
    {
        "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_profile_name", "aws_role_name",
        "aws_web_identity_token",
    }
)  # fmt: skip
_UNUSED_KEYS = {"aws_access_key_id": NO_KEY, "aws_secret_access_key": NO_KEY, "aws_session_token": ""}


@dataclass(frozen=True, slots=True)
class AwsAccess:
    """The key, headers and options for LiteLLM of one call.

    `api_key`: None for the environment's token, "" for a signature.
    `may_be_none`: the placeholder takes the signature's place if the environment has no credentials either.
    """

    api_key: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    options: Mapping[str, str] = field(repr=False)
    may_be_none: bool = False


def aws_access(call: Call) -> AwsAccess:
    """The access of a call, by what its deployment states before what the environment has."""
    headers, options = dict(call.extra_headers), dict(call.options)
    if call.api_key:
        return AwsAccess(call.api_key, headers, options)
    stated = [value for name, value in headers.items() if name.lower() == "authorization"]
    if stated:
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        if stated[-1].lower().startswith(_BEARER):
            return AwsAccess(stated[-1][len(_BEARER) :].strip(), headers, options)
        # LiteLLM keeps a header of this spelling, but makes a signature first, for which it looks for credentials.
        others = {name: value for name, value in options.items() if name not in _GIVEN}
        return AwsAccess("", headers | {"Authorization": stated[-1]}, others | _UNUSED_KEYS)
    if call.api_base is None:
        return AwsAccess(None, headers, options)
    return AwsAccess("", headers, options, may_be_none=_GIVEN.isdisjoint(options))


class AwsEnvironment:
    """The credentials of this process's environment. Create it after importing LiteLLM."""

    def __init__(self) -> None:
        module: Any = importlib.import_module("litellm.llms.bedrock.base_aws_llm")
        self._run: Any = module.run_aws_signing
        self._nothing_given: Any = module.AwsAuthParams()
        self._find: Any = module.BaseAWSLLM().resolve_credentials
        self._absent_until = 0.0

    async def key(self, access: AwsAccess) -> str | None:
        """The key for LiteLLM: the placeholder if nothing can be signed and `may_be_none`."""
        if not access.may_be_none:
            return access.api_key
        clock = asyncio.get_running_loop()
        if clock.time() < self._absent_until:
            return NO_KEY
        try:
            found = await self._run(self._find, self._nothing_given, None)
        except ImportError:  # without Amazon's library nothing can be signed
            found = None
        except Exception as error:  # noqa: BLE001 - a profile or role that fails: the call itself will tell
            _log.error("the AWS credentials of the environment cannot be used: %s", type(error).__name__)
            return access.api_key
        if found is not None:
            return access.api_key
        self._absent_until = clock.time() + ABSENT_S
        return NO_KEY
