"""The auditor: what clients saw, what the ledger holds, and (for end-to-end tests) what the upstream billed, compared.

The ledger half is the product's own audit, run over the test's database; a test that ends with a broken law fails,
whatever it was about.
"""

from __future__ import annotations

from gateway.audit import Violation, audit
from gateway.db import Database, transaction


async def assert_ledger_sound(database: Database, *, at_ms: int, grace_ms: int | None = None) -> None:
    """I1 to I4 over a started database. With `grace_ms`, also: nothing is open longer than that after its lease."""
    broken = await database.read(lambda connection: audit(connection, now_ms=at_ms, grace_ms=grace_ms))
    assert broken == [], _listing(broken)


def assert_url_sound(url: str, *, at_ms: int | None = None, grace_ms: int | None = None) -> None:
    """The same for a database that nobody has open here, for example after its gateway was killed."""
    with transaction(url, read_only=True) as connection:
        broken = audit(connection, now_ms=at_ms, grace_ms=grace_ms)
    assert broken == [], _listing(broken)


def _listing(broken: list[Violation]) -> str:
    return "\n".join(["the ledger is not sound:", *map(str, broken)])
