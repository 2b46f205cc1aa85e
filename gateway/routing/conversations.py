"""Session of a conversation without an id: that of its longest known beginning.

Every turn of such a conversation stores a row with its bill: the digest of its messages, the session, and the digest of
the answer. The next turn repeats these messages, followed by the answer and more. Two runs that begin with the same
messages differ in their answers, and in what was already continued. System prompts and tools are not part of a digest:
an agent changes them within one conversation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, delete, insert, select, tuple_

from gateway.accounts.budgets import lock_tenant
from gateway.accounts.sessions import change_session
from gateway.accounts.trees import raise_below
from gateway.clock import Clock, NewId, now_ms
from gateway.database.database import Database
from gateway.database.tables import conversation_beginnings as beginnings
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Beginning, KnownBeginning, SessionTerms, SoughtBeginning
from gateway.unchecked import objects_in

MAX_SOUGHT = 16
"""Beginnings that are looked up: a turn adds one answer, the results of its tools and a new message."""
FIRST = 4
"""Of these, the shortest: agents shorten old results and pictures, so that nothing later is known any more."""
NEAREST = 4
"""Of these, the ones before the last messages are looked up even when no answer follows them."""
FORGET_BATCH = 1_000
DIGEST_CHARACTERS = 24
_SYSTEM = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of one turn without system prompts, and the digests of their beginnings."""

    tenant_id: str
    key_id: str
    messages: tuple[Mapping[str, Any], ...]
    digests: Mapping[int, str]
    """By the number of messages, the longest first: all of them, then those that an answer follows."""

    @property
    def digest(self) -> str:
        """The digest of all messages."""
        return self.digests[len(self.messages)]

    def next_digest(self, count: int) -> str:
        """The digest of the message after the first `count`."""
        return _digest(_canonical(self.messages[count]))

    def next_answer(self, count: int) -> str | None:
        """Digest of the answer after the first `count` messages, or None without one."""
        if count >= len(self.messages) or self.messages[count]["role"] != "assistant":
            return None
        return answer_digest(self.messages[count])

    def sought(self) -> list[SoughtBeginning]:
        """The beginnings to look up, the longest first."""
        return [SoughtBeginning(digest, self.next_answer(count)) for count, digest in self.digests.items()]


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a turn without an id. `known`: the beginning it continues, None for a new one."""

    conversation: Conversation
    session_id: str
    known: KnownBeginning | None = None

    def beginning(self, answer: str | None) -> Beginning:
        """Beginning for the next turn; `answer` is the digest of this one's answer, or None."""
        asked, known = self.conversation, self.known
        open_before = known is not None and known.continued is None and known.messages < len(asked.messages)
        return Beginning(
            key_id=asked.key_id,
            digest=asked.digest,
            messages=len(asked.messages),
            opening=known is None or (known.opening and known.digest == asked.digest),
            answer=answer,
            continues=known.digest if known is not None and open_before else None,
            continued_with=asked.next_digest(known.messages) if known is not None and open_before else None,
        )


def conversation(tenant_id: str, key_id: str, messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """The digests of a turn's messages, made in one pass."""
    spoken = tuple([message for message in messages if message["role"] not in _SYSTEM]) or tuple(messages)
    counts = _sought_counts(spoken)
    wanted = frozenset(counts)
    chain, digests = hashlib.sha256(), {}
    for count, message in enumerate(spoken, start=1):
        said = _canonical(message)
        chain.update(b"%d:" % len(said))
        chain.update(said)
        if count in wanted:
            digests[count] = chain.copy().hexdigest()[:DIGEST_CHARACTERS]
    return Conversation(tenant_id, key_id, spoken, {count: digests[count] for count in counts})


def _sought_counts(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    total = len(messages)
    likely = [total] + [
        count for count in range(total - 1, 0, -1) if count >= total - NEAREST or messages[count]["role"] == "assistant"
    ]
    return likely if len(likely) <= MAX_SOUGHT else likely[: MAX_SOUGHT - FIRST] + likely[-FIRST:]


def continued(asked: Conversation, known: Sequence[KnownBeginning], *, retried: bool) -> KnownBeginning | None:
    """The matching beginning that `asked` continues, or None for a new conversation.

    The longest counts; of equal ones first the one whose own answer follows it, then one that was not continued
    yet, then the newest. A first turn sent again is a conversation of its own, unless the earlier one got no answer or
    the client says that it tries again (`retried`). One that was continued in another way, as by a sub-agent whose
    history has the call in words, is still continued by its own answer. A later turn sent again belongs to the session
    that sent it before, unless another session waits for just this turn: two runs of one tool may get the same answers.
    """
    total = len(asked.messages)

    def answered(row: KnownBeginning) -> bool:
        return row.messages < total and row.answer is not None and row.answer == asked.next_answer(row.messages)

    def fits(row: KnownBeginning) -> bool:
        if row.messages == total:
            return not row.opening or row.answer is None or retried
        open_to_all = not row.opening or row.continued is None
        return open_to_all or row.continued == asked.next_digest(row.messages) or answered(row)

    def awaits(row: KnownBeginning) -> bool:
        return row.continued is None and answered(row)

    def rank(row: KnownBeginning) -> tuple[int, bool, bool, int]:
        return row.messages, answered(row), row.continued is None, row.at_ms

    fitting = [row for row in known if fits(row)]
    best = max(fitting, key=rank, default=None)
    if best is not None and best.messages == total and best.answer is not None and not retried:
        return max(filter(awaits, fitting), key=rank, default=best)
    return best


def answer_digest(message: Mapping[str, Any]) -> str:
    """Digest of an answer, the same as sent and as returned by the client.

    It is made of the ids of its tool calls, else its text without the white space around it.
    """
    ids = [call.get("id") for call in objects_in(message.get("tool_calls"))]
    named = [name for name in ids if isinstance(name, str) and name]
    return _digest(orjson.dumps(named) if named else _text(message.get("content")).strip().encode("utf-8", "replace"))


class Conversations:
    """Finds the sessions of conversations without an id; all replicas share what is remembered."""

    def __init__(self, ledger: Ledger, database: Database, *, clock: Clock, new_id: NewId) -> None:
        self._ledger = ledger
        self._database = database
        self._clock = clock
        self._new_id = new_id

    async def place(self, asked: Conversation, *, retried: bool) -> Place:
        """The session that the conversation continues, or a new one. Raises LedgerUnavailable."""
        known = await self._ledger.beginnings(asked.tenant_id, asked.key_id, asked.sought())
        found = continued(asked, known, retried=retried)
        return self.new_place(asked) if found is None else Place(asked, found.session_id, found)

    def new_place(self, asked: Conversation) -> Place:
        """A session of its own for the conversation."""
        return Place(asked, self.new_session())

    def new_session(self) -> str:
        """A fresh session id."""
        return self._new_id("conv")

    async def keep_session(self, tenant_id: str, session_id: str, place: Place | None, terms: SessionTerms) -> None:
        """Keep the session of a refused turn, with the budget that its header asked for.

        One that was set by hand may hold against it. A first turn opens the session, at its `place` among the
        conversations. Raises LedgerUnavailable, and InvalidRequest when the tenant's limit was lowered meanwhile.
        """
        at_ms = now_ms(self._clock)

        def write(connection: Connection) -> None:
            change_session(
                connection,
                tenant_id,
                session_id,
                default_nanousd=terms.default_nanousd,
                budget_nanousd=terms.ceiling_nanousd,
                expected_turns=terms.expected_turns,
                by_header=None if terms.ceiling_nanousd is None else terms,
                actor="client",
                now_ms=at_ms,
            )
            if place is not None:
                leave(connection, tenant_id, session_id, place.beginning(None), at_ms)

        await self._database.write(write)

    async def put_below(self, tenant_id: str, session_id: str, parent_id: str) -> None:
        """Put an unused session below another. Raises NotFound, InvalidRequest, LedgerUnavailable."""
        at_ms = now_ms(self._clock)

        def write(connection: Connection) -> None:
            change_session(
                connection,
                tenant_id,
                session_id,
                default_nanousd=0,
                parent_id=parent_id,
                actor="client",
                now_ms=at_ms,
            )

        await self._database.write(write)

    async def raise_below(self, tenant_id: str, session_id: str) -> None:
        """Pass on the budget that a turn has raised to the sessions below. Raises LedgerUnavailable."""
        at_ms = now_ms(self._clock)

        def write(connection: Connection) -> None:
            lock_tenant(connection, tenant_id)
            raise_below(connection, tenant_id, session_id, actor="client", now_ms=at_ms)

        await self._database.write(write)


def leave(connection: Connection, tenant_id: str, session_id: str, left: Beginning, at_ms: int) -> None:
    """Store the beginning of a turn that has no bill; a known one is left unchanged."""
    key = {"tenant_id": tenant_id, "key_id": left.key_id, "digest": left.digest, "session_id": session_id}
    here = [beginnings.c[name] == value for name, value in key.items()]
    if connection.execute(select(beginnings.c.digest).where(*here)).first() is None:
        row = key | {"messages": left.messages, "opening": int(left.opening), "answer": left.answer, "at_ms": at_ms}
        connection.execute(insert(beginnings).values(row))


def forget(connection: Connection, before_ms: int) -> int:
    """Delete a batch of rows older than `before_ms`; return how many.

    Rows that another replica removes are passed over.
    """
    key = (beginnings.c.tenant_id, beginnings.c.key_id, beginnings.c.digest, beginnings.c.session_id)
    old = select(*key).where(beginnings.c.at_ms < before_ms).limit(FORGET_BATCH).with_for_update(skip_locked=True)
    return connection.execute(delete(beginnings).where(tuple_(*key).in_(old))).rowcount


def _canonical(message: Mapping[str, Any]) -> bytes:
    """What a message says, however a client writes it: text as a string or as parts, with or without cache marks."""
    content = message.get("content") or ""
    if isinstance(content, list):
        if all(part.get("type") == "text" for part in content):
            content = _text(content)
        else:
            content = [{name: value for name, value in part.items() if name != "cache_control"} for part in content]
    calls = message.get("tool_calls")
    if isinstance(content, str):
        if message["role"] == "assistant":
            content = content.strip()
        if not calls and "tool_call_id" not in message and "function_call" not in message:
            return b"%s %s" % (message["role"].encode(), content.encode("utf-8", "replace"))
    made = [(call.get("id"), call.get("function") or call.get("custom")) for call in calls or ()]
    return orjson.dumps(
        [message["role"], content, made, message.get("tool_call_id"), message.get("function_call")],
        option=orjson.OPT_SORT_KEYS,
    )


def _text(content: object) -> str:
    """The text of a message's content, a string or parts."""
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in objects_in(content)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _digest(said: bytes) -> str:
    return hashlib.sha256(said).hexdigest()[:DIGEST_CHARACTERS]
