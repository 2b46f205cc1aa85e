"""Shared by all commands: configuration, database, tables and JSON, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sqlalchemy import Connection

ConfigOption = Annotated[
    Path, typer.Option("--config", envvar="SEQROUTE_CONFIG", metavar="FILE", help="The configuration file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DEFAULT_CONFIG = Path("gateway.yaml")

BAD_INPUT, BROKEN = 2, 1
"""Exit codes: the request is invalid; the installation or its data is broken."""

_OPTIONS: Mapping[str, str] = {
    "budget_duration": "--window",
    "budget_usd": "--budget-usd",
    "expected_turns": "--expected-turns",
    "expires": "--expires",
    "max_session_usd": "--max-session-usd",
    "models": "--models",
    "outage": "--outage",
    "role": "--role",
}
"""The API's name of a field -> the option that sets it."""
_GAP = "  "
_TIMES = ("_at_ms", "_until_ms")
"""Endings of the fields that are moments."""
_UNITS = ((86_400_000, "day"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


class CommandError(Exception):
    """Ends a command with lines on stderr and an exit code."""

    def __init__(self, *lines: str, status: int = BAD_INPUT) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.status = status


def environment() -> Mapping[str, str]:
    """The variables that configurations may refer to."""
    return os.environ


def say(line: str) -> None:
    """Print a remark on stderr; stdout is reserved for the result."""
    print(line, file=sys.stderr)


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """Print rows as a table of `columns`, the most important first, or as a complete JSON list.

    A narrow terminal gets fewer columns; ids and amounts are never truncated.
    """
    if as_json:
        print(json.dumps(list(rows), indent=2))
        return
    if not rows:
        say(empty)
        return
    at_ms = now_ms()
    lines = [[_heading(column) for column in columns]]
    lines += [[_cell(column, row.get(column), at_ms) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    kept = len(columns)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        while kept > 2 and sum(widths[:kept]) + len(_GAP) * (kept - 1) > width:
            kept -= 1
    for line in lines:
        print(_GAP.join(cell.ljust(width) for cell, width in zip(line[:kept], widths[:kept], strict=True)).rstrip())
    if kept < len(columns):
        say(f"not shown on this narrow terminal: {', '.join(lines[0][kept:])} (--json has everything)")


def show_one(row: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one object as `name  value` lines, or as JSON with the integer amounts."""
    if as_json:
        print(json.dumps(dict(row), indent=2))
        return
    at_ms = now_ms()
    shown = {name: value for name, value in row.items() if not name.endswith("_nano_usd")}
    width = max(len(_heading(name)) for name in shown)
    for name, value in shown.items():
        text = _cell(name, value, at_ms)
        exact = moment(value) if name.endswith(_TIMES) else None
        print(f"{_heading(name).ljust(width)}{_GAP}{text if exact is None else f'{exact} ({text})'}")


@contextmanager
def opened(config: Path, *, read_only: bool = False) -> Iterator[Connection]:
    """One transaction on the configured database, also while a gateway serves from it.

    Reads only the database URL of the configuration, so no provider keys are needed.
    """
    from sqlalchemy.exc import DBAPIError

    from gateway.config.load import read_database_url
    from gateway.database.database import DatabaseStartError, transaction
    from gateway.errors import GatewayError
    from migrations.upgrade import NotMigrated, expect_file, expect_migrated

    url = read_database_url(config, environment()).reveal()
    try:
        expect_file(url)
        with transaction(url, read_only=read_only) as connection:
            expect_migrated(connection)
            yield connection
    except NotMigrated as error:
        raise CommandError(f"database: {error}") from error
    except DatabaseStartError as error:
        raise CommandError(f"database: {error}", status=BROKEN) from error
    except GatewayError as error:
        raise CommandError(_with_options(error)) from error
    except DBAPIError as error:
        raise CommandError(f"database: {type(error.orig).__name__}: {first_line(error.orig)}", status=BROKEN) from error


def first_line(error: object) -> str:
    """First line of a message; a driver's later lines may quote the statement and its values."""
    return (str(error).strip().splitlines() or [""])[0][:300]


def amount_nanousd(name: str, text: str | None) -> int | None:
    """An amount of USD from the command line."""
    from gateway.money import MoneyError, nanousd_from_usd

    if text is None:
        return None
    try:
        return nanousd_from_usd(text)
    except MoneyError as error:
        raise CommandError(f"{name}: {error}") from error


def now_ms() -> int:
    """The wall clock, as every table stores it."""
    return int(time.time() * 1000)


def moment(at_ms: int | None) -> str | None:
    """Milliseconds since the epoch as UTC text, to the second."""
    from datetime import UTC, datetime

    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(at_ms: int, now: int) -> str:
    """A time relative to now: "3 min ago", "in 2 days"."""
    away_ms = abs(now - at_ms)
    if away_ms < 1_000:
        return "now"
    size_ms, unit = next((size_ms, unit) for size_ms, unit in _UNITS if away_ms >= size_ms)
    count = away_ms // size_ms
    text = f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}"
    return f"{text} ago" if at_ms <= now else f"in {text}"


def _with_options(error: Any) -> str:
    """An error's text, with the option's name instead of the API field."""
    option, text = _OPTIONS.get(error.param or ""), str(error.message)
    return f"{option}{text[len(error.param) :]}" if option and text.startswith(f"{error.param}:") else text


def _heading(column: str) -> str:
    return column.removesuffix("_at_ms").removesuffix("_ms")


def _cell(column: str, value: Any, at_ms: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column.endswith(_TIMES):
        return ago(value, at_ms)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(str(item) for item in value) or "-"
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)
