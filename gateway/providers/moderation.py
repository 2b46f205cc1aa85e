"""Moderation calls, for providers that have OpenAI's route `/moderations`."""

from __future__ import annotations

import orjson
from yarl import URL

from gateway.providers.call import Call, PreparedCall, ProviderNames
from gateway.providers.direct import request_headers
from gateway.providers.errors import CallRefused
from gateway.providers.exchange import Exchange
from gateway.providers.exchange_faults import exchange_fault
from gateway.providers.litellm_clients import OPENAI_ADDRESS, key_for
from gateway.providers.transport import Connections, DirectRequest, send


class ModerationCall(PreparedCall):
    """One call. Raises CallRefused without a known address."""

    def __init__(self, call: Call, found: ProviderNames, connections: Connections) -> None:
        base = call.api_base or found.api_base or (OPENAI_ADDRESS if found.provider == "openai" else None)
        if base is None:
            raise CallRefused("moderation: expected an api_base for the deployment, got nothing")
        headers = request_headers(
            {"authorization": f"Bearer {key_for(call, found, base)}", **call.extra_headers},
            call.options.get("organization"),
        )
        body = {"model": found.model, "input": call.params["input"]}
        self._request = DirectRequest(URL(base.rstrip("/") + "/moderations"), headers, orjson.dumps(body))
        self._connections = connections

    async def whole(self, exchange: Exchange) -> None:
        await (await send(self._connections, self._request, exchange)).read()
        seen = exchange_fault(exchange)
        if seen is not None:
            raise seen
