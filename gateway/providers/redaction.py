"""Removal of secrets from a provider's words.

A provider's error may repeat the request's headers, its own configuration, or the prompt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping

REMOVED = "[removed]"
MAX_SHOWN_CHARS = 500

_SHARED_CHARS = 8
"""A part of a known secret of this length is removed: providers shorten the key that they repeat."""
_ECHO_CHARS = 24
"""A passage of the prompt of this length is removed."""
_MAX_PLACES = 50
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_MIN_SECRET_CHARS = 6

_URL = re.compile(
    r"\b([a-z][a-z0-9+.-]{1,20}://)(?:[^\s/?#\"'<>]*@)?([^\s?#\"'<>]*)(?:[?#][^\s\"'<>]*)?", re.IGNORECASE
)
_LABEL = (
    r"(?:proxy[-_ ]?)?authorization|(?:x[-_ ])?(?:goog[-_ ]|amz[-_ ])?(?:api|access|secret|master|private|subscription)"
)
_LABELLED = re.compile(
    rf"(?P<label>\b(?:{_LABEL}[-_ ]?(?:key|token)?(?:[-_ ]?id)?|bearer|basic|token|secret|password|passwd|pwd|signature"
    r"|credentials?|cookie|session[-_ ]?token|key)\b[\"']?\s*(?:(?:is|was|provided|given|header)\b\s*)*[:=]\s*[\"']?"
    r"(?:bearer|basic|token|digest)?\s*)(?P<value>[^\s\"',;)}\]]+)",
    re.IGNORECASE,
)
_SCHEMED = re.compile(r"\b(bearer|basic|digest)\s+(?=[^\s\"',;]*[\d_~+/=.-])[^\s\"',;)}\]]{6,}", re.IGNORECASE)
_PREFIXED = re.compile(
    r"\b(?:(?:sk|pk|rk|gsk|xai|pplx|nvapi|hf|r8|fw|gh[pos]|github_pat|glpat|xox[abprs]|tgp_v\d|key|csk|sess|dapi)[-_]"
    r"|AKIA|ASIA|AIza|ya29|eyJ)[A-Za-z0-9*.…_-]*[\d*…][A-Za-z0-9*.…_=-]*"
)
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)
_RANDOM = re.compile(r"(?=[A-Za-z0-9+/=]*\d)(?=[A-Za-z0-9+/=]*[A-Za-z])[A-Za-z0-9+/=]{20,}")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def without_secrets(
    said: str, secrets: Iterable[str] = (), *, prompt: str = "", environ: Mapping[str, str] = os.environ
) -> str:
    """A provider's words without keys, tokens, credentials in URLs, and passages of `prompt`.

    `secrets` are known ones: the deployment's key and headers. What looks like a secret is removed too.
    """
    text = _CONTROLS.sub(" ", said[: 8 * MAX_SHOWN_CHARS]).strip()
    known = {value for value in (*secrets, *_from(environ)) if len(value) >= _MIN_SECRET_CHARS}
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, REMOVED)
        text = _without_shared(text, secret, _SHARED_CHARS)
    text = _URL.sub(r"\1\2", text)
    text = _LABELLED.sub(lambda found: found["label"] + REMOVED, text)
    text = _SCHEMED.sub(rf"\1 {REMOVED}", text)
    for pattern in (_PREFIXED, _UUID, _RANDOM):
        text = pattern.sub(REMOVED, text)
    if prompt:
        text = _without_shared(text, prompt, _ECHO_CHARS)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


def _from(environ: Mapping[str, str]) -> list[str]:
    """Values of the environment's secrets, which LiteLLM reads for deployments without a key."""
    return [value for name, value in environ.items() if SECRET_NAME.search(name)]


def _without_shared(text: str, other: str, at_least: int) -> str:
    """`text` without the passages of `at_least` characters that stand in `other` too.

    Every passage of that length contains an aligned block of half of it, so few searches in a long `other` suffice.
    """
    half = at_least // 2
    kept: list[str] = []
    start = at = 0
    while at + half <= len(text):
        for found in _places(other, text[at : at + half]):
            first, last = _extended(text, other, at, found, half, start)
            if last - first >= at_least:
                kept += [text[start:first], REMOVED]
                start = last
                break
        at = start if start > at else at + half
    return "".join([*kept, text[start:]])


def _places(text: str, block: str) -> Iterator[int]:
    """The first places of `block` in `text`."""
    found = text.find(block)
    for _ in range(_MAX_PLACES):
        if found < 0:
            return
        yield found
        found = text.find(block, found + 1)


def _extended(text: str, other: str, at: int, found: int, length: int, start: int) -> tuple[int, int]:
    """The common passage around `text[at:][:length]`, which is `other[found:][:length]`."""
    first, in_other = at, found
    while first > start and in_other > 0 and text[first - 1] == other[in_other - 1]:
        first, in_other = first - 1, in_other - 1
    last, in_other = at + length, found + length
    while last < len(text) and in_other < len(other) and text[last] == other[in_other]:
        last, in_other = last + 1, in_other + 1
    return first, last
