"""Log lines as text and as JSON: their fields, a request's ids, and what is hard to write down."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from contextvars import copy_context
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from gateway.database.database import transaction
from gateway.database.tables import tenants
from gateway.logs import JsonFormatter, UtcFormatter, logging_config
from gateway.request_ids import REQUEST, RequestIds, id_of, note_decision, note_session, note_tenant, numbered_ids

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
IDS = {"request_id": "req_1", "tenant_id": "acme", "session_id": "s-1", "decision_id": "dec_1"}


def record(message: str, name: str = "seqroute.turn", **more: Any) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, (), more.pop("exc_info", None), **more)


def during_a_turn(formatter: logging.Formatter, message: str) -> str:
    def line() -> str:
        REQUEST.set(RequestIds("req_1"))
        note_tenant("acme")
        note_session("acme", "s-1")
        note_decision("dec_1")
        return formatter.format(record(message))

    return copy_context().run(line)


def test_a_line_is_one_object_with_the_ids_of_its_turn() -> None:
    line = json.loads(during_a_turn(JsonFormatter(), "two\nlines"))
    assert re.fullmatch(TIME, line.pop("time"))
    assert line.pop("process") > 0
    assert line == {"level": "warning", "logger": "seqroute.turn", "message": "two\nlines"} | IDS


def test_a_line_outside_of_any_turn_has_no_ids_and_an_unknown_one_is_left_out() -> None:
    assert json.loads(JsonFormatter().format(record("x"))).keys() == {"time", "level", "logger", "message", "process"}

    def line() -> str:
        REQUEST.set(RequestIds())
        note_tenant("acme")
        return JsonFormatter().format(record("x"))

    assert json.loads(copy_context().run(line)).keys() & IDS.keys() == {"tenant_id"}


def test_text_has_the_ids_behind_the_message_and_json_the_traceback_in_a_field() -> None:
    told = " ".join(f"{name}={value}" for name, value in IDS.items())
    assert re.fullmatch(rf"{TIME} WARNING seqroute\.turn: x \[{told}\]", during_a_turn(UtcFormatter(), "x"))
    try:
        raise ValueError("found five")
    except ValueError:
        failed = record("Exception in ASGI application\n", "uvicorn.error", exc_info=sys.exc_info())
    line = json.loads(JsonFormatter().format(failed))
    assert (line["logger"], line["message"]) == ("uvicorn", "Exception in ASGI application")
    assert line["stack"].startswith("Traceback (most recent call last):")
    assert line["stack"].endswith("ValueError: found five")
    assert UtcFormatter().format(failed).splitlines()[1:] == line["stack"].splitlines()


def test_half_a_character_is_escaped_and_every_line_stays_readable() -> None:
    line = JsonFormatter().format(record('\ud800 "quoted" \x1b[31m'))
    assert "\n" not in line
    assert line.isascii()
    assert json.loads(line)["message"] == '\ud800 "quoted" \x1b[31m'


async def test_the_tasks_of_a_request_name_what_it_learns_later_and_another_request_does_not() -> None:
    async def later(learned: asyncio.Event) -> dict[str, str]:
        await learned.wait()
        ids = REQUEST.get()
        assert ids is not None
        return ids.named()

    async def serve(request_id: str, decision_id: str) -> dict[str, str]:
        REQUEST.set(RequestIds(request_id))
        learned = asyncio.Event()
        task = asyncio.create_task(later(learned))
        await asyncio.sleep(0)
        note_decision(decision_id)
        learned.set()
        return await task

    first, second = await asyncio.gather(serve("req_1", "dec_1"), serve("req_2", "dec_2"))
    assert first == {"request_id": "req_1", "decision_id": "dec_1"}
    assert second == {"request_id": "req_2", "decision_id": "dec_2"}


def test_outside_of_a_request_nothing_is_noted() -> None:
    def noting() -> RequestIds | None:
        note_tenant("acme")
        note_session("acme", "s-1")
        note_decision("dec_1")
        return REQUEST.get()

    assert copy_context().run(noting) is None


def test_a_request_keeps_the_id_that_a_proxy_gave_and_gets_one_otherwise() -> None:
    made = numbered_ids(lambda count: bytes(count))
    assert [made(), made()] == ["req_0000000000000000_1", "req_0000000000000000_2"]
    given = [(b"host", b"x"), (b"x-request-id", b"7b0c-4/a=:+.")]
    assert id_of(given, made) == "7b0c-4/a=:+."
    for bad in (b"", b"two words", b"\xff\xfe", b'"}', b"x" * 129, b"x\x00"):
        assert id_of([(b"x-request-id", bad)], made).startswith("req_")
    assert numbered_ids()() != numbered_ids()()


def test_every_other_logger_is_heard_from_warning_on() -> None:
    for log_format in ("text", "json"):
        made = logging_config("debug", log_format)
        assert made["root"]["level"] == "WARNING"
        assert made["loggers"]["uvicorn"]["level"] == "DEBUG"


@pytest.mark.parametrize("formatter", [JsonFormatter(), UtcFormatter()])
def test_a_failed_statement_is_told_without_its_values(database_url: str, formatter: logging.Formatter) -> None:
    row = {"tenant_id": "the-prompt", "name": "the-answer", "granted_nanousd": -1, "created_at_ms": 0}
    try:
        with transaction(database_url) as connection:
            connection.execute(insert(tenants).values(row))
    except IntegrityError:
        line = formatter.format(record("internal error", exc_info=sys.exc_info()))
    assert "INSERT INTO tenants" in line
    assert "IntegrityError" in line
    assert "the-prompt" not in line
    assert "the-answer" not in line
