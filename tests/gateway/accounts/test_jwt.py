"""Tokens of an issuer: who they speak for, and everything that makes one worthless."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from gateway.accounts.jwt import LEEWAY_S, TokenVerifier, looks_like_token
from gateway.config.settings import JwtSettings
from gateway.errors import Forbidden, InvalidApiKey, LedgerUnavailable

NOW_S = 1_800_000_000
SETTINGS = JwtSettings("unused", "https://issuer.example", "seqroute", role_claim="role")
CLAIMS: dict[str, Any] = {
    "iss": "https://issuer.example", "aud": "seqroute", "sub": "ann", "exp": NOW_S + 600, "tenant": "acme",
}  # fmt: skip


def made_key(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid})


def signed(key: RSAKey | ECKey | OctKey, alg: str = "RS256", kid: str | None = None, **changed: Any) -> str:
    header = {"alg": alg} | ({} if (kid or key.kid) is None else {"kid": kid or key.kid})
    claims = {name: value for name, value in (CLAIMS | changed).items() if value is not None}
    return jwt.encode(header, claims, key, algorithms=[alg])


class Issuer:
    """An issuer's key set; counts how often it is read."""

    def __init__(self, *keys: Any) -> None:
        self.keys = list(keys)
        self.reads = 0
        self.down = False
        self.elapsed_s = 1_000.0

    async def read(self) -> bytes:
        self.reads += 1
        if self.down:
            raise OSError("no route to host")
        return json.dumps({"keys": [key.as_dict(private=False) for key in self.keys]}).encode()

    def verifier(self) -> TokenVerifier:
        return TokenVerifier(SETTINGS, self.read, lambda: float(NOW_S), lambda: self.elapsed_s)


KEY = made_key("k1")


async def test_a_valid_token_names_its_tenant_its_role_and_how_long_it_lasts() -> None:
    verifier = Issuer(KEY).verifier()
    plain = await verifier.identify(signed(KEY))
    assert (plain.tenant, plain.role, plain.valid_s) == ("acme", "tenant", 600.0 + LEEWAY_S)
    assert plain.key_id.startswith("jwt_")
    assert "ann" not in plain.key_id
    assert (await verifier.identify(signed(KEY, role="read-only"))).role == "read-only"
    other = await verifier.identify(signed(KEY, sub="bob"))
    assert other.key_id != plain.key_id
    several = await verifier.identify(signed(KEY, aud=["other", "seqroute"]))
    assert several.key_id == plain.key_id


@pytest.mark.parametrize("key", [ECKey.generate_key("P-256", {"kid": "e"})])
async def test_elliptic_curves_are_taken(key: ECKey) -> None:
    assert (await Issuer(key).verifier().identify(signed(key, alg="ES256"))).tenant == "acme"


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def written(header: dict[str, Any], secret: bytes | None = None) -> str:
    """A token by hand: unsigned, or with an HMAC that a library would refuse to make."""
    text = ".".join(encoded(json.dumps(part).encode()) for part in (header, CLAIMS))
    return f"{text}." if secret is None else f"{text}.{encoded(hmac.digest(secret, text.encode(), 'sha256'))}"


BAD: dict[str, Callable[[], str]] = {
    "expired": lambda: signed(KEY, exp=NOW_S - LEEWAY_S - 1),
    "without an expiry": lambda: signed(KEY, exp=None),
    "an expiry that is no number": lambda: signed(KEY, exp="tomorrow"),
    "not valid yet": lambda: signed(KEY, nbf=NOW_S + 3_600),
    "of another audience": lambda: signed(KEY, aud="another"),
    "without an audience": lambda: signed(KEY, aud=None),
    "of another issuer": lambda: signed(KEY, iss="https://evil.example"),
    "signed by another key of the same name": lambda: signed(made_key("k1")),
    "signed with a shared secret": lambda: signed(OctKey.import_key("k" * 40), alg="HS256", kid="k1"),
    "with the published key as a shared secret": lambda: written(
        {"alg": "HS256", "kid": "k1"}, KEY.as_pem(private=False)
    ),
    "unsigned": lambda: written({"alg": "none"}),
    "with changed claims": lambda: _with_claims(signed(KEY), CLAIMS | {"tenant": "globex"}),
    "without a tenant": lambda: signed(KEY, tenant=None),
    "with a tenant that is no text": lambda: signed(KEY, tenant=["acme"]),
    "broken": lambda: "eyJ.eyJ.x",
}


def _with_claims(token: str, claims: dict[str, Any]) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{encoded(json.dumps(claims).encode())}.{signature}"


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_is_401_and_quotes_nothing_of_it(name: str) -> None:
    token = BAD[name]()
    with pytest.raises(InvalidApiKey) as refused:
        await Issuer(KEY).verifier().identify(token)
    assert refused.value.status == 401
    assert "acme" not in str(refused.value)
    assert token.split(".")[1][:20] not in str(refused.value)


async def test_a_role_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Forbidden, match="names no role"):
        await Issuer(KEY).verifier().identify(signed(KEY, role="owner"))


async def test_a_rotated_key_is_read_when_a_token_names_it_and_a_withdrawn_one_ends() -> None:
    old, new = KEY, made_key("k2")
    issuer = Issuer(old)
    verifier = issuer.verifier()
    await verifier.identify(signed(old))
    issuer.keys = [new]
    issuer.elapsed_s += 6
    await verifier.identify(signed(new))
    assert issuer.reads == 2
    issuer.elapsed_s += 6
    with pytest.raises(InvalidApiKey, match="does not publish"):
        await verifier.identify(signed(old))


async def test_tokens_with_invented_keys_do_not_make_us_ask_the_issuer_each_time() -> None:
    issuer = Issuer(KEY)
    verifier = issuer.verifier()
    await verifier.identify(signed(KEY))
    for number in range(20):
        with pytest.raises(InvalidApiKey):
            await verifier.identify(signed(KEY, kid=f"invented-{number}"))
    assert issuer.reads == 1


async def test_an_issuer_that_is_away_is_503_before_the_first_key_and_nothing_after_it() -> None:
    issuer = Issuer(KEY)
    issuer.down = True
    verifier = issuer.verifier()
    with pytest.raises(LedgerUnavailable):
        await verifier.identify(signed(KEY))
    issuer.down = False
    issuer.elapsed_s += 6
    await verifier.identify(signed(KEY))
    issuer.down = True
    issuer.elapsed_s += 3_600
    assert (await verifier.identify(signed(KEY))).tenant == "acme"


def test_keys_of_ours_are_no_tokens() -> None:
    assert looks_like_token(signed(KEY))
    assert not looks_like_token("sk-abc.def.ghi")
    assert not looks_like_token("eyJhbGciOiJub25lIn0.e30")
