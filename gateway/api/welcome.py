"""`GET /`, and 404 responses that name the route to use instead."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.refusals import refusal
from gateway.errors import NotFound
from gateway.http import json_response

CHAT = "POST /v1/chat/completions"
_HINTS: tuple[tuple[str, str], ...] = (
    (r"/v1/v1(/.*)?", "a base URL that ends in /v1 once: http://HOST:PORT/v1"),
    (r".*//.*", "the same address with one slash: a base URL that does not end in one"),
    (r".+/", "the same address without the slash at its end"),
    (r"(/v1)?/messages/.*", "POST /v1/messages and POST /v1/messages/count_tokens"),
    (r"(/v1)?/(chat|engines/.*)", f"{CHAT} with `messages`"),
    (r"/openai/deployments/.*", f"{CHAT} with the name in `model`; as an OpenAI client, not Azure's"),
    (
        r"/api/(chat|generate|tags|show|embed|embeddings)",
        f"{CHAT} and GET /v1/models; as an OpenAI client, not Ollama's",
    ),
    (r"/v1(beta\d?|alpha)?/models/[^/]+:\w+", f"{CHAT}; as an OpenAI client, not Gemini's"),
    (r"/model/.*/(converse|invoke).*", f"{CHAT}; as an OpenAI client, not Bedrock's"),
    (r"(/v1)?/(key|user|team|customer|budget|organization)/.*", "POST /admin/tenants and POST /admin/keys"),
    (r"(/v1)?/(spend|global|model|model_group)/.*", "GET /admin/ledger, GET /v1/prices and GET /v1/models"),
    (r"(/v1)?/health/.*", "GET /livez and GET /readyz"),
    (
        r"(/v1)?/(rerank|realtime|(images|audio|files|batches|fine_tuning|assistants|threads"
        r"|vector_stores|uploads|containers|conversations|videos)(/.*)?)",
        f"the provider itself; this gateway serves {CHAT}",
    ),
)


class Welcome:
    """`GET /`, for programs and people."""

    def __init__(self, version: str) -> None:
        self._version = version

    async def root(self, request: Request) -> Response:
        """Name, version, base URL and links."""
        return json_response(
            {
                "name": "seqroute",
                "version": self._version,
                "description": "An OpenAI-compatible gateway that plans a session's budget.",
                "base_url": str(request.base_url) + "v1",
                "docs": {"openapi": "/openapi.json", "dashboard": "/ui", "models": "/v1/models", "health": "/readyz"},
            }
        )


def instead(path: str) -> str | None:
    """Our equivalent of an address of another API or gateway; None when unknown."""
    return next((use for pattern, use in _HINTS if re.fullmatch(pattern, path)), None)


def not_found(path: str) -> Response:
    """404 in the error format of the address's dialect."""
    use = instead(path)
    return refusal(path, NotFound("no such route" + (f": use {use}" if use else "; GET / lists the entry points")))
