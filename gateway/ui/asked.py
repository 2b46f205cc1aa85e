"""Forms and queries of the dashboard's pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qs

from starlette.requests import Request

from gateway.errors import Forbidden, InvalidRequest
from gateway.http import query_values

MAX_FORM_BYTES = 16_384
PERIODS_DAYS = (1, 7, 30, 90)

T = TypeVar("T", int, str)


async def read_form(request: Request) -> dict[str, str]:
    """Read a small form. Raises Forbidden for another origin, InvalidRequest if malformed."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none"):
        raise Forbidden("forms are accepted from the dashboard's own pages only")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise InvalidRequest(f"form: expected at most {MAX_FORM_BYTES} bytes")
    try:
        fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=32)
    except ValueError as error:
        raise InvalidRequest("form: expected urlencoded UTF-8 fields") from error
    return {name: values[-1].strip() for name, values in fields.items()}


def period_days(request: Request, default: int) -> int:
    """The period of a page without other parameters. Raises InvalidRequest."""
    return choice_of(query_values(request, "days"), "days", PERIODS_DAYS, default)


def text_of(asked: Mapping[str, str], name: str, most: int) -> str:
    """The text of a field, empty without it. Raises InvalidRequest above `most` characters."""
    value = asked.get(name, "")
    if len(value) > most or "\0" in value:
        raise InvalidRequest(f"{name}: expected at most {most} characters without NUL", param=name)
    return value


def number_of(asked: Mapping[str, str], name: str) -> int | None:
    """The whole number of a field. Raises InvalidRequest."""
    value = asked.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 16):
        raise InvalidRequest(f"{name}: expected a whole number", param=name)
    return int(value)


def choice_of(asked: Mapping[str, str], name: str, allowed: tuple[T, ...], default: T) -> T:
    """The one of `allowed` that a field names. Raises InvalidRequest."""
    value = asked.get(name)
    for choice in allowed:
        if value == str(choice):
            return choice
    if value is None:
        return default
    raise InvalidRequest(f"{name}: expected one of {', '.join(str(choice) for choice in allowed)}", param=name)
