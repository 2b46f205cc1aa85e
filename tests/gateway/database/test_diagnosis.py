"""What an operator reads about a database that cannot be used."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from gateway.database.database import parse_url
from gateway.database.diagnosis import address, outage
from gateway.database.postgres import unavailable


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pw@db:6543/led%20ger?sslmode=require", "postgresql://me@db:6543/led ger"),
        ("postgresql:///ledger?host=/run/postgres", "postgresql:///run/postgres/ledger"),
        ("sqlite:////var/lib/g.db", "sqlite:////var/lib/g.db"),
    ],
)
def test_the_address_has_no_password_and_no_options(url: str, shown: str) -> None:
    assert address(parse_url(url)) == shown


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("connection to server failed: Connection refused\nIs it running?", "start it, or correct"),
        ('FATAL:  database "ledger" does not exist', "create it, then run `seqroute migrate`"),
        ('FATAL:  password authentication failed for user "me"', "correct user and password"),
        ("cannot execute UPDATE in a read-only transaction", "the primary"),
        ('could not extend file "base/1/2": No space left on device', "free space"),
    ],
)
def test_the_reason_is_the_drivers_first_line_with_what_to_do(said: str, advice: str) -> None:
    try:
        try:
            raise OperationalError(None, None, psycopg.OperationalError(said + " p%2Fw p/w"))
        except OperationalError as error:
            raise unavailable("the database does not answer") from error
    except Exception as error:  # noqa: BLE001 - as it reaches the start
        line = outage(parse_url("postgresql://me:p%2Fw@db/ledger"), error)
    assert said.splitlines()[0].split("  ")[-1] in line
    assert advice in line
    assert "p/w" not in line
    assert "p%2Fw" not in line
    assert "\n" not in line
