"""Reading what a provider says it used."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.catalog.usage import PartialUsage, Usage, beside_words
from gateway.catalog.usage_reading import read_usage


@pytest.mark.parametrize("reported", [None, {}, {"prompt_tokens": None}, {"total_tokens": None}])
def test_missing_usage_is_none_and_not_zero(reported: dict[str, Any] | None) -> None:
    assert read_usage(reported) is None


def test_explicit_zero_is_zero() -> None:
    assert read_usage({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}) == Usage(0, 0)


COUNT = st.integers(-1, 20) | st.sampled_from([None, True, 7.0, "7", 10**8])
DETAILS = st.none() | st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens", "reasoning_tokens"]), COUNT)
CAMEL = {
    "prompt_tokens": "promptTokens", "completion_tokens": "completionTokens", "total_tokens": "totalTokens",
    "prompt_tokens_details": "promptTokensDetails", "completion_tokens_details": "completionTokensDetails",
}  # fmt: skip


@given(
    st.fixed_dictionaries(
        {"prompt_tokens": COUNT, "completion_tokens": COUNT},
        optional={"total_tokens": COUNT, "prompt_tokens_details": DETAILS, "completion_tokens_details": DETAILS},
    ),
    st.booleans(),
)
def test_the_common_report_is_read_like_one_in_other_words(reported: dict[str, Any], adds_up: bool) -> None:
    counts = reported["prompt_tokens"], reported["completion_tokens"]
    if adds_up and all(type(count) is int for count in counts):
        reported["total_tokens"] = sum(counts)
    read, other = read_usage(reported), read_usage({CAMEL[name]: value for name, value in reported.items()})
    if isinstance(read, PartialUsage) and isinstance(other, PartialUsage):
        read, other = replace(read, fault=""), replace(other, fault="")  # which names the count
    assert read == other


NO_PROMPT = PartialUsage(Usage(0, 2), has_prompt=False, has_output=True)
UNREADABLE: list[tuple[object, str]] = [
    (1.5, "not a whole number"), ("seven", "not a whole number"), ("1,000", "not a whole number"),
    (True, "not a whole number"), ([7], "not a whole number"), ({"total": 7}, "not a whole number"),
    (10**15, "implausibly large"), ("184467440737095516", "implausibly large"),
]  # fmt: skip


@pytest.mark.parametrize(("count", "why"), UNREADABLE)
def test_a_count_that_cannot_be_read_is_a_missing_one_and_named(count: object, why: str) -> None:
    fault = f"prompt_tokens is {why}"
    assert read_usage({"prompt_tokens": count, "completion_tokens": 2}) == replace(NO_PROMPT, fault=fault)
    assert read_usage({"prompt_tokens": count, "input_tokens": 7, "completion_tokens": 2}) == Usage(7, 2)
    assert read_usage({"prompt_tokens": count, "completion_tokens": 2, "total_tokens": 9}) == Usage(7, 2)
    neither = PartialUsage(Usage(0, 0), has_prompt=False, has_output=False, fault=fault)
    assert read_usage({"prompt_tokens": count}) == neither


@pytest.mark.parametrize(("count", "why"), UNREADABLE)
def test_a_detail_that_cannot_be_read_costs_only_itself(count: object, why: str) -> None:
    counts = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    for name in ("cached_tokens", "audio_tokens", "cache_write_tokens"):
        assert read_usage({**counts, "prompt_tokens_details": {name: count}}) == Usage(10, 2)
    for name in ("reasoning_tokens", "audio_tokens"):
        assert read_usage({**counts, "completion_tokens_details": {name: count}}) == Usage(10, 2)
    assert read_usage({**counts, "total_tokens": count}) == Usage(10, 2)
    details = {"cached_tokens": 4, "audio_tokens": count}
    assert read_usage({**counts, "prompt_tokens_details": details}) == Usage(10, 2, cached_tokens=4)


@pytest.mark.parametrize(
    ("reported", "read"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"audio_tokens": 11}}, Usage(10, 2)),
        ({"prompt_tokens": 10, "completion_tokens": 2, "completion_tokens_details": {"audio_tokens": 3}}, Usage(10, 2)),
        (
            {
                "input_tokens": 9,
                "output_tokens": 1,
                "cache_creation_input_tokens": 2,
                "cache_creation": {"ephemeral_1h_input_tokens": 5},
            },
            Usage(11, 1, cache_write_tokens=2),
        ),
    ],
)
def test_a_part_larger_than_its_whole_is_dropped(reported: dict[str, Any], read: Usage) -> None:
    assert read_usage(reported) == read


@pytest.mark.parametrize(
    ("own", "completed"), [((13, 4), Usage(13, 1_037)), ((1_050, 4), Usage(1_050, 4)), ((2_000, 4), Usage(1_050, 4))]
)
def test_a_total_alone_is_our_prompt_and_the_rest(own: tuple[int, int], completed: Usage) -> None:
    read = read_usage({"total_tokens": 1_050})
    assert read == PartialUsage(Usage(0, 0), has_prompt=False, has_output=False, total=1_050)
    assert read.completed(*own) == completed


@pytest.mark.parametrize(
    ("reported", "read"),
    [
        ({"prompt_tokens": -1, "completion_tokens": 5}, PartialUsage(Usage(0, 5), has_prompt=False, has_output=True)),
        ({"prompt_tokens": 7, "completion_tokens": -5}, PartialUsage(Usage(7, 0), has_prompt=True, has_output=False)),
        ({"prompt_tokens": "-1", "output_tokens": 5}, PartialUsage(Usage(0, 5), has_prompt=False, has_output=True)),
        ({"prompt_tokens": 7, "completion_tokens": -1, "total_tokens": 12}, Usage(7, 5)),
        ({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": -1}, Usage(7, 5)),
        ({"prompt_tokens": -7, "completion_tokens": -5.0, "total_tokens": -12}, None),
        ({"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": -3}}, Usage(10, 2)),
    ],
)
def test_a_negative_count_is_a_missing_one(reported: dict[str, Any], read: object) -> None:
    assert read_usage(reported) == read


@pytest.mark.parametrize(
    ("total", "read"),
    [
        (110, Usage(100, 10, cached_tokens=100)),
        (260, Usage(250, 10, cached_tokens=150)),
        (None, Usage(250, 10, cached_tokens=150)),
    ],
)
def test_the_total_tells_whether_a_cache_above_the_prompt_stands_beside_it(total: int | None, read: Usage) -> None:
    counts = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": total}
    assert read_usage({**counts, "prompt_tokens_details": {"cached_tokens": 150}}) == read


def test_a_prompt_without_output_beside_words_is_half_a_usage_and_zeros_are_none() -> None:
    assert beside_words(Usage(10, 0)) == PartialUsage(Usage(10, 0), has_prompt=True, has_output=False)
    assert beside_words(Usage(0, 0)) == PartialUsage(Usage(0, 0), has_prompt=False, has_output=False)
    assert beside_words(Usage(10, 1)) == Usage(10, 1)


def test_whole_floats_count() -> None:
    assert read_usage({"prompt_tokens": 3.0, "completion_tokens": 4.0}) == Usage(3, 4)


def test_writes_to_the_longer_lived_cache_are_read_in_the_details_too() -> None:
    details = {"cache_creation_tokens": 5, "cache_creation_token_details": {"ephemeral_1h_input_tokens": 4}}
    read = read_usage({"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": details})
    assert read == Usage(9, 1, cache_write_tokens=5, cache_write_1h_tokens=4)


@pytest.mark.parametrize(
    ("reported", "read"),
    [
        (
            {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "cache_n": 80},
            Usage(100, 5, cached_tokens=80),
        ),
        ({"prompt_n": 20, "predicted_n": 5, "cache_n": 80}, Usage(100, 5, cached_tokens=80)),
        ({"prompt_tokens": 100, "prompt_n": 20, "predicted_n": 5, "cache_n": 80}, Usage(100, 5, cached_tokens=80)),
        ({"prompt_n": 20, "predicted_n": 5, "cache_n": 80, "toolUsePromptTokenCount": 7}, Usage(107, 5, 80)),
        (
            {"promptTokenCount": 100, "toolUsePromptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 112},
            Usage(107, 5),
        ),
    ],
)
def test_a_cache_is_added_only_to_the_prompt_that_excludes_it(reported: dict[str, Any], read: Usage) -> None:
    assert read_usage(reported) == read


def test_details_that_are_null_are_absent() -> None:
    reported = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": None}
    assert read_usage(reported) == Usage(3, 4)


numbers = st.one_of(st.none(), st.booleans(), st.integers(-10, 10**18), st.floats(), st.text(max_size=3))
details = st.one_of(
    st.none(),
    numbers,
    st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens", "audio_tokens"]), numbers, max_size=3),
)
NAMES = [
    "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "promptTokenCount",
    "thoughtsTokenCount", "candidatesTokenCount", "cache_read_input_tokens", "cache_creation_input_tokens",
    "prompt_tokens_details", "completion_tokens_details", "cache_creation", "prompt_cache_hit_tokens",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), details, max_size=8))
def test_nothing_a_provider_sends_breaks_the_reader_or_yields_a_contradiction(reported: dict[str, Any]) -> None:
    usage = read_usage(reported)
    if isinstance(usage, Usage):
        assert 0 <= usage.cached_tokens + usage.cache_write_tokens <= usage.prompt_tokens
        assert 0 <= usage.cache_write_1h_tokens <= usage.cache_write_tokens
        assert 0 <= usage.reasoning_tokens <= usage.output_tokens
        assert 0 <= usage.audio_output_tokens <= usage.output_tokens
