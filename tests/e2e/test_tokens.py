"""OpenID Connect tokens at a served gateway, with a real key endpoint whose keys rotate."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.harness.gateway import config, serving
from tests.harness.receiver import receiving
from tests.harness.upstream import FaultUpstream

BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "x"}]}
ISSUER = "https://issuer.example"


@asynccontextmanager
async def publishing(keys: list[RSAKey]) -> AsyncIterator[str]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=json.dumps({"keys": [key.as_dict(private=False) for key in keys]}))

    async with receiving("GET", "/jwks", answer) as url:
        yield url + "/jwks"


def token(key: RSAKey, **changed: Any) -> dict[str, str]:
    claims = {"iss": ISSUER, "aud": "seqroute", "sub": "ann", "exp": int(time.time()) + 600, "org": "acme"} | changed
    return {"Authorization": "Bearer " + jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key)}


async def test_a_token_spends_its_tenants_money_in_its_role(tmp_path: Path, database_url: str) -> None:
    key, stranger = (RSAKey.generate_key(2048, {"kid": kid}) for kid in ("k1", "k2"))
    async with FaultUpstream() as provider, publishing([key]) as jwks:
        settings = {"jwks": jwks, "issuer": ISSUER, "audience": "seqroute", "tenant_claim": "org", "role_claim": "role"}
        path = config(tmp_path, provider.url, database_url=database_url, general={"jwt": settings})
        async with serving(path) as gateway, httpx.AsyncClient(base_url=gateway.url) as http:
            tenant_id, _ = await gateway.tenant("acme")
            answer = await http.post("/v1/chat/completions", json=BODY, headers=token(key) | {"x-session-id": "s1"})
            assert answer.status_code == 200, answer.text
            await gateway.settled()
            session = (await http.get("/v1/sessions/s1", headers=token(key))).json()
            assert (session["tenant_id"], session["turns"]) == (tenant_id, 1)

            reader = token(key, role="read-only")
            assert (await http.get("/v1/sessions/s1", headers=reader)).status_code == 200
            assert (await http.post("/v1/chat/completions", json=BODY, headers=reader)).status_code == 403
            assert (await http.get("/admin/tenants", headers=token(key))).status_code == 403
            assert (await http.get("/admin/tenants", headers=token(key, role="admin"))).status_code == 200

            for bad in (
                token(stranger),
                token(key, exp=1),
                token(key, aud="x"),
                token(key, iss="x"),
                token(key, org=1),
            ):
                refused = await http.post("/v1/chat/completions", json=BODY, headers=bad)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            unknown = await http.post("/v1/chat/completions", json=BODY, headers=token(key, org="globex"))
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (403, "forbidden")
            await gateway.audit()
            await gateway.ledger_matches(provider)
