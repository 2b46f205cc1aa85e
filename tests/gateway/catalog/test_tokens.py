"""Token counts: an estimate that is o200k's, and a bound that holds for tokenizers we never see."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.catalog import tokens
from gateway.catalog.tokens import PromptTokens, TokenCounter, count_text
from tests.gateway.catalog.test_video_length import HOUR, film


def tokenizer_folder() -> Path:
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"


@pytest.fixture
async def counter() -> AsyncIterator[TokenCounter]:
    counter = TokenCounter()
    await counter.start()
    yield counter
    await counter.close()


@pytest.fixture(scope="module")
def o200k() -> tiktoken.Encoding:
    tokens.load_tokenizer()
    return tiktoken.get_encoding("o200k_base")


@pytest.fixture(scope="module")
def others(o200k: tiktoken.Encoding) -> dict[str, Any]:
    """Foreign tokenizers that are at hand: Anthropic's first, cl100k, and the two byte-level extremes."""
    anthropic = Tokenizer.from_file(str(tokenizer_folder() / "anthropic_tokenizer.json"))
    cl100k = tiktoken.get_encoding("cl100k_base")
    return {
        "anthropic": lambda text: len(anthropic.encode(text, add_special_tokens=False).ids),
        "cl100k": lambda text: len(cl100k.encode_ordinary(text)),
        "o200k": lambda text: len(o200k.encode_ordinary(text)),
        "a digit, a mark, a foreign byte each": _worst_habits,
    }


def _worst_habits(text: str) -> int:
    """Words of up to four letters, and every digit, mark and byte beyond ASCII a token of its own."""
    count, run = 0, 0
    for byte in text.encode():
        letter = chr(byte).isalpha() and byte < 128
        run = run + 1 if letter else 0
        count += 0 if byte == 32 else (run % 4 == 1 if letter else 1)
    return count


TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 40,
    "def f(x):\n        return x ** 2  # squares\n\n" * 30,
    json.dumps({"items": [{"id": n, "price": n * 1.37, "tags": ["a", "b"]} for n in range(60)]}, indent=2),
    "3.14159265358979323846264338327950288419716939937510" * 10,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft " * 10,
    "吾輩は猫である。名前はまだ無い。" * 30,
    "Привет, как дела? " * 30,
    "🙂👩‍👩‍👧‍👦" * 40,
    " " * 500 + "\t" * 500 + "\n" * 500,
    "=-=-=-=-" * 100,
    "aB3dE9xQ" * 100,
    "x" * 3_000,
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:12]))
def test_the_bound_holds_for_foreign_tokenizers(o200k: tiktoken.Encoding, others: dict[str, Any], text: str) -> None:
    bound = count_text(o200k, text).bound
    assert {name: count(text) for name, count in others.items() if count(text) > bound} == {}
    assert bound <= len(text.encode()) + 1


words = st.lists(st.sampled_from(["hello", " ", "world", "42", "\n", "é", "日本", "{}", "==", "  ", "foo_bar"]))


@given(text=st.one_of(st.text(max_size=200), words.map("".join)))
def test_the_bound_holds_for_any_text(o200k: tiktoken.Encoding, others: dict[str, Any], text: str) -> None:
    counted = count_text(o200k, text)
    assert counted.estimate <= counted.bound
    assert counted.bound >= others["cl100k"](text)
    assert counted.bound >= others["anthropic"](text)


def test_the_bound_of_plain_english_is_far_below_its_bytes(o200k: tiktoken.Encoding) -> None:
    text = TEXTS[0]
    assert count_text(o200k, text).bound < 0.65 * len(text)


async def test_the_estimate_is_o200ks(counter: TokenCounter, o200k: tiktoken.Encoding) -> None:
    text = "How many tokens has this sentence?"
    counted = await counter.count([{"role": "user", "content": text}], {})
    assert counted.estimate == len(o200k.encode_ordinary(text)) + 4 + 3
    assert await counter.count_generated(text) == len(o200k.encode_ordinary(text))


async def test_large_prompts_count_the_same_as_small_ones(counter: TokenCounter) -> None:
    sentence = "A sentence of some words. "
    long = await counter.count([{"role": "user", "content": sentence * 2_000}], {})
    again = await counter.count([{"role": "user", "content": sentence * 2_000}], {})
    assert again == long
    assert long.estimate == pytest.approx(2_000 * 6, rel=0.02)


async def test_parts_names_tool_calls_and_schemas_count(counter: TokenCounter) -> None:
    async def count(message: dict[str, Any], **params: Any) -> PromptTokens:
        return await counter.count([{"role": "user"} | message], params)

    empty = await count({})
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "x"}'}}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    for more in (
        await count({"content": [{"type": "text", "text": "some words here"}]}),
        await count({"name": "a_name"}),
        await count({"tool_calls": [call]}),
        await count({"reasoning_content": "thinking it over"}),
        await count({}, tools=[tool]),
        await count({}, functions=[tool["function"]]),
        await count({}, response_format=schema),
    ):
        assert more.estimate > empty.estimate
        assert more.bound > empty.bound


async def test_pictures_are_weighed_and_their_bytes_are_not_read_as_text(counter: TokenCounter) -> None:
    def picture(url: str, **more: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **more}}]}]

    inline = await counter.count(picture("data:image/png;base64," + "A" * 1_000_000), {})
    by_reference = await counter.count(picture("https://example.com/cat.png"), {})
    low = await counter.count(picture("https://example.com/cat.png", detail="low"), {})
    assert inline == by_reference
    assert 4_784 < inline.bound < 10_000
    assert 2_833 < low.bound < inline.bound


async def test_audio_and_files_are_weighed_by_their_size(counter: TokenCounter) -> None:
    def part(kind: str, **inner: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": kind, kind: inner}]}]

    minute = await counter.count(part("input_audio", data="A" * 60 * 1_334, format="mp3"), {})
    assert minute.bound > 60 * 32
    inline = await counter.count(part("file", file_data="A" * 50_000), {})
    assert inline.bound > 50_000
    by_id = await counter.count(part("file", file_id="file-1"), {})
    assert by_id.bound >= 100_000


async def test_an_earlier_answer_s_sound_is_held_for_at_its_longest_and_its_words_are_counted(
    counter: TokenCounter,
) -> None:
    """OpenAI bills the sound that an id names as input again; other providers are told its words."""
    said = [{"role": "assistant", "content": None, "audio": None}]
    by_id = [{"role": "assistant", "content": None, "audio": {"id": "audio_1"}}]
    told = [{"role": "assistant", "content": None, "audio": {"id": "audio_1", "transcript": "word " * 1_000}}]
    silent, named, worded = [await counter.count(messages, {}) for messages in (said, by_id, told)]
    assert named.bound - silent.bound == 16_384
    assert worded.bound - named.bound >= 1_000


HOUR_OF_VIDEO = "data:video/mp4;base64," + base64.b64encode(HOUR.read_bytes()).decode()


@pytest.mark.parametrize(
    ("kind", "inner"),
    [
        ("video_url", {"url": HOUR_OF_VIDEO}), ("image_url", {"url": HOUR_OF_VIDEO}),
        ("image_url", {"url": HOUR_OF_VIDEO.replace("video", "Video"), "detail": "low"}),
        ("file", {"file_data": HOUR_OF_VIDEO}),
        ("file", {"file_data": HOUR_OF_VIDEO.replace("video/mp4", "x/y"), "format": "video/mp4"}),
        ("video_url", {"url": "https://x/v"}), ("image_url", {"url": "https://x/v.MP4?size=1"}),
        ("image_url", {"url": "https://x/v", "format": "video/mp4"}), ("file", {"file_id": "gs://bucket/v.mov"}),
        ("video_url", {"url": "data:video/webm;base64,AAAA"}),
    ],
)  # fmt: skip
async def test_a_video_is_held_for_by_its_seconds_however_it_is_sent(
    counter: TokenCounter, kind: str, inner: dict[str, str]
) -> None:
    """Gemini bills some 300 tokens for each, an hour of one still frame in a file of 1 KB like any other."""
    counted = await counter.count([{"role": "user", "content": [{"type": kind, kind: inner}]}], {})
    assert counted.bound > 3_600 * 300


async def test_a_short_video_is_held_for_by_its_own_seconds(counter: TokenCounter) -> None:
    def counted(url: str) -> Any:
        return counter.count([{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}], {})

    short = await counted(film())
    assert 2 * 300 < short.estimate < 2 * 1_500 < short.bound < 10_000
    long = await counted(HOUR_OF_VIDEO)
    assert 3_600 * 300 < long.estimate < long.bound
    minute = await counted("data:video/webm;base64," + "A" * 60 * 100_000)  # of 600 kbit/s
    assert 300 < minute.estimate < 60 * 300


async def test_other_data_in_a_picture_s_place_is_weighed_by_its_size(counter: TokenCounter) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:application/pdf;base64," + "A" * 50_000}}
    assert (await counter.count([{"role": "user", "content": [part]}], {})).bound > 50_000


async def test_a_long_answer_is_counted_whole_and_not_on_the_event_loop(
    counter: TokenCounter, o200k: tiktoken.Encoding
) -> None:
    text = "".join(f"sentence {number} of a rather long answer. " for number in range(5_000))
    counting = asyncio.ensure_future(counter.count_generated(text))
    turns_of_the_loop = 0
    while not counting.done():
        await asyncio.sleep(0)
        turns_of_the_loop += 1
    assert counting.result() == len(o200k.encode_ordinary(text))
    assert turns_of_the_loop > 1
    assert await counter.count_generated("") == 0


async def test_nothing_is_fetched_and_litellm_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    loaded = "litellm" in sys.modules
    counter = TokenCounter()
    await counter.start()
    assert ("litellm" in sys.modules) == loaded
    await counter.close()


async def test_without_a_vocabulary_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_vocabulary_folder", lambda: None)
    counter = TokenCounter()
    counted = await counter.count([{"role": "user", "content": "12345678"}], {})
    assert counted == PromptTokens(3 + 4 + 2, 32 + 12 + 9)
    assert await counter.count_generated("12345678") == 2
    await counter.close()


async def test_odd_text_does_not_break_the_count(counter: TokenCounter) -> None:
    for text in ("\ud800", "\x00", "<|endoftext|>", "a\u0300" * 50, ""):
        assert (await counter.count([{"role": "user", "content": text}], {})).bound >= 44


async def test_the_two_forms_of_a_prompt_share_the_count_of_their_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = tokens.count_text

    def counted(tokenizer: Any, text: str) -> PromptTokens:
        read.append(text)
        return plain(tokenizer, text)

    monkeypatch.setattr(tokens, "count_text", counted)
    messages = [{"role": "user", "content": "Which weather?"}, {"role": "assistant", "content": "Where?"}]
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}
    function = {"name": "weather", "description": "The weather of a place.", "parameters": {"type": "object"}}
    nested, search = [{"type": "function", "function": function}], [{"type": "web_search"}]
    counter = TokenCounter()
    for own_tools, pictures in (([{"type": "function", **function}], []), (search, [picture]), ([], [])):
        params = {"tools": nested, "response_format": {"type": "json_object"}}
        forms = (await counter.count(messages, params),
                 await counter.count([*messages, *pictures], {**params, "tools": own_tools}))  # fmt: skip
        read.clear()
        both = await counter.count_forms(messages, params, own_tools, pictures)
        assert both == PromptTokens(*(max(form[at] for form in map(_pair, forms)) for at in (0, 1)))
        assert [read.count(message["content"]) for message in messages] == [1, 1]
        assert sum("The weather of a place." in text for text in read) == 1
    await counter.close()


def _pair(counted: PromptTokens) -> tuple[int, int]:
    return counted.estimate, counted.bound
