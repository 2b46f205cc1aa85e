"""Warmth of prompt caches, learned from what providers report."""

from __future__ import annotations

import pytest

from gateway.catalog.cache_hits import MEMORY_TOKENS, CacheHits


def test_before_anything_is_reported_a_matching_prefix_is_warm() -> None:
    assert CacheHits().warm_tokens("small", 1_000) == 1_000


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_share_of_what_matched_that_was_cached_is_expected_next(share: float) -> None:
    cache = CacheHits()
    for _ in range(200):
        cache.observe("small", 10_000, round(10_000 * share))
    assert cache.share("small") == pytest.approx(share, abs=0.01)
    assert cache.warm_tokens("small", 2_000) == pytest.approx(2_000 * share, abs=20)
    assert cache.share("big") == 1.0


def test_long_prefixes_weigh_more_than_short_ones_below_a_provider_s_minimum() -> None:
    cache = CacheHits()
    for _ in range(50):
        cache.observe("small", 200, 0)
        cache.observe("small", 20_000, 20_000)
    assert cache.share("small") > 0.98


def test_a_provider_that_stops_caching_is_noticed() -> None:
    cache = CacheHits()
    for _ in range(10_000):
        cache.observe("small", 10_000, 10_000)
    for _ in range(round(3 * MEMORY_TOKENS / 10_000)):
        cache.observe("small", 10_000, 0)
    assert cache.share("small") < 0.06


def test_a_report_beyond_the_prefix_or_below_zero_teaches_no_nonsense() -> None:
    cache = CacheHits()
    cache.observe("small", 1_000, 5_000)
    assert cache.share("small") == 1.0
    cache.observe("small", 1_000, -5)
    cache.observe("small", 0, 5)
    assert 0.0 < cache.share("small") < 1.0
