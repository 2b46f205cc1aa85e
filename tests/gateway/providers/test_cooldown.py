"""Deployments rest when they keep failing."""

from __future__ import annotations

from gateway.config.settings import RouterSettings
from gateway.providers.cooldown import LOST_FOR_S, MOST_LOST, RECENT_CALLS, WINDOW_S, Breaker
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
    assert subject.recent([ONE, TWO]) == (0.0, 0.0)
    fail(subject, 1)
    subject.record("one", failed=False, latency_s=1.0)
    subject.record("two", failed=False, latency_s=3.0)
    subject.record("two", failed=False, latency_s=2.0)
    assert subject.recent([ONE, TWO]) == (0.25, 2.0)
    assert subject.recent([TWO])[0] == 0.0
    for _ in range(RECENT_CALLS):
        subject.record("one", failed=False, latency_s=1.0)
    assert subject.recent([ONE])[0] == 0.0


def test_a_lost_kind_of_part_is_remembered_for_its_tenant_for_a_while() -> None:
    clock = Time()
    subject = breaker(clock)
    subject.note_lost("t", ONE, "png")
    assert subject.loses("t", [ONE], frozenset({"png", "gif"}))
    assert not subject.loses("other", [ONE], frozenset({"png"}))
    assert not subject.loses("t", [ONE, TWO], frozenset({"png"}))
    assert not subject.loses("t", [ONE], frozenset({"gif"}))
    clock.now_s += LOST_FOR_S
    assert not subject.loses("t", [ONE], frozenset({"png"}))


def test_of_lost_kinds_only_the_latest_are_kept() -> None:
    subject = breaker(Time())
    subject.note_lost("t", ONE, "first")
    subject.note_lost("t", ONE, "second")
    subject.note_lost("t", ONE, "first")
    for number in range(MOST_LOST - 1):
        subject.note_lost("t", ONE, str(number))
    assert subject.loses("t", [ONE], frozenset({"first"}))
    assert not subject.loses("t", [ONE], frozenset({"second"}))
