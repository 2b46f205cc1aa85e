"""What the fake provider says and how it counts: every token is one common English word."""

from __future__ import annotations

import json
import re
from typing import Any

VOCABULARY = (
    "the of and to in is that for it as was with be by on not he his but at are this have from which or had they you "
    "were her all she there would their we him been has when who will no more if out so said what up its about into "
    "than them can only other time new some could these two may first then do any like my now over such our man me"
).split()
_PIECES = re.compile(r"[A-Za-z]+|[0-9]{1,3}|[^\sA-Za-z0-9]")


def words(count: int) -> list[str]:
    """What the provider generates: one token each."""
    return [" " + VOCABULARY[number % len(VOCABULARY)] for number in range(count)]


def prompt_tokens(messages: Any) -> int:
    """As OpenAI counts: three for the request, four around each message, and words, digits by threes, punctuation."""
    listed = messages if isinstance(messages, list) else []
    contents = [message.get("content") for message in listed if isinstance(message, dict)]
    texts = [text if isinstance(text, str) else json.dumps(text) for text in contents]
    return 3 + 4 * len(listed) + sum(len(_PIECES.findall(text)) for text in texts)
