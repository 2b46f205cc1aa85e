"""Warmth of prompt caches, learned from what providers report."""

from __future__ import annotations

import pytest

from gateway.catalog.cache_hits import MEMORY_TOKENS, CacheHits, CacheTerms


def test_before_anything_is_reported_a_matching_prefix_is_warm_for_five_minutes() -> None:
    assert CacheHits().warm_tokens("small", 1_000, 300.0) == 1_000
    assert CacheHits().warm_tokens("small", 1_000, 300.1) == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_share_of_what_matched_that_was_cached_is_expected_next(share: float) -> None:
    cache = CacheHits()
    for _ in range(200):
        cache.observe("small", 10_000, round(10_000 * share))
    assert cache.share("small", 10_000) == pytest.approx(share, abs=0.01)
    assert cache.warm_tokens("small", 20_000) == pytest.approx(20_000 * share, abs=200)
    assert cache.share("big", 10_000) == 1.0


def test_a_provider_s_minimum_is_learned() -> None:
    cache = CacheHits()
    for _ in range(100):
        cache.observe("small", 700, 0)
        cache.observe("small", 3_000, 3_000)
    assert cache.warm_tokens("small", 700) < 50
    assert cache.warm_tokens("small", 3_000) == 3_000


@pytest.mark.parametrize(
    ("ttl_s", "warm_after_s", "cold_after_s"), [(60, 50, 200), (600, 590, 900), (3_600, 3_000, 7_200)]
)
def test_a_provider_s_lifetime_is_learned(ttl_s: float, warm_after_s: float, cold_after_s: float) -> None:
    cache = CacheHits()
    for age_s in (30, 45, 200, 250, 400, 590, 900, 3_000, 7_200):
        for _ in range(20):
            cache.observe("small", 10_000, 10_000 if age_s <= ttl_s else 0, age_s)
    assert cache.share("small", 10_000, warm_after_s) > 0.95
    assert cache.share("small", 10_000, cold_after_s) < 0.05


def test_what_the_operator_states_holds_whatever_is_reported() -> None:
    cache, terms = CacheHits(), CacheTerms(min_tokens=2_000, ttl_s=3_600.0)
    assert cache.share("small", 1_999, 1.0, terms) == 0.0
    assert cache.share("small", 2_000, 3_600.0, terms) == 1.0
    assert cache.share("small", 2_000, 3_600.1, terms) == 0.0
    for _ in range(100):
        cache.observe("small", 1_500, 1_500)
        cache.observe("small", 3_000, 0)
    assert cache.share("small", 1_500, 0.0, terms) == 0.0
    assert cache.share("small", 3_000, 0.0, terms) < 0.05


def test_a_provider_that_caches_only_what_is_marked_is_learned() -> None:
    cache = CacheHits()
    for _ in range(100):
        cache.observe("small", 10_000, 0)
        cache.observe("small", 10_000, 10_000, marked=True)
    assert cache.share("small", 10_000) < 0.01
    assert cache.share("small", 10_000, marked=True) == 1.0


def test_a_provider_that_stops_caching_is_noticed() -> None:
    cache = CacheHits()
    for _ in range(10_000):
        cache.observe("small", 10_000, 10_000)
    for _ in range(round(3 * MEMORY_TOKENS / 10_000)):
        cache.observe("small", 10_000, 0)
    assert cache.share("small", 10_000) < 0.06


def test_a_report_beyond_the_prefix_or_below_zero_teaches_no_nonsense() -> None:
    cache = CacheHits()
    cache.observe("small", 1_000, 5_000)
    assert cache.share("small", 1_000) == 1.0
    cache.observe("small", 1_000, -5)
    cache.observe("small", 0, 5)
    assert 0.0 < cache.share("small", 1_000) < 1.0
