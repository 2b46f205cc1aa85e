"""The auditor: what clients saw, what the ledger holds, and (for end-to-end tests) what the upstream billed, compared.

The ledger half is the product's own audit, run over the test's database; a test that ends with a broken law fails,
whatever it was about. `compare` is the other half: three sets of books, joined by the tag in each question. It judges
a database whose faults are over (every hold at rest) and returns what is broken, in sentences.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from gateway.database.database import Database, transaction
from gateway.database.tables import decisions, holds, ledger_entries
from gateway.ledger.audit import Violation, audit
from tests.harness.clients import Turn
from tests.harness.upstream_answers import Attempt

NANO_PRICES: Mapping[str, tuple[int, int]] = {"big": (10_000, 20_000)}
"""nano-USD per token in and out of the test models; every other model is priced like `small`."""
SMALL_PRICES = (1_000, 2_000)


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


@dataclass(slots=True)
class Books:
    """What one tag comes to in the ledger, at the provider and in the client's memory."""

    turns: list[Turn] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    holds: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`broken` must be empty. The figures are what a report quotes."""

    broken: list[str]
    turns: int
    acknowledged: int
    attempts: int
    settled_exactly: int
    estimated: int
    orphaned: int
    uncalled: int
    """Orphans whose process died between the commit of its hold and the call (docs/decisions/0005)."""
    overshoot_nanousd: int
    estimate_error: float
    """Of turns that were settled at an estimate: |posted - billed| over billed, summed."""
    orphan_error: float
    """The same of turns that a sweeper posted, from the last checkpoint of a process that died."""

    def as_line(self) -> str:
        return (
            f"turns {self.turns}, acknowledged {self.acknowledged}, provider calls {self.attempts}, "
            f"settled to the exact bill {self.settled_exactly}, estimated {self.estimated} "
            f"(off by {self.estimate_error:.1%}), orphans posted {self.orphaned} (off by {self.orphan_error:.1%}; "
            f"{self.uncalled} of them before their call went out), "
            f"overshoot {self.overshoot_nanousd} nano-USD, broken laws {len(self.broken)}"
        )


def billed_nanousd(attempt: Attempt) -> int:
    """What the provider's own books say of one attempt."""
    price_in, price_out = NANO_PRICES.get(attempt.model, SMALL_PRICES)
    return attempt.prompt_tokens * price_in + attempt.output_tokens * price_out


def compare(url: str, turns: Sequence[Turn], bill: Sequence[Attempt]) -> Verdict:
    """I2 to I8 over three sets of books. All tenants of the test store their text, or their turns cannot be joined."""
    with transaction(url, read_only=True) as connection:
        asked = {
            row.decision_id: _tag_of(row.request_text)
            for row in connection.execute(select(decisions.c.decision_id, decisions.c.request_text))
        }
        all_holds = [dict(row._mapping) for row in connection.execute(select(holds))]
        sources: dict[str, set[str]] = defaultdict(set)
        terminal = ("settle", "late_post", "orphan_post")
        entries = select(ledger_entries.c.hold_id, ledger_entries.c.usage_source, ledger_entries.c.kind)
        for row in connection.execute(entries.where(ledger_entries.c.kind.in_(terminal))):
            sources[row.hold_id].add(f"{row.kind}:{row.usage_source}")
        overage = connection.execute(
            select(ledger_entries.c.amount_nanousd).where(ledger_entries.c.kind == "overage")
        ).scalars()
        overshoot_nanousd = sum(overage)
    books: dict[str, Books] = defaultdict(Books)
    for turn in turns:
        books[turn.tag].turns.append(turn)
    for attempt in bill:
        books[attempt.tag].attempts.append(attempt)
    broken: list[str] = []
    for hold in all_holds:
        tag = asked.get(hold["decision_id"])
        if tag is None:
            broken.append(f"hold {hold['hold_id']}: its decision stores no question")
            continue
        hold["sources"] = sources[hold["hold_id"]]
        books[tag].holds.append(hold)
    if overshoot_nanousd:
        broken.append(f"overage entries of {overshoot_nanousd} nano-USD, though the provider honours max_tokens")
    counts = dict.fromkeys(("exact", "estimated", "orphaned", "uncalled", "off", "off_of", "lost", "lost_of"), 0)
    for tag, book in books.items():
        broken.extend(f"{tag}: {fault}" for fault in _judge(book, counts))
    return Verdict(
        broken=broken,
        turns=len(turns),
        acknowledged=sum(turn.fate == "ok" for turn in turns),
        attempts=len(bill),
        settled_exactly=counts["exact"],
        estimated=counts["estimated"],
        orphaned=counts["orphaned"],
        uncalled=counts["uncalled"],
        overshoot_nanousd=overshoot_nanousd,
        estimate_error=counts["off"] / counts["off_of"] if counts["off_of"] else 0.0,
        orphan_error=counts["lost"] / counts["lost_of"] if counts["lost_of"] else 0.0,
    )


def assert_books_agree(url: str, turns: Sequence[Turn], bill: Sequence[Attempt]) -> Verdict:
    """`compare`, and nothing is broken."""
    verdict = compare(url, turns, bill)
    assert verdict.broken == [], "\n".join(["the books do not agree:", *verdict.broken[:40]])
    return verdict


def _judge(book: Books, counts: dict[str, int]) -> Iterable[str]:
    """One question's books against each other."""
    called = [attempt for attempt in book.attempts if attempt.status == 200]
    # The journal of an outage is posted under holds without a mark; a bill that was posted proves the dispatch too.
    dispatched = [hold for hold in book.holds if hold["dispatched"] or hold["state"] == "settled" or hold["late"]]
    posted = sum(hold["posted_nanousd"] for hold in book.holds)
    billed = sum(map(billed_nanousd, called))
    if len(book.attempts) > len(dispatched):
        yield f"I6: the provider was called {len(book.attempts)} times under {len(dispatched)} dispatched reservations"
    if billed > sum(hold["amount_nanousd"] for hold in dispatched):
        yield f"I2: the provider billed {billed}, more than was held"
    open_holds = [hold["hold_id"] for hold in book.holds if hold["state"] == "open"]
    if open_holds:
        yield f"I4: still open: {open_holds}"
    if posted > sum(hold["amount_nanousd"] for hold in dispatched):
        yield f"I2: {posted} posted, more than was held"
    if called and posted == 0 and billed > 0:
        yield f"I7: the provider billed {billed} and nothing was posted"
    if len(called) > 1 and any(turn.tries > 1 or len(book.turns) > 1 for turn in book.turns) and _one_key(book):
        yield f"I8: one idempotency key, {len(called)} answered calls"
    all_sources = {source for hold in book.holds for source in hold["sources"]}
    orphans = sum(hold["state"] == "orphaned" for hold in book.holds)
    counts["orphaned"] += orphans
    counts["uncalled"] += max(0, orphans - len(book.attempts))
    exact = bool(all_sources) and all_sources <= {"settle:reported"}
    if exact and posted != billed:
        yield f"I5: settled {posted} on reports, the provider billed {billed}"
    if exact:
        counts["exact"] += 1
    elif posted and called:
        counts["estimated"] += not orphans
        counts["lost" if orphans else "off"] += abs(posted - billed)
        counts["lost_of" if orphans else "off_of"] += billed
    yield from _acknowledged(book, posted, called)


def _acknowledged(book: Books, posted: int, called: Sequence[Attempt]) -> Iterable[str]:
    """I7: an answer the client has in full is paid for, once, at the price it was told."""
    for turn in book.turns:
        if turn.fate != "ok":
            continue
        if not book.holds:
            yield "I7: acknowledged, and the ledger knows nothing of it"
        elif not called:
            yield "I6: acknowledged, and the provider was never called"
        elif all(hold["state"] == "settled" for hold in book.holds if hold["dispatched"]):
            told = turn.cost_nanousd
            if told is not None and len(called) == 1 and told != posted:
                yield f"I7: the client was told {told}, {posted} was posted"
        elif posted == 0:
            yield "I7: acknowledged, and nothing was posted"


def _one_key(book: Books) -> bool:
    """Whether every request of this tag was the same one, so that one call must have answered them all."""
    return len({hold["decision_id"] for hold in book.holds if hold["state"] == "settled"}) > 1


def _tag_of(request_text: str | None) -> str | None:
    if request_text is None:
        return None
    content = json.loads(request_text)[-1]["content"]
    return content if isinstance(content, str) else None
