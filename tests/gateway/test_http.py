"""HTTP's edges: bodies are read no further than they may be, errors keep OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from gateway.accounts.fields import money_fields
from gateway.config.settings import LimitSettings
from gateway.errors import InvalidRequest, NotFound, RequestTooLarge, UnsupportedMediaType, http_status
from gateway.http import json_response, query_limit, query_values, read_body

LIMITS = LimitSettings(body_bytes=10)


class Wire:
    """A request whose body comes in `pieces`; counts how many were taken."""

    def __init__(self, pieces: Iterable[bytes | None], headers: Mapping[str, str], query: str = "") -> None:
        self._pieces = iter(pieces)
        self.taken = 0
        scope: dict[str, Any] = {
            "type": "http", "method": "POST", "path": "/", "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        self.request = Request(scope, self._receive)

    async def _receive(self) -> Message:
        piece = next(self._pieces, b"")
        if piece is None:
            return {"type": "http.disconnect"}
        self.taken += 1
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}


async def test_a_body_is_put_together() -> None:
    assert await read_body(Wire([b"abc", b"def"], {"content-type": "application/json"}).request, LIMITS) == b"abcdef"
    assert await read_body(Wire([b"0123456789"], {}).request, LIMITS) == b"0123456789"


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/json "])
async def test_json_is_json_however_it_is_written(content_type: str) -> None:
    assert await read_body(Wire([b"{}"], {"content-type": content_type}).request, LIMITS) == b"{}"


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"content-type": "text/plain"}, "Content-Type"),
        ({"content-type": "multipart/form-data; boundary=x"}, "Content-Type"),
        ({"content-type": "application/x-www-form-urlencoded"}, "Content-Type"),
        ({"content-type": ""}, "Content-Type"),
        ({"content-encoding": "gzip"}, "Content-Encoding"),
        ({"content-encoding": "identity, br"}, "Content-Encoding"),
    ],
)
async def test_what_is_not_plain_json_is_refused_before_any_byte_is_read(headers: dict[str, str], param: str) -> None:
    wire = Wire([b"{}"], headers)
    with pytest.raises(UnsupportedMediaType) as refused:
        await read_body(wire.request, LIMITS)
    assert refused.value.param == param
    assert wire.taken == 0


async def test_a_body_that_declares_to_be_too_large_is_not_read_at_all() -> None:
    wire = Wire([b"x" * 11], {"content-length": "11"})
    with pytest.raises(RequestTooLarge):
        await read_body(wire.request, LIMITS)
    assert wire.taken == 0


@pytest.mark.parametrize("headers", [{}, {"content-length": "5"}, {"content-length": "-1"}, {"content-length": "x"}])
async def test_a_body_that_turns_out_too_large_is_left_at_the_cap(headers: dict[str, str]) -> None:
    wire = Wire([b"12345", b"123456", b"never"], headers)
    with pytest.raises(RequestTooLarge):
        await read_body(wire.request, LIMITS)
    assert wire.taken == 2


async def test_a_connection_that_closes_early_is_a_bad_request() -> None:
    with pytest.raises(InvalidRequest):
        await read_body(Wire([b"{", None], {}).request, LIMITS)


def test_errors_have_openai_s_shape_and_their_status() -> None:
    error = NotFound("no such thing", param="model", details={"left": 1})
    assert http_status(error) == 404
    assert error.as_body() == {
        "error": {
            "message": "no such thing", "type": "invalid_request_error", "param": "model", "code": "not_found",
            "left": 1,
        }
    }  # fmt: skip


@pytest.mark.parametrize("value", ["0", "-1", "11", "1e3", "", "x", "٣", "1" * 5000])
def test_an_integer_out_of_range_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        query_limit({"limit": value}, 5, 10)
    assert refused.value.param == "limit"


def test_an_integer_in_range_is_taken_and_a_missing_one_is_the_default() -> None:
    assert query_limit({"limit": "7"}, 5, 10) == 7
    assert query_limit({}, 5, 10) == 5


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ("tenant_id=x", "tenant_id", 'tenant_id: expected one of limit, tenant; did you mean "tenant"?'),
        ("tenant=x&page=2", "page", "page: expected one of limit, tenant"),
        ("tenant=x&limit=1&tenant=y", "tenant", "tenant: expected this parameter once"),
    ],
)
def test_a_parameter_that_would_filter_nothing_is_refused_by_name(query: str, param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        query_values(Wire([], {}, query).request, "tenant", "limit")
    assert (refused.value.param, refused.value.message) == (param, message)


def test_what_clients_append_to_every_address_is_no_filter() -> None:
    query = "beta=true&api-version=2024-10-21&tenant=x"
    assert query_values(Wire([], {}, query).request, "tenant", "limit") == {"tenant": "x"}


def test_money_is_told_twice() -> None:
    assert money_fields("spent", 1_500) == {"spent_nano_usd": 1_500, "spent_usd": "0.0000015"}
    assert money_fields("spent", None) == {"spent_nano_usd": None, "spent_usd": None}
    assert json_response({"a": 1}, 201).status_code == 201
