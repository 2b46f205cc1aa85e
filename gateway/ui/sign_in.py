"""Dashboard sign-in: a signed cookie, checked against the key table on every request.

The cookie has a key's id, never its secret. It is signed with a key derived from the master key, so that every replica
accepts it and a new master key invalidates it. Forms carry a CSRF token bound to the cookie, which is HttpOnly and
SameSite=Strict.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass

import orjson

from gateway.accounts.auth import Caller
from gateway.clock import Clock
from gateway.config.values import Secret

COOKIE = "seqroute_ui"
SIGNED_IN_S = 12 * 3600.0
_ROLES = ("admin", "read-only")


@dataclass(frozen=True, slots=True)
class Viewer:
    """The signed-in key; `tenant_id` is None for an admin, who sees every tenant."""

    key_id: str
    role: str
    tenant_id: str | None
    csrf: str

    @property
    def may_change(self) -> bool:
        """True for role admin."""
        return self.role == "admin"


class SignIn:
    """Issuer and verifier of the dashboard's cookies."""

    def __init__(self, master_key: Secret, clock: Clock) -> None:
        self._signing_key = hmac.digest(master_key.reveal().encode(), b"seqroute dashboard cookie", "sha256")
        self._clock = clock

    def cookie_for(self, caller: Caller) -> str | None:
        """A cookie for this key; None when its role may not see the dashboard."""
        if caller.role not in _ROLES:
            return None
        ends_s = int(self._clock() + SIGNED_IN_S)
        payload = orjson.dumps([caller.key_id, caller.role, caller.tenant_id, ends_s])
        return f"{_encoded(payload)}.{_encoded(self._signature(payload))}"

    def viewer(self, cookie: str | None) -> Viewer | None:
        """The viewer in a valid cookie, or None; the caller checks that the key is still usable."""
        if cookie is None or len(cookie) > 1024:
            return None
        payload_text, _, signature_text = cookie.partition(".")
        payload, signature = _decoded(payload_text), _decoded(signature_text)
        if payload is None or signature is None or not hmac.compare_digest(signature, self._signature(payload)):
            return None
        key_id, role, tenant_id, ends_s = orjson.loads(payload)
        if self._clock() >= ends_s:
            return None
        csrf = hashlib.sha256(self._signing_key + b"csrf" + payload).hexdigest()
        return Viewer(key_id, role, None if role == "admin" else tenant_id, csrf)

    def _signature(self, payload: bytes) -> bytes:
        return hmac.digest(self._signing_key, payload, "sha256")


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes | None:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
