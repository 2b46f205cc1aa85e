"""Access to Azure by a token of Entra ID, which a deployment may have in place of a key."""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from gateway.catalog.claude_hosts import AZURE_TOKEN, OIDC
from gateway.providers.call import Call
from gateway.providers.errors import AZURE_CREDENTIALS, CredentialFault
from gateway.providers.exchange import KEY_HEADERS

_log = logging.getLogger("seqroute.providers")

TOKEN_WAIT_S = 20.0
"""How long a turn waits for a token; the library's own limit is five minutes."""
TOKEN_KEPT_S = 60.0
"""How long a token serves further turns: Azure's library renews one five minutes before it expires."""
_PROVIDERS = frozenset({"azure", "azure_ai", "azure_text"})
_FETCHED_WITH = frozenset({"azure_password", "azure_username", "client_id", "client_secret", "tenant_id"})
_ACCESS = _FETCHED_WITH | {AZURE_TOKEN, "azure_scope"}


def by_token(call: Call, provider: str) -> bool:
    """True for a call at Azure whose deployment states the source of a token, and no key."""
    if provider not in _PROVIDERS or call.api_key or not (_FETCHED_WITH | {AZURE_TOKEN}) & call.options.keys():
        return False
    return KEY_HEADERS.isdisjoint(map(str.lower, call.extra_headers))


def without_access(options: Mapping[str, str]) -> dict[str, str]:
    """The options without a token's source, with which LiteLLM would look for one itself."""
    return {name: value for name, value in options.items() if name not in _ACCESS}


class AzureTokens:
    """Tokens of Entra ID: stated, or as LiteLLM fetches them. Create it after importing LiteLLM."""

    def __init__(self) -> None:
        self._find: Callable[[Any], str | None] = importlib.import_module(
            "litellm.llms.azure.common_utils"
        ).get_azure_ad_token
        self._params: Any = importlib.import_module("litellm.types.router").GenericLiteLLMParams
        self._asked: dict[frozenset[tuple[str, str]], asyncio.Future[str | None]] = {}
        """Fetches, one for each access, however many turns wait for it; a token stays for TOKEN_KEPT_S."""

    async def token(self, call: Call) -> str:
        """The token of a call. Raises CredentialFault, ModuleNotFoundError without the library."""
        stated = call.options.get(AZURE_TOKEN, "")
        if stated and not stated.startswith(OIDC) and _FETCHED_WITH.isdisjoint(call.options):
            return stated
        try:
            asked = self._fetched(frozenset(item for item in call.options.items() if item[0] in _ACCESS))
            found = await asyncio.wait_for(asyncio.shield(asked), TOKEN_WAIT_S)
        except ModuleNotFoundError:
            raise ModuleNotFoundError(name="azure-identity") from None
        except Exception as error:  # noqa: BLE001 - Azure's library has errors of its own, which may repeat a secret
            _log.error("a call for %s has no token: %s", call.litellm_model[:120], type(error).__name__)
            found = None
        if not found:
            raise CredentialFault.missing(AZURE_CREDENTIALS)
        return found

    def _fetched(self, access: frozenset[tuple[str, str]]) -> asyncio.Future[str | None]:
        """A token that was fetched lately or is on its way.

        LiteLLM signs in with a user's password for every call, and a sign-in that hangs may occupy one thread only.
        """
        asked = self._asked.get(access)
        if asked is None:
            asked = self._asked[access] = _in_thread(partial(self._find, self._params(**dict(access))))
            asked.add_done_callback(partial(self._forget, access))
        return asked

    def _forget(self, access: frozenset[tuple[str, str]], done: asyncio.Future[str | None]) -> None:
        found = not done.cancelled() and done.exception() is None and done.result()
        done.get_loop().call_later(TOKEN_KEPT_S if found else 0.0, self._asked.pop, access, None)


def _in_thread(work: Callable[[], str | None]) -> asyncio.Future[str | None]:
    """The result of work that blocks, in a thread that keeps neither other work nor the end of the process waiting."""
    loop, context = asyncio.get_running_loop(), copy_context()
    done: asyncio.Future[str | None] = loop.create_future()

    def tell(result: str | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def run() -> None:
        result, failed = None, None
        try:
            result = context.run(work)
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            failed = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, result, failed)

    threading.Thread(target=run, name="azure-token", daemon=True).start()
    return done
