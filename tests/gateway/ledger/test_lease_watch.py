"""A lease is over when nobody renews it, whatever the clock that ends it was set to in between."""

from __future__ import annotations

from msgspec import structs

from gateway.ledger.lease_watch import LeaseWatch, OpenLease
from gateway.ledger.ledger import backend_of
from gateway.ledger.records import CHARGE_PREFIX
from tests.gateway.ledger.test_leases import Time
from tests.harness.money import open_bench

# A lease of 40 s: watched with 20 s left, renewed every 10 s, over after 15 s without a change.
TTL_S = 40.0


def watching() -> tuple[LeaseWatch, Time]:
    elapsed = Time()
    return LeaseWatch(elapsed, ttl_s=TTL_S), elapsed


def test_a_lease_that_ran_out_is_over_once_it_was_seen_unchanged_for_three_eighths_of_its_time() -> None:
    watch, elapsed = watching()
    assert (watch.ahead_ms, watch.beyond_ms) == (20_000, 40_000)
    assert watch.abandoned([OpenLease("h1", 1_000_000, -1)]) == []
    elapsed.now_s += 14.9
    assert watch.abandoned([OpenLease("h1", 1_000_000, -15_000)]) == []
    elapsed.now_s += 0.1
    over = [OpenLease("h1", 1_000_000, -15_100)]
    assert watch.abandoned(over) == over


def test_a_lease_seen_while_it_ran_is_over_as_soon_as_it_ran_out() -> None:
    watch, elapsed = watching()
    watch.abandoned([OpenLease("h1", 1_000_000, 18_000)])
    elapsed.now_s += 17.9
    assert watch.abandoned([OpenLease("h1", 1_000_000, 100)]) == []
    elapsed.now_s += 0.1
    over = [OpenLease("h1", 1_000_000, 0)]
    assert watch.abandoned(over) == over


def test_a_renewal_starts_the_wait_again() -> None:
    watch, elapsed = watching()
    watch.abandoned([OpenLease("h1", 1_000_000, -3_600_000)])
    elapsed.now_s += 14
    watch.abandoned([OpenLease("h1", 4_640_000, -1)])
    elapsed.now_s += 14
    assert watch.abandoned([OpenLease("h1", 4_640_000, -14_001)]) == []


def test_a_lease_that_left_the_watch_is_seen_for_the_first_time_when_it_comes_back() -> None:
    watch, elapsed = watching()
    watch.abandoned([OpenLease("h1", 1_000_000, -1)])
    watch.abandoned([])
    elapsed.now_s += 100
    assert watch.abandoned([OpenLease("h1", 1_000_000, -1)]) == []


def test_a_lease_longer_than_any_is_over_when_unchanged_for_four_of_the_longest_renewals() -> None:
    watch, elapsed = watching()
    far = [OpenLease("h1", 9_000_000, 3_600_000)]
    assert watch.abandoned(far) == []
    elapsed.now_s += 59.9
    assert watch.abandoned(far) == []
    elapsed.now_s += 0.1
    assert watch.abandoned(far) == far


async def test_a_charge_may_be_held_for_longer_than_a_turn_s_lease(postgres_url: str) -> None:
    """A lease far in the future is a turn's whose clock was set back; nobody renews a charge."""
    async with open_bench(postgres_url, audit=False) as bench:
        long = structs.replace(bench.asking(10, ttl_ms=600_000), hold_id=f"{CHARGE_PREFIX}1")
        await bench.ledger.reserve(long)
        turn = await bench.held(10, ttl_ms=600_000)
        backend = backend_of(bench.database, bench.hands.clock)
        watched = await backend.open_leases(10, ahead_ms=1_000, beyond_ms=60_000)
        assert [lease.hold_id for lease in watched] == [turn.hold_id]
        near = await backend.open_leases(10, ahead_ms=600_000, beyond_ms=10**9)
        assert {lease.hold_id for lease in near} == {turn.hold_id, long.hold_id}
