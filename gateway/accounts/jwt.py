"""OpenID Connect tokens beside API keys: who a signed JSON Web Token speaks for.

Signatures are checked with the issuer's published keys (RFC 7517), which are read when a token names an unknown one; a
token must name our audience and its issuer and must not have expired (RFC 7519, section 4.1). Only asymmetric
algorithms are accepted: a shared secret, or none, could be made by anyone who can read the published keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from gateway.accounts.keys import ROLES
from gateway.clock import Clock
from gateway.config.settings import JwtSettings
from gateway.errors import Forbidden, InvalidApiKey, LedgerUnavailable

_log = logging.getLogger("seqroute.accounts")
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
MAX_TOKEN_CHARS = 8192
LEEWAY_S = 30
"""How far the issuer's clock may be off."""
KEYS_FRESH_S = 600.0
"""Published keys are read again after this time, so that a withdrawn one is no longer accepted."""
KEYS_RETRY_S = 5.0
"""The shortest time between two readings, however many tokens name an unknown key."""
MAX_KEYS_BYTES = 256 * 1024
FETCH_TIMEOUT_S = 5.0

ReadKeys = Callable[[], Awaitable[bytes]]
"""Reads the issuer's published key set. Raises OSError when it cannot."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The holder of a valid token; `tenant` is an id or a name, `valid_s` the time left."""

    key_id: str
    tenant: str
    role: str
    valid_s: float


def looks_like_token(bearer: str) -> bool:
    """True for the form of a signed token: three parts, the first an encoded JSON object."""
    return bearer.startswith("eyJ") and bearer.count(".") == 2


class TokenVerifier:
    """The tokens of one issuer; `clock` is the wall clock, `elapsed` ages the published keys."""

    def __init__(self, settings: JwtSettings, read_keys: ReadKeys, clock: Clock, elapsed: Clock) -> None:
        self._settings = settings
        self._read_keys = read_keys
        self._clock = clock
        self._elapsed = elapsed
        self._keys: KeySet | None = None
        self._read_at_s = -KEYS_FRESH_S
        self._tried_at_s = -KEYS_RETRY_S

    async def identify(self, token: str) -> Identity:
        """Check a token. Raises InvalidApiKey, Forbidden, and LedgerUnavailable without any key."""
        if self._keys is None or self._elapsed() - self._read_at_s > KEYS_FRESH_S:
            await self._read()
        try:
            claims = self._claims(token)
        except InvalidKeyIdError:
            await self._read()
            try:
                claims = self._claims(token)
            except InvalidKeyIdError as error:
                raise _invalid("it is signed with a key that its issuer does not publish") from error
        tenant: Any = claims.get(self._settings.tenant_claim)
        role: Any = "tenant"
        if not isinstance(tenant, str) or not 1 <= len(tenant) <= 256:
            raise _invalid(f'expected the tenant in its claim "{self._settings.tenant_claim}"')
        if self._settings.role_claim is not None:
            role = claims.get(self._settings.role_claim, "tenant")
        if role not in ROLES:
            raise Forbidden(f'this token\'s claim "{self._settings.role_claim}" names no role: {", ".join(ROLES)}')
        subject = f"{self._settings.issuer}\0{claims.get('sub', '')}\0{tenant}"
        key_id = "jwt_" + hashlib.sha256(subject.encode()).hexdigest()[:24]
        return Identity(key_id, tenant, str(role), float(claims["exp"]) + LEEWAY_S - self._clock())

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a valid token. Raises InvalidKeyIdError for an unknown key."""
        if self._keys is None:
            raise LedgerUnavailable("tokens cannot be checked now; try again", headers={"Retry-After": "5"})
        rules = jwt.JWTClaimsRegistry(
            now=int(self._clock()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "value": self._settings.audience},
            exp={"essential": True},
        )
        try:
            claims = jwt.decode(token, self._keys, algorithms=ALGORITHMS).claims
            rules.validate(claims)
        except InvalidKeyIdError:
            raise
        except ExpiredTokenError as error:
            raise _invalid("it has expired") from error
        except (JoseError, ValueError, TypeError) as error:
            raise _invalid(type(error).__name__) from error
        return dict(claims)

    async def _read(self) -> None:
        """Read the published keys; keep the former ones when that fails."""
        if self._elapsed() - self._tried_at_s < KEYS_RETRY_S:
            return
        self._tried_at_s = self._elapsed()
        try:
            self._keys = KeySet.import_key_set(json.loads(await self._read_keys()))
            self._read_at_s = self._elapsed()
        except (OSError, ValueError, TypeError, KeyError, JoseError) as error:
            _log.warning("general_settings.jwt.jwks: the issuer's keys cannot be read: %s", type(error).__name__)


def key_reader(jwks: str) -> ReadKeys:
    """The reader of a key set at an http(s) URL or in a file."""

    async def fetch() -> bytes:
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as http, http.get(jwks, allow_redirects=False) as answer:
                answer.raise_for_status()
                return await answer.content.read(MAX_KEYS_BYTES)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OSError(str(error)) from error

    async def read_file() -> bytes:
        return await asyncio.to_thread(Path(jwks).read_bytes)

    return fetch if jwks.startswith(("http://", "https://")) else read_file


def _invalid(why: str) -> InvalidApiKey:
    return InvalidApiKey(f"invalid token: {why}")
