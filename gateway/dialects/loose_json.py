"""A tolerant JSON reader for providers' responses; its values are valid in strict JSON.

`read_json` uses orjson for valid text. Otherwise it also accepts NaN and infinities, other spellings of numbers, halves
of surrogate pairs, bytes that are not UTF-8, raw control characters, a byte-order mark, and commas before a closing
bracket. Other text is a ValueError.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

MINUS_INFINITY = -9999.0
"""OpenAI's value for the logarithm of a probability of almost zero."""

_MANY_BRACKETS = 200
"""With fewer brackets a value cannot exceed orjson's nesting limit (254 levels)."""

_SPARE_LEVELS = 4
"""Levels that the gateway may wrap around a value."""

_MAX_INT_DIGITS = 20
_INT_BITS = 63
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[^\s"{}\[\]:,]+', re.DOTALL)
"""A string that is cut off is one token: its escaped quotes begin no others, so that each character is read once."""
_SPACE = re.compile(r"\s*")
_LAST_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"?|,(?=\s*[}\]])', re.DOTALL)
_AROUND = b" \t\r\n,;"
"""What servers write around the values of a list that they send one by one."""
_INTEGER = re.compile(r"[-+]?\d[\d_]*")
_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_WORDS = {
    "nan": "null", "none": "null", "undefined": "null", "true": "true", "false": "false", "null": "null",
    "inf": "null", "infinity": "null", "-inf": str(MINUS_INFINITY), "-infinity": str(MINUS_INFINITY),
}  # fmt: skip


def read_json(data: bytes | bytearray) -> Any:
    """The value of `data`, which orjson can serialise again. Raises ValueError."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return strict_value(read_loosely(data))
    check_depth(data, value)
    return value


def read_loosely(data: bytes | bytearray) -> Any:
    """The slow path of `read_json`; keeps halves of surrogate pairs. Raises ValueError."""
    text = _decoded(bytes(data))
    try:
        try:
            value = _parsed(text)
        except ValueError:
            text = _LAST_COMMA.sub(lambda match: "" if match[0] == "," else match[0], text)
            try:
                value = _parsed(text)
            except ValueError:
                value = _parsed(_TOKEN.sub(lambda match: _respelled(match[0]), text))
        check_depth(data, strict_value(value))
    except RecursionError:
        raise ValueError("expected JSON that is not nested so deeply") from None
    return value


def without_list(data: bytes) -> bytes:
    """A value without the separators and the one bracket of the list that it is sent in."""
    data = data.strip(_AROUND)
    begins, ends = data.startswith(b"["), data.endswith(b"]")
    if begins != ends:
        data = (data[1:] if begins else data[:-1]).strip(_AROUND)
    return data


def read_values(data: bytes | bytearray) -> tuple[list[Any], str]:
    """The values that `data` begins with, and what follows. Raises ValueError without any."""
    text, at, values = _decoded(bytes(data)), 0, []
    decoder = json.JSONDecoder(strict=False, parse_constant=_constant, parse_float=_float, parse_int=_integer)
    try:
        while True:
            space = _SPACE.match(text, at)
            at = at if space is None else space.end()
            if not text.startswith(("{", "["), at):
                break
            value, at = decoder.raw_decode(text, at)
            values.append(strict_value(value))
    except (ValueError, RecursionError):
        pass
    check_depth(data, values)
    if not values:
        raise ValueError("expected JSON")
    return values, text[at:]


def check_depth(data: bytes | bytearray, value: Any) -> None:
    """Raise ValueError when `value`, read from `data`, is nested too deeply to be serialised."""
    if data.count(b"{") + data.count(b"[") > _MANY_BRACKETS:
        wrapped = value
        for _ in range(_SPARE_LEVELS):
            wrapped = [wrapped]
        try:
            orjson.dumps(wrapped)
        except TypeError:
            raise ValueError("expected JSON that is not nested so deeply") from None


def strict_value(value: Any) -> Any:
    """The value, made valid for strict JSON.

    Halves of surrogate pairs are joined or replaced by U+FFFD; numbers beyond 64 bits or not finite are replaced.
    """
    if isinstance(value, str):
        return _joined(value)
    if isinstance(value, dict):
        return {_joined(key) if isinstance(key, str) else key: strict_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return _constant("-Infinity" if value < 0 else "Infinity")
    if isinstance(value, int) and value.bit_length() > _INT_BITS:
        return _float(str(value))
    return value


def _joined(text: str) -> str:
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decoded(data: bytes) -> str:
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        return data.decode(encoding, "replace")


def _parsed(text: str) -> Any:
    return json.loads(text, strict=False, parse_constant=_constant, parse_float=_float, parse_int=_integer)


def _constant(name: str) -> float | None:
    return MINUS_INFINITY if name == "-Infinity" else None


def _float(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else _constant("-Infinity" if number < 0 else "Infinity")


def _integer(digits: str) -> float | int | None:
    number = int(digits) if len(digits) <= _MAX_INT_DIGITS else None
    return number if number is not None and number.bit_length() <= _INT_BITS else _float(digits)


def _respelled(token: str) -> str:
    """A bare word or number in JSON's spelling, if it has one."""
    if token[0] == '"':
        return token
    word = _WORDS.get(token.lower().removeprefix("+"))
    if word is not None:
        return word
    digits = token.replace("_", "")
    if _INTEGER.fullmatch(token):
        return json.dumps(_integer(digits))
    if _NUMBER.fullmatch(token):
        return json.dumps(_float(digits))
    return token
