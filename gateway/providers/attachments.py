"""Pictures, videos, files and sounds of the messages, and whether a request still has them.

LiteLLM leaves out what a provider's form has no place for, and the model would answer about a picture that it never
saw. What a request carries is found out by its bytes, whatever the provider's code does.
"""

from __future__ import annotations

import binascii
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.unchecked import at, listed

LOST = "the model's provider has no place for a picture, video, file or sound here, or for one of this kind"

_PIECE_CHARACTERS = 64
_SHORT_CHARACTERS = 16
_SEARCHED_AGAIN_BYTES = 2**27
"""How much is searched for pieces out of order: a client can have every one of them searched for in its whole body."""
_PLAIN = re.compile(r"[A-Za-z0-9+/=_.:~-]+")
_PLACE = re.compile(r"messages\[(\d+)\]\.content\[(\d+)\]")
_KIND = re.compile(r"[a-z]+:[a-z_]+:[A-Za-z0-9.+:/-]{1,64}")
_DATA_HEAD = re.compile(r"data:[a-z]+/[a-z0-9.+-]+;base64")
_DATA = ("url", "file_data", "data", "file_id")


def attached(messages: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """A piece of each picture, file and sound in the messages, by its place.

    It is of the data, the address or the id.
    """
    found: dict[str, bytes] = {}
    for index, message in enumerate(messages):
        if isinstance(spoken := at(message, "audio", "id"), str):
            found[f"messages[{index}].audio"] = _piece(spoken)
        for position, part in enumerate(listed(message.get("content"))):
            kind = part.get("type")
            if (kind == "image_url" or isinstance(part.get(kind), Mapping)) and (data := _data_of(part)):
                found[f"messages[{index}].content[{position}]"] = _piece(data)
    return found


def kinds_of_parts(messages: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The kinds of parts: who says it, what it is and in which format."""
    return frozenset(
        _kind(message, part)
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
        if part.get("type") != "text"
    )


def kind_at(messages: Sequence[Mapping[str, Any]], place: str) -> str:
    """The kind of the part at a place of `attached`; empty for no part, and a broken one.

    Such a one may be lost for what it is, and says nothing of its kind.
    """
    found = _PLACE.fullmatch(place)
    if found is None:
        return ""
    message = messages[int(found[1])]
    part = message["content"][int(found[2])]
    kind = _kind(message, part)
    data = _data_of(part)
    named = "://" in data[:_SHORT_CHARACTERS] or (part.get("file") or {}).get("file_id") == data
    return kind if _KIND.fullmatch(kind) and (named or _is_whole(data)) else ""


def _is_whole(data: str) -> bool:
    """True for base64, alone or in a `data:` address."""
    head, comma, content = data.partition(",")
    if comma and not _DATA_HEAD.fullmatch(head):
        return False
    try:
        binascii.a2b_base64(content if comma else head, strict_mode=True)
    except ValueError:
        return False
    return True


def _data_of(part: Mapping[str, Any]) -> str:
    """The data, the address or the id of a part."""
    inner = part.get(str(part.get("type")))
    inner = inner if isinstance(inner, Mapping) else {"url": inner}
    return next((value for name in _DATA if isinstance(value := inner.get(name), str) and value), "")


def _kind(message: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    kind, data = str(part.get("type")), _data_of(part)
    written = data[:_SHORT_CHARACTERS] if "://" in data[:_SHORT_CHARACTERS] else data[:_PIECE_CHARACTERS]
    named = written.partition(";" if written.startswith("data:") else "://")
    return f"{message.get('role')}:{kind}:{named[0] if named[1] else at(part, kind, 'format')}"


def first_lost(pieces: Mapping[str, bytes], body: bytes) -> str | None:
    """The first place whose piece is not in the body of a request as often as in its messages."""
    seen: Counter[bytes] = Counter()
    end, left = 0, _SEARCHED_AGAIN_BYTES
    for place, piece in pieces.items():
        if not piece:
            continue
        seen[piece] += 1
        found = next(_strings_with(piece, body, end), None)  # mostly in the messages' order: one search of the body
        if found is not None:
            end = found
            continue
        left -= len(body)
        if left < 0:  # in an order of the provider's own
            return None
        if sum(1 for _ in _strings_with(piece, body, 0)) < seen[piece]:
            return place
    return None


def _strings_with(piece: bytes, body: bytes, start: int) -> Iterator[int]:
    """The ends of the strings with a piece, except texts: LiteLLM prints parts into the prompts of some providers.

    Every byte is read a few times at most, however often a text repeats a piece: the search goes on behind its end.
    """
    while start >= 0 and (place := body.find(piece, start)) >= 0:
        opening = body.rfind(b'"', start, place)
        printed = body[opening - 1 : opening] == b"\\" or body.find(b"': '", opening, place) >= 0
        start = body.find(b'"', place + len(piece.rstrip(b'"')))
        if not printed:
            yield start


def _piece(data: str) -> bytes:
    """Characters from the middle of inline data, an address or an id that every way to write it leaves alone.

    JSON writes a line break or a letter beyond ASCII in another way, and LiteLLM may remove it. Short ones have the
    end of their string behind them: a letter or two are in every body.
    """
    written = data.partition(",")[2] if data.startswith("data:") else data
    middle = max(0, min(len(written) // 2, len(written) - _PIECE_CHARACTERS))
    plain = _PLAIN.findall(written[middle : middle + _PIECE_CHARACTERS] or written)
    piece = max(plain, key=len, default="")
    return (piece + '"' if piece == written and len(piece) < _SHORT_CHARACTERS else piece).encode()
