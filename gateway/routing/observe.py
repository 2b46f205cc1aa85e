"""Builds the policy's observation of a turn: text features and session.

Its candidates are added when they are estimated (`Observation.with_candidates`): some estimates need its features.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from gateway.dialects.chat_messages import message_text
from gateway.dialects.request import ChatRequest
from gateway.ledger.records import SessionRow
from gateway.ledger.types import Balance
from gateway.money import NANOUSD_PER_USD
from gateway.routing import session as sessions
from policy.arrays import F32
from policy.mdp import Observation
from policy.text import HASHED, TEXT_CAP_CHARS, TextSpace, embed_conversation, in_context, space_number, surface

TEXTS_READ = 3
"""`policy.text.embed_conversation` reads the last three user turns."""


class Observer:
    """Caches what is read of a text, because conversations resend their older turns every time.

    An agent's newest user turn also stays the same while it calls tools.
    """

    def __init__(self, space: TextSpace = HASHED, cache_size: int = 4096) -> None:
        self._space = space
        self._number = space_number(space.version)
        self._cache_size = cache_size
        self._read: OrderedDict[str | bytes, tuple[F32, F32]] = OrderedDict()

    def observe(
        self,
        chat: ChatRequest,
        memory: sessions.SessionMemory,
        row: SessionRow | None,
        tenant: Balance,
        *,
        budget_nanousd: int,
        left_nanousd: int,
        expected_turns: int | None,
        lambda_per_usd: float,
        at_ms: int,
        explore: bool = True,
    ) -> Observation:
        """The observation of a turn, yet without candidates. It can spend `left_nanousd`."""
        user_texts = [message_text(m) for m in chat.messages if m["role"] == "user"]
        history_chars = sum(len(message_text(m)) for m in chat.messages[:-1])
        session = sessions.view(
            memory,
            turn=0 if row is None else row.turns,
            expected_turns=expected_turns,
            budget_usd=budget_nanousd / NANOUSD_PER_USD,
            remaining_usd=left_nanousd / NANOUSD_PER_USD,
            tenant_remaining_usd=tenant.available_nanousd / NANOUSD_PER_USD,
            spent_usd=0.0 if row is None else row.balance.spent_nanousd / NANOUSD_PER_USD,
            quality_count=0 if row is None else row.quality_count,
            quality_sum=0.0 if row is None else row.quality_sum,
            last_quality=None if row is None else row.last_quality,
            tool_loop=chat.open_tool_loop,
            at_ms=at_ms,
        )
        return Observation(
            text=embed_conversation(user_texts[-TEXTS_READ:], lambda text: self._of(text)[0]),
            text_stats=in_context(
                self._of(user_texts[-1] if user_texts else "")[1],
                history_chars=history_chars,
                tools=len(chat.params.get("tools") or ()),
                images=chat.images,
                json_output=(chat.params.get("response_format") or {}).get("type") in ("json_object", "json_schema"),
            ),
            session=session,
            candidates=(),
            lambda_per_usd=lambda_per_usd,
            explore=explore,
            text_space=self._number,
            route=chat.route,
        )

    def _of(self, text: str) -> tuple[F32, F32]:
        """A text's embedding and surface."""
        # Long texts are known by their digest, so that the memory of texts is bounded.
        key = text if len(text) <= TEXT_CAP_CHARS else blake2b(text.encode("utf-8", "surrogatepass")).digest()
        found = self._read.get(key)
        if found is not None:
            self._read.move_to_end(key)
            return found
        made = self._read[key] = self._space.embed(text), surface(text)
        if len(self._read) > self._cache_size:
            self._read.popitem(last=False)
        return made
