"""Why a master key must not guard money: well known, a placeholder, too short or not random."""

from __future__ import annotations

import re

MIN_MASTER_KEY_CHARS = 24
_WELL_KNOWN = re.compile(
    r"sk-(?:1234\d*|test|master|secret|admin|password|litellm)?(?:[-_]?(?:master[-_]?)?key)?", re.IGNORECASE
)
_PLACEHOLDER = re.compile(
    r"change.?me|example|placeholder|your[-_]|replace[-_]?|x{6,}|0123456789|1234567890", re.IGNORECASE
)


def weakness_of_master_key(key: str) -> str | None:
    """Why this key must not guard money, in words without the key; None when nothing speaks against it."""
    if not key.startswith("sk-"):
        return 'expected a key that begins with "sk-"'
    if _WELL_KNOWN.fullmatch(key) or _PLACEHOLDER.search(key):
        return "expected a secret key, got a well-known or placeholder one"
    if len(key) < MIN_MASTER_KEY_CHARS:
        return f"expected at least {MIN_MASTER_KEY_CHARS} characters, got {len(key)}"
    if len(key) > 512 or not key.isascii() or not key.isprintable() or " " in key:
        return "expected at most 512 printable ASCII characters without spaces"
    if len(set(key[3:])) < 8:
        return "expected a random key, got fewer than 8 different characters"
    return None
