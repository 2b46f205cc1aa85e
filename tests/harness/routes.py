"""The same short turn as a body of each spending route, and what a test reads from its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

ROUTES: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello there"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 4_000},
    "/v1/responses": {"input": "hello there"},
    "/v1/completions": {"prompt": "hello there"},
}


async def ask(http: httpx.AsyncClient, route: str, headers: Mapping[str, str], **fields: Any) -> httpx.Response:
    """One turn on this route."""
    return await http.post(route, json={"model": "small", **ROUTES[route], **fields}, headers=dict(headers))


def error_of(response: httpx.Response) -> Mapping[str, Any]:
    """The error object, in any dialect."""
    found: Mapping[str, Any] = response.json()["error"]
    return found
