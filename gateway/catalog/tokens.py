"""Prompt token counts: an *estimate* for decisions and an upper *bound* for money.

The estimate is a count with o200k, read from the copy inside the litellm package: nothing is fetched, and litellm is
not imported. The answering model may use another tokenizer, so the bound holds for all of them:

    bound = min(bytes, 2 * estimate + digits + punctuation + white space beyond single spaces + non-ASCII bytes)

No byte-level tokenizer uses more tokens than bytes. Vocabularies agree best on ASCII letters: twice o200k's count
covers Anthropic's, Llama's and GPT-2's. They disagree on runs of digits, punctuation and white space and on other
scripts, where every byte is counted as a token. Added to that: the templates around messages, tools and schemas, and
images, audio and files, which are never tokenised as text.

Prompts below INLINE_BYTES are counted inline, larger ones in a thread (the tokenizer releases the GIL) so that they do
not block the event loop. Counts are cached by the text's digest: a session sends its whole history on every turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import orjson
import tiktoken
from msgspec import Struct

from gateway.catalog.video_length import seconds_of

_log = logging.getLogger("seqroute.catalog")

THREADS = 2
INLINE_BYTES = 4_096
BYTES_PER_TOKEN = 4
CACHED_TEXTS = 8_192
CACHED_FROM_BYTES = 256

_VOCABULARY_FILE = "fb374d419588a4632f3f557e76b4b70aebbca790"  # tiktoken's cache name of o200k_base
# Message fields that are not prompt text, and the content, which `_parts` reads separately.
_UNCOUNTED = frozenset({"role", "content", "cache_control", "images", "audio"})
_LETTERS = bytes(range(ord("a"), ord("z") + 1)) + bytes(range(ord("A"), ord("Z") + 1))
_SPACES_BETWEEN_WORDS = re.compile(rb"(?<=\S) (?=\S)")


class PromptTokens(Struct, frozen=True):
    """Likely count and upper bound for every tokenizer; both include tools and images."""

    estimate: int
    bound: int

    def __add__(self, other: PromptTokens) -> PromptTokens:
        return PromptTokens(self.estimate + other.estimate, self.bound + other.bound)


# Overhead around the text (estimate, bound). Open models' templates spend up to ten tokens on a turn's markers;
# Anthropic adds a hidden prompt of up to about 530 tokens when tools are given, and LiteLLM turns a schema into a tool.
_REQUEST = PromptTokens(3, 32)
_MESSAGE = PromptTokens(4, 12)
_TOOLS = PromptTokens(40, 1_024)
_TOOL = PromptTokens(8, 32)
# A provider's own tools: Anthropic adds up to 1,234 tokens for its computer; MCP servers list tools of any number.
_OWN_TOOL = PromptTokens(300, 1_500)
_MCP = PromptTokens(1_000, 10_000)
_PLAIN_TOOLS = (None, "function", "custom", "namespace")
_MCP_TYPES = ("mcp", "url")
_SCHEMA = PromptTokens(20, 1_024)
# OpenAI at most 1,445 at high detail, Anthropic 4,784, Gemini 2,240; at low detail 85, and 2,833 for gpt-4o-mini.
IMAGE = PromptTokens(1_000, 6_000)
_IMAGE_LOW = PromptTokens(85, 3_000)
_FILE_BY_ID = PromptTokens(5_000, 100_000)
_FILE_AT_LEAST = PromptTokens(1_500, 5_000)
# Gemini bills up to about 300 tokens for a second, models that look more often at larger frames up to 1,500.
_VIDEO_SECOND = PromptTokens(300, 1_500)
_VIDEO_AT_LEAST = PromptTokens(300, 2_000)
_VIDEO_CHARACTERS = 650
"""Of base64, for a token of a video of usual quality."""
_LONGEST_PROMPT = 2_100_000
"""More than any model that takes videos has; a model's own limit, where it is known, bounds the bill
(`gateway.catalog.call_cost`)."""
_LONGEST_ADDRESS = 8_192
_BEHIND_PATH = re.compile("[?#]")
_FILM_ENDINGS = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_AUDIO_AT_LEAST = PromptTokens(20, 100)
# An earlier answer that its id names is billed as input: at most the longest that OpenAI's models speak.
SPOKEN = PromptTokens(500, 16_384)


class _Tokenizer(Protocol):
    def encode_ordinary(self, text: str) -> list[int]: ...


class TokenCounter:
    """Counts the tokens of prompts and answers."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="tokens")
        self._tokenizer: _Tokenizer | None = None
        self._loading: asyncio.Future[_Tokenizer] | None = None
        self._cache: dict[bytes, PromptTokens] = {}

    async def start(self) -> None:
        """Load the vocabulary in a thread (about 0.5 s); otherwise the first count does."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().run_in_executor(self._executor, load_tokenizer)
        self._tokenizer = await self._loading

    async def close(self) -> None:
        """Stop the threads; counts still queued are cancelled."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def count(self, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> PromptTokens:
        """Tokens of a chat prompt: messages, tools, functions and response schema."""
        texts: list[str] = []
        around = _REQUEST + _with_messages(messages, texts)
        around += _with_tools([*(params.get("tools") or ()), *(params.get("functions") or ())], texts)
        if params.get("response_format"):
            around += _SCHEMA
            texts.append(orjson.dumps(params["response_format"]).decode())
        return around + await self.count_texts(texts)

    async def count_forms(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any],
        own_tools: Sequence[Mapping[str, Any]],
        own_messages: Sequence[Mapping[str, Any]],
    ) -> PromptTokens:
        """As `count`, for a prompt with a second form: the larger of both.

        The forms share their messages, which are counted once; the second has other tools and further messages.
        """
        if not own_messages and _are_same_tools(params.get("tools") or (), own_tools):
            return await self.count(messages, params)
        shared = await self.count(messages, {**params, "tools": None})
        ours: list[str] = []
        theirs: list[str] = []
        counted = _with_tools(params.get("tools") or (), ours)
        counted += await self.count_texts(ours)
        own = _with_tools(own_tools, theirs) + _with_messages(own_messages, theirs)
        own += await self.count_texts(theirs)
        return shared + PromptTokens(max(counted.estimate, own.estimate), max(counted.bound, own.bound))

    async def count_texts(self, texts: Sequence[str]) -> PromptTokens:
        """Tokens of plain texts, without message overhead."""
        if self._tokenizer is None:
            await self.start()
        known, digests, unknown = PromptTokens(0, 0), [], []
        for text in texts:
            digest = _digest(text)
            seen = self._cache.get(digest) if digest else None
            if seen is None:
                unknown.append(text)
                digests.append(digest)
            else:
                known += seen
        if sum(map(len, unknown)) < INLINE_BYTES:
            counts = self._count_all(unknown)
        else:
            counts = await asyncio.get_running_loop().run_in_executor(self._executor, self._count_all, unknown)
        for digest, counted in zip(digests, counts, strict=True):
            if digest:
                self._store(digest, counted)
            known += counted
        return known

    async def count_generated(self, text: str) -> int:
        """About how many tokens a provider generated for `text`."""
        return (await self.count_texts([text])).estimate

    def _count_all(self, texts: Iterable[str]) -> list[PromptTokens]:
        assert self._tokenizer is not None
        return [count_text(self._tokenizer, text) for text in texts]

    def _store(self, digest: bytes, counted: PromptTokens) -> None:
        if len(self._cache) >= CACHED_TEXTS:
            self._cache.clear()
        self._cache[digest] = counted


def _with_messages(messages: Sequence[Mapping[str, Any]], texts: list[str]) -> PromptTokens:
    """What is around and beside the texts of messages, which are added to `texts`."""
    around = PromptTokens(0, 0)
    for message in messages:
        around += _MESSAGE
        for part in _parts(message):
            if isinstance(part, str):
                texts.append(part)
            else:
                around += part
    return around


def _are_same_tools(nested: Sequence[Mapping[str, Any]], flat: Sequence[Mapping[str, Any]]) -> bool:
    """True if the tools differ only in the object around each function, which makes the nested ones the longer."""
    return len(nested) == len(flat) and all(
        tool.get("function") == {name: value for name, value in own.items() if name != "type"}
        for tool, own in zip(nested, flat, strict=True)
    )


def _with_tools(tools: Sequence[Mapping[str, Any]], texts: list[str]) -> PromptTokens:
    """What is around a prompt's tools; their own texts are added to `texts`."""
    if not tools:
        return PromptTokens(0, 0)
    around = _TOOLS
    for tool in tools:
        kind = tool.get("type")
        around += _TOOL if kind in _PLAIN_TOOLS else _MCP if kind in _MCP_TYPES else _OWN_TOOL
        texts.append(orjson.dumps(tool).decode())
    return around


def count_text(tokenizer: _Tokenizer, text: str) -> PromptTokens:
    """Estimate and bound of one text, by the formula in the module docstring."""
    if not text:
        return PromptTokens(0, 0)
    data = text.encode("utf-8", "replace")
    estimate = len(tokenizer.encode_ordinary(text))
    divergent = len(data.translate(None, _LETTERS)) - len(_SPACES_BETWEEN_WORDS.findall(data))
    return PromptTokens(estimate, min(len(data) + 1, 2 * estimate + divergent))


def _parts(message: Mapping[str, Any]) -> Iterator[str | PromptTokens]:
    """The texts of a message, and the token counts of its images, audio and files."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from _part(part)
    for _ in message.get("images") or ():
        yield IMAGE
    if message.get("audio"):
        yield SPOKEN
        yield _text_in(message["audio"], "transcript")  # all that models without the sound are told
    for name, value in message.items():
        if name in _UNCOUNTED or not value:
            continue
        yield value if isinstance(value, str) else orjson.dumps(value).decode()


def _part(part: Mapping[str, Any]) -> Iterator[str | PromptTokens]:
    kind = part.get("type")
    inner = part.get(kind) if isinstance(kind, str) else None
    if isinstance(inner, str) and kind in ("text", "refusal", "thinking"):
        yield inner
    elif kind == "redacted_thinking":
        yield str(part.get("data"))
    elif kind in ("image_url", "video_url", "file") and _is_video(kind, inner):
        yield _video(_text_in(inner, "file_data" if kind == "file" else "url"))
    elif kind == "image_url" and not _is_other_data(inner):
        yield _IMAGE_LOW if isinstance(inner, Mapping) and inner.get("detail") == "low" else IMAGE
    elif kind == "input_audio":
        # At 8 kbit/s a second is 1,300 base64 characters; providers bill 10 to 32 tokens for it.
        size = len(_text_in(inner, "data"))
        yield PromptTokens(max(size // 2_000, _AUDIO_AT_LEAST.estimate), size // 25 + _AUDIO_AT_LEAST.bound)
    elif kind in ("file", "image_url"):
        size = len(_text_in(inner, "file_data" if kind == "file" else "url"))
        if size:
            yield PromptTokens(size // 10 + _FILE_AT_LEAST.estimate, size + _FILE_AT_LEAST.bound)
        else:
            yield _FILE_BY_ID


def _is_video(kind: str, inner: object) -> bool:
    """True for a video in any kind of part: providers go by what the data says of itself."""
    if kind == "video_url":
        return True
    address = _text_in(inner, "url") or _text_in(inner, "file_data") or _text_in(inner, "file_id")
    if address[:_LONGEST_ADDRESS].lower().startswith("data:video/") or _text_in(inner, "format").startswith("video/"):
        return True
    named = len(address) < _LONGEST_ADDRESS and not address.startswith("data:")
    return named and _BEHIND_PATH.split(address, 1)[0].lower().endswith(_FILM_ENDINGS)


def _is_other_data(inner: object) -> bool:
    """True for inline data that is no picture; some providers take sounds and documents so."""
    address = _text_in(inner, "url")
    return address.startswith("data:") and not address[:_LONGEST_ADDRESS].lower().startswith("data:image/")


def _video(address: str) -> PromptTokens:
    inline = address.startswith("data:")
    seconds = seconds_of(address) if inline else None
    if seconds is not None:
        most = seconds * _VIDEO_SECOND.bound + _VIDEO_AT_LEAST.bound
        likely = seconds * _VIDEO_SECOND.estimate + _VIDEO_AT_LEAST.estimate
        return PromptTokens(min(likely, _LONGEST_PROMPT), min(most, _LONGEST_PROMPT))
    likely = len(address) // _VIDEO_CHARACTERS + _VIDEO_AT_LEAST.estimate if inline else _FILE_BY_ID.estimate
    return PromptTokens(likely, _LONGEST_PROMPT)


def _text_in(inner: object, name: str) -> str:
    value = inner.get(name) if isinstance(inner, Mapping) else None
    return value if isinstance(value, str) else ""


def _digest(text: str) -> bytes:
    """Cache key of a text; empty when it is too short to be worth caching."""
    if len(text) < CACHED_FROM_BYTES:
        return b""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


class _ByteTokenizer:
    """Fallback without a vocabulary: one token per four bytes; the bound then is the byte count."""

    def encode_ordinary(self, text: str) -> list[int]:
        return [0] * -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def load_tokenizer() -> _Tokenizer:
    """Load the vocabulary in the litellm package (about 0.5 s), or a byte-count fallback."""
    folder = _vocabulary_folder()
    if folder is None:
        _log.warning("no o200k vocabulary in the litellm package: prompts are counted by their bytes")
        return _ByteTokenizer()
    # tiktoken downloads a vocabulary missing from this folder; the check above rules that out.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    tokenizer = tiktoken.get_encoding("o200k_base")
    tokenizer.encode_ordinary("warm")
    return tokenizer


def _vocabulary_folder() -> Path | None:
    spec = importlib.util.find_spec("litellm")
    for package in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(package) / "litellm_core_utils" / "tokenizers"
        if (folder / _VOCABULARY_FILE).is_file():
            return folder
    return None
