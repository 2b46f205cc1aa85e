"""Text features of a turn: hashed n-grams and surface statistics.

Local, deterministic, without a model file. `embed` is the default `Embedder`; policy/text_models.py has others of the
same output length. A `TextSpace` names an embedder's vectors: its version goes into checkpoints and the log, so that
nothing reads another's. The functions are pure; the caller caches per conversation prefix.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F32

TEXT_VERSION = "hashed-ngrams-1"
TEXT_DIM = 256
TEXT_CAP_CHARS = 4096
"""Longer text is read at both ends: the task is at the start, the question often at the end."""

STAT_NAMES: tuple[str, ...] = (
    "log_chars",
    "log_words",
    "word_length",
    "log_lines",
    "digit_share",
    "upper_share",
    "punctuation_share",
    "symbol_share",
    "non_ascii_share",
    "cjk_share",
    "question_marks",
    "code_fence",
    "code_marks",
    "math_marks",
    "list_items",
    "reasoning_words",
    "writing_words",
    "short_followup",
    "log_history_chars",
    "tools",
    "images",
    "json_output",
)
STATS_DIM = len(STAT_NAMES)

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


_CODE = re.compile(r"[{};]|=>|==|\(\)")
_MATH = re.compile(r"\d\s?[-+*/^=<>]\s?\d|[%^]|\\[a-z]{3,5}\b")
_LIST = re.compile(r"^[ \t]{0,8}(?:[-*\u2022]|\d{1,3}[.)])\s", re.MULTILINE)
_CODE_WORDS = (
    "def class return import function const let var select insert void public static bug exception traceback "
    "python javascript sql rust java c++ regex api code"
)
_REASONING_WORDS = (
    "why prove derive explain analyze analyse compare debug optimize optimise plan design calculate solve step steps "
    "reason show because warum erkl\u00e4re beweise pourquoi explique explica demuestra"
)
_WRITING_WORDS = "write draft rewrite translate summarize summarise story essay poem email blog"
_WORD_KINDS = {
    word: kind for kind, words in enumerate((_CODE_WORDS, _REASONING_WORDS, _WRITING_WORDS)) for word in words.split()
}
_DIGITS = str.maketrans("123456789", "000000000")  # the shape of a number matters, its value almost never recurs
_SYMBOLS = "{}[]()<>=+-*/\\^_|&#$@~`"


class Embedder(Protocol):
    """Text to a float32 vector of shape (TEXT_DIM,); the zero vector for text without tokens."""

    def __call__(self, text: str) -> F32: ...


def embed(text: str) -> F32:
    """Signed feature hashing of words and word pairs (crc32), square-root damped, normalized.

    Weinberger et al. 2009, arXiv 0902.2206. Shape (TEXT_DIM,); Euclidean length 1 (0 without tokens).
    """
    tokens = _TOKEN.findall(both_ends(text).lower().translate(_DIGITS))
    if not tokens:
        return np.zeros(TEXT_DIM, np.float32)
    encoded = "\n".join(tokens).encode("utf-8", "surrogatepass").split(b"\n")
    words = np.fromiter(map(zlib.crc32, encoded), np.uint32, len(tokens))
    pairs = _mix(words[:-1] * np.uint32(0x9E3779B1) + words[1:])
    hashes = np.concatenate([_mix(words), pairs])
    signs = np.where(hashes & np.uint32(1 << 16), 1.0, -1.0)
    sums = np.bincount(hashes % np.uint32(TEXT_DIM), weights=signs, minlength=TEXT_DIM)
    damped = np.sign(sums) * np.sqrt(np.abs(sums))
    length = float(np.sqrt(damped @ damped))
    return (damped / length if length > 0 else damped).astype(np.float32)


def space_number(version: str) -> int:
    """The number by which the log names a text space, 32 bits."""
    return zlib.crc32(version.encode())


HASHED_SPACE = space_number(TEXT_VERSION)


@dataclass(frozen=True, slots=True)
class TextSpace:
    """An embedder and the version of its vectors."""

    version: str = TEXT_VERSION
    embed: Embedder = embed


HASHED = TextSpace()


def embed_conversation(user_texts: Sequence[str], embedder: Embedder = embed) -> F32:
    """Weighted sum of the last three user turns, normalized; each older one counts half.

    `user_texts` are oldest first.
    """
    if not user_texts:
        return np.zeros(TEXT_DIM, np.float32)
    total = embedder(user_texts[-1])
    for age, text in enumerate(reversed(user_texts[-3:-1]), 1):
        total = total + np.float32(0.5**age) * embedder(text)
    length = math.sqrt(total.dot(total))
    return total / np.float32(length) if length > 0 else total


def stats(text: str, *, history_chars: int = 0, tools: int = 0, images: int = 0, json_output: bool = False) -> F32:
    """Surface features of the newest user turn, about 0 to 1 each, (STATS_DIM,); see STAT_NAMES."""
    return in_context(surface(text), history_chars=history_chars, tools=tools, images=images, json_output=json_output)


def in_context(surface: F32, *, history_chars: int, tools: int, images: int, json_output: bool) -> F32:
    """The statistics of a text whose `surface` is known."""
    found = surface.copy()
    found[_CONTEXT] = (
        float(history_chars > 0 and surface[_LOG_WORDS] < _SIX_WORDS),
        _log_scaled(history_chars, 12.0),
        _log_scaled(tools, 4.0),
        _log_scaled(images, 3.0),
        float(json_output),
    )
    return found


def surface(text: str) -> F32:
    """The part of `stats` that depends on the text alone; the rest is zero."""
    read = both_ends(text)
    words = read.lower().split()
    counted = np.bincount(_CLASS[np.frombuffer(read.encode("latin-1", "replace"), np.uint8)], minlength=_CLASSES)
    _, space, digits, upper, symbols, punctuation = counted.tolist()
    # "?" also replaces characters outside latin-1; real question marks are counted in the text.
    ascii_only = read.isascii()
    questions = read.count("?") + read.count("\uff1f")
    non_ascii = 0 if ascii_only else len(read) - len(read.encode("ascii", "ignore"))
    chars, solid = max(len(read), 1), max(len(read) - space, 1)
    kinds = [0, 0, 0]
    for word in words:
        kind = _WORD_KINDS.get(word.strip(".,:;!?()\"'`*"))
        if kind is not None:
            kinds[kind] += 1
    return np.array(
        [
            _log_scaled(len(text), 12.0),
            _log_scaled(len(words), 10.0),
            min(solid / max(len(words), 1) / 10.0, 2.0),
            _log_scaled(read.count("\n"), 6.0),
            digits / solid,
            upper / solid,
            punctuation / solid,
            symbols / solid,
            non_ascii / chars,
            0.0 if ascii_only else len(_CJK.findall(read)) / chars,
            _log_scaled(questions, 3.0),
            float("```" in read),
            _log_scaled(len(_CODE.findall(read)) + kinds[0], 5.0),
            _log_scaled(len(_MATH.findall(read)), 4.0),
            _log_scaled(len(_LIST.findall(read)), 4.0),
            _log_scaled(kinds[1], 3.0),
            _log_scaled(kinds[2], 3.0),
            *_NO_CONTEXT,
        ],
        np.float32,
    )


def _character_classes() -> NDArray[np.intp]:
    """Class of every latin-1 character: other, space, digit, upper case, symbol, punctuation."""
    return np.array(
        [
            1
            if c.isspace()
            else 2
            if c.isdigit()
            else 3
            if c.isupper()
            else 4
            if c in _SYMBOLS
            else 0
            if c.isalnum()
            else 5
            for c in map(chr, range(256))
        ],
        np.intp,
    )


_CLASS = _character_classes()
_CLASS.setflags(write=False)
_CLASSES = 6


def _mix(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """murmur3's finaliser: crc32 is linear, so its low bits alone would collide in families."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


def both_ends(text: str) -> str:
    """The text, or the TEXT_CAP_CHARS at its ends."""
    half = TEXT_CAP_CHARS // 2
    return text if len(text) <= TEXT_CAP_CHARS else f"{text[:half]}\n{text[-half:]}"


def _log_scaled(count: int, log_scale: float) -> float:
    return math.log1p(max(count, 0)) / log_scale


_LOG_WORDS = STAT_NAMES.index("log_words")
_SIX_WORDS = np.float32(_log_scaled(6, 10.0))
_CONTEXT = slice(STAT_NAMES.index("short_followup"), None)
_NO_CONTEXT = (0.0,) * len(STAT_NAMES[_CONTEXT])
