"""Deployments rest when they keep failing, and a group is drawn from by weight."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.models import Deployment
from gateway.config.settings import RouterSettings
from gateway.providers.cooldown import RECENT_CALLS, WINDOW_S, Breaker, pick_deployment
from tests.harness.models import deployment

ONE = deployment("one")
TWO = deployment("two")


class Time:
    """A clock that a test moves."""

    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def breaker(clock: Time, **changes: float) -> Breaker:
    settings = RouterSettings(**({"allowed_fails": 2, "cooldown_s": 30.0} | changes))  # type: ignore[arg-type]
    return Breaker(clock, lambda: settings)


def fail(subject: Breaker, times: int = 1, name: str = "one") -> None:
    for _ in range(times):
        subject.record(name, failed=True, latency_s=0.0)


def test_a_deployment_rests_only_after_more_failures_than_allowed_and_comes_back_after_its_rest() -> None:
    clock = Time()
    subject = breaker(clock)
    fail(subject, 2)
    assert subject.healthy([ONE, TWO]) == [ONE, TWO]
    fail(subject)
    assert subject.healthy([ONE, TWO]) == [TWO]
    clock.now_s += 29.9
    assert subject.healthy([ONE]) == []
    clock.now_s += 0.1
    assert subject.healthy([ONE]) == [ONE]


def test_the_first_failure_after_a_rest_sends_it_back_to_rest() -> None:
    clock = Time()
    subject = breaker(clock)
    fail(subject, 3)
    clock.now_s += 30.0
    fail(subject)
    assert subject.healthy([ONE]) == []


def test_failures_further_apart_than_the_window_do_not_add_up() -> None:
    clock = Time()
    subject = breaker(clock)
    fail(subject, 2)
    clock.now_s += WINDOW_S + 0.1
    fail(subject, 2)
    assert subject.healthy([ONE]) == [ONE]


def test_a_success_ends_the_rest_and_forgets_the_failures() -> None:
    subject = breaker(Time())
    fail(subject, 3)
    subject.record("one", failed=False, latency_s=0.5)
    assert subject.healthy([ONE]) == [ONE]
    fail(subject, 2)
    assert subject.healthy([ONE]) == [ONE]


def test_no_failure_is_allowed_when_the_configuration_says_none() -> None:
    subject = breaker(Time(), allowed_fails=0)
    fail(subject)
    assert subject.healthy([ONE]) == []


def test_rates_and_latencies_are_of_the_recent_calls_of_the_group() -> None:
    subject = breaker(Time(), allowed_fails=1000)
    assert subject.failure_rate([ONE, TWO]) == 0.0
    assert subject.latency_s([ONE, TWO]) == 0.0
    fail(subject, 1)
    subject.record("one", failed=False, latency_s=1.0)
    subject.record("two", failed=False, latency_s=3.0)
    subject.record("two", failed=False, latency_s=2.0)
    assert subject.failure_rate([ONE, TWO]) == 0.25
    assert subject.latency_s([ONE, TWO]) == 2.0
    assert subject.failure_rate([TWO]) == 0.0
    for _ in range(RECENT_CALLS):
        subject.record("one", failed=False, latency_s=1.0)
    assert subject.failure_rate([ONE]) == 0.0


def drawn(group: list[Deployment], sessions: int = 4_000) -> dict[str, str]:
    return {key: pick_deployment(group, key).deployment_id for key in (f"acme/s{n}" for n in range(sessions))}


def test_sessions_are_spread_over_a_group_by_weight_and_each_keeps_its_deployment() -> None:
    group = [deployment("a", weight=1.0), deployment("b", weight=3.0)]
    found = drawn(group)
    assert found == drawn(group[::-1])
    assert 0.22 < Counter(found.values())["a"] / len(found) < 0.28


def test_only_the_sessions_of_a_missing_deployment_move() -> None:
    group = [deployment(name) for name in "abc"]
    before, after = drawn(group), drawn(group[:2])
    assert {key for key in before if before[key] != after[key]} == {key for key in before if before[key] == "c"}
    assert set(drawn(group[:2], 50).values()) == {"a", "b"}


def test_the_lowest_order_that_is_healthy_is_called() -> None:
    group = [deployment("late", order=2), deployment("early", order=1), deployment("too", order=1)]
    assert set(drawn(group, 100).values()) == {"early", "too"}
    assert set(drawn(group[:1], 10).values()) == {"late"}


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=6), st.text(max_size=20))
def test_a_draw_never_leaves_the_group(weights: list[float], key: str) -> None:
    group = [deployment(str(number), weight=weight) for number, weight in enumerate(weights)]
    assert pick_deployment(group, key) in group


def test_a_deployment_without_weight_is_not_drawn_beside_one_with() -> None:
    assert set(drawn([deployment("off", weight=0.0), deployment("on", weight=1.0)], 200).values()) == {"on"}
