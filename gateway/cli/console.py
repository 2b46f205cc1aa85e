"""What every command shares: the configuration it was given, the database behind it, tables and JSON, exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sqlalchemy import Connection

ConfigOption = Annotated[
    Path, typer.Option("--config", envvar="SEQROUTE_CONFIG", metavar="FILE", help="The configuration.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DEFAULT_CONFIG = Path("gateway.yaml")

BAD_INPUT, BROKEN = 2, 1
"""Exit codes: what was asked cannot be done as it was asked; something is wrong with what is there."""


class CommandError(Exception):
    """Ends a command with lines on stderr and an exit code."""

    def __init__(self, *lines: str, status: int = BAD_INPUT) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.status = status


def environment() -> Mapping[str, str]:
    return os.environ


def say(line: str) -> None:
    """A remark for the person at the terminal; stdout stays for what was asked for."""
    print(line, file=sys.stderr)


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """Rows as a table of `columns`, or whole as a JSON list."""
    if as_json:
        print(json.dumps(list(rows), indent=2))
        return
    if not rows:
        say(empty)
        return
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*columns, box=None, header_style="bold", pad_edge=False)
        for line in cells:
            table.add_row(*line)
        Console().print(table)
        return
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_one(row: Mapping[str, Any], *, as_json: bool) -> None:
    """One object: `name  value` lines, or JSON."""
    if as_json:
        print(json.dumps(dict(row), indent=2))
        return
    width = max(len(name) for name in row)
    for name, value in row.items():
        print(f"{name.ljust(width)}  {_cell(value)}")


@contextmanager
def opened(config: Path, *, read_only: bool = False) -> Iterator[Connection]:
    """One transaction on the configured database; also while a gateway serves from it.

    Only the database URL of the configuration is read: an account can be managed from a shell that lacks the
    provider's keys.
    """
    from sqlalchemy.exc import DBAPIError

    from gateway.config.load import read_database_url
    from gateway.database.database import DatabaseStartError, transaction
    from gateway.errors import GatewayError
    from migrations.upgrade import current_revision, newest_revision

    url = read_database_url(config, environment())
    try:
        with transaction(url.reveal(), read_only=read_only) as connection:
            found, expected = current_revision(connection), newest_revision()
            if found != expected:
                at = found or "an empty database"
                raise CommandError(f"database: expected revision {expected}, got {at}: run `seqroute migrate`")
            yield connection
    except DatabaseStartError as error:
        raise CommandError(f"database: {error}", status=BROKEN) from error
    except GatewayError as error:
        raise CommandError(error.message) from error
    except DBAPIError as error:
        raise CommandError(f"database: {type(error.orig).__name__}: {first_line(error.orig)}", status=BROKEN) from error


def first_line(error: object) -> str:
    """The first line of a message: a driver's second line may quote the statement and its values."""
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


def moment(at_ms: int | None) -> str | None:
    """Milliseconds since the epoch as UTC, to the second."""
    from datetime import UTC, datetime

    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(str(item) for item in value) or "-"
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)
