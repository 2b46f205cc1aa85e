"""Deployments of a balanced group: who is called, who is passed over, and when there is room again."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.models import Deployment
from gateway.config.settings import STRATEGIES, RateQuota, RouterSettings
from gateway.providers.balance import Demand, Full, LoadBalancer, Slot, by_weight
from tests.harness.models import deployment, prices


class Time:
    """A clock that a test moves."""

    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def balancer(strategy: str = "simple-shuffle", clock: Time | None = None, **more: float) -> LoadBalancer:
    settings = RouterSettings(routing_strategy=strategy, **more)  # type: ignore[arg-type]
    return LoadBalancer(clock or Time(), lambda: settings)


def called(
    subject: LoadBalancer, group: list[Deployment], key: str = "acme/s", *, prompt: int = 10, **more: object
) -> tuple[str, Slot]:
    taken = subject.take(group, Demand(key, prompt, **more))  # type: ignore[arg-type]
    assert not isinstance(taken, Full)
    return taken[0].deployment_id, taken[1]


def limited(name: str = "only", **quota: int) -> Deployment:
    return deployment(name, limits=RateQuota(**quota))


def drawn(group: list[Deployment], sessions: int = 4_000) -> dict[str, str]:
    return {key: by_weight(group, key).deployment_id for key in (f"acme/s{n}" for n in range(sessions))}


# -- shares ------------------------------------------------------------------------------------------------------------


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


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=6), st.text(max_size=20), st.sampled_from(STRATEGIES))
def test_a_choice_never_leaves_the_group(weights: list[float], key: str, strategy: str) -> None:
    group = [deployment(str(number), weight=weight) for number, weight in enumerate(weights)]
    assert by_weight(group, key) in group
    assert called(balancer(strategy), group, key)[0] in {each.deployment_id for each in group}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_deployment_without_weight_is_not_called_beside_one_with(strategy: str) -> None:
    group = [deployment("off", weight=0.0), deployment("on", weight=1.0)]
    subject = balancer(strategy)
    assert {called(subject, group, f"s{n}")[0] for n in range(50)} == {"on"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_lowest_order_is_called_while_it_has_room(strategy: str) -> None:
    early = deployment("early", order=1, limits=RateQuota(parallel=2))
    subject, group = balancer(strategy), [deployment("late", order=2), early]
    slots = [called(subject, group, f"s{n}") for n in range(3)]
    assert [name for name, _ in slots] == ["early", "early", "late"]
    slots[0][1].leave()
    assert called(subject, group, "s9")[0] == "early"


# -- strategies --------------------------------------------------------------------------------------------------------


def test_least_busy_calls_the_deployment_with_the_fewest_calls_under_way() -> None:
    subject, group = balancer("least-busy"), [deployment("a"), deployment("b")]
    slots = [called(subject, group, f"s{n}") for n in range(10)]
    assert Counter(name for name, _ in slots) == {"a": 5, "b": 5}
    for name, slot in slots:
        if name == "a":
            slot.leave()
            slot.leave()
    assert {called(subject, group, f"t{n}")[0] for n in range(5)} == {"a"}


def test_the_lowest_latency_is_called_and_an_unknown_or_forgotten_one_is_tried() -> None:
    clock = Time()
    subject = balancer("latency-based-routing", clock, latency_ttl_s=60.0)
    group = [deployment("slow"), deployment("fast")]
    seen = set()
    for n in range(2):
        name, slot = called(subject, group, f"s{n}")
        slot.answered(2.0 if name == "slow" else 0.5)
        seen.add(name)
    assert seen == {"slow", "fast"}
    assert {called(subject, group, f"t{n}")[0] for n in range(20)} == {"fast"}
    assert {called(subject, group, f"u{n}", stream=True)[0] for n in range(20)} == {"slow", "fast"}
    clock.now_s += 30
    called(subject, [group[1]])[1].answered(0.5)
    clock.now_s += 31
    assert {called(subject, group, f"v{n}")[0] for n in range(20)} == {"slow"}


def test_latencies_within_the_buffer_share_the_load() -> None:
    subject = balancer("latency-based-routing", latency_buffer=0.5)
    group = [deployment(name) for name in ("a", "b", "c")]
    for each, seconds in zip(group, (1.0, 1.4, 1.6), strict=True):
        called(subject, [each])[1].answered(seconds)
    assert {called(subject, group, f"s{n}")[0] for n in range(50)} == {"a", "b"}


@pytest.mark.parametrize("strategy", ["usage-based-routing", "usage-based-routing-v2"])
def test_the_deployment_with_the_fewest_tokens_of_the_last_minute_is_called(strategy: str) -> None:
    clock = Time()
    subject, group = balancer(strategy, clock), [deployment("a"), deployment("b")]
    first, slot = called(subject, group, prompt=100, answer_tokens=50.0)
    other = {"a": "b", "b": "a"}[first]
    assert called(subject, group, prompt=100)[0] == other
    assert called(subject, group, prompt=100)[0] == other
    slot.used(500)
    assert called(subject, group, prompt=100)[0] == other
    clock.now_s += 62
    assert called(subject, group, prompt=1)[0] == by_weight(group, "acme/s").deployment_id


def test_the_cheapest_deployment_for_this_prompt_and_answer_is_called() -> None:
    group = [deployment("reads", prices(1.0, 9.0)), deployment("writes", prices(3.0, 3.0))]
    subject = balancer("cost-based-routing")
    assert called(subject, group, prompt=1_000, answer_tokens=10.0)[0] == "reads"
    assert called(subject, group, prompt=10, answer_tokens=1_000.0)[0] == "writes"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_session_stays_where_its_prompt_is_cached_while_there_is_room(strategy: str) -> None:
    subject, group = balancer(strategy), [deployment("a", limits=RateQuota(parallel=3)), deployment("b")]
    assert [called(subject, group, f"s{n}", home="a")[0] for n in range(4)] == ["a", "a", "a", "b"]
    assert called(subject, [group[1]], home="a")[0] == "b"


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_full_deployment_is_passed_over_and_when_all_are_full_the_wait_is_told() -> None:
    subject, group = balancer(), [limited("a", parallel=1), limited("b", parallel=1)]
    names = {called(subject, group)[0] for _ in range(2)}
    assert names == {"a", "b"}
    assert subject.take(group, Demand("acme/s", 10)) == Full(1)
    assert subject.with_room(group, Demand("acme/s", 10)) == []


def test_requests_of_a_minute_are_limited_and_come_back_when_it_is_over() -> None:
    clock = Time()
    subject, only = balancer(clock=clock), [limited(rpm=2)]
    for _ in range(2):
        called(subject, only)[1].leave()
        clock.now_s += 20
    assert subject.wait_s(only, Demand("s", 1)) == 61 - 40
    clock.now_s += 21
    assert called(subject, only)[0] == "only"


def test_tokens_are_counted_as_expected_then_as_billed() -> None:
    subject, only = balancer(), [limited(tpm=100)]
    _, slot = called(subject, only, prompt=10, answer_tokens=60.0)
    assert isinstance(subject.take(only, Demand("s", 10, 60.0)), Full)
    slot.leave()
    slot.used(20)
    assert called(subject, only, prompt=10, answer_tokens=60.0)[0] == "only"


def test_a_call_larger_than_the_limit_is_made_alone() -> None:
    subject, only = balancer(), [limited(tpm=100)]
    _, slot = called(subject, only, prompt=500)
    assert isinstance(subject.take(only, Demand("s", 1)), Full)
    slot.leave()
    assert isinstance(subject.take(only, Demand("s", 1)), Full)


@pytest.mark.parametrize(
    ("quota", "of_clients", "of_spare"),
    [
        (RateQuota(rpm=5), 5, 2), (RateQuota(tpm=50), 5, 2), (RateQuota(parallel=5), 5, 2), (RateQuota(rpm=1), 1, 0),
        (RateQuota(), 9, 9),
    ],
)  # fmt: skip
def test_a_call_for_spare_room_leaves_half_of_each_limit_free(quota: RateQuota, of_clients: int, of_spare: int) -> None:
    for spare, most in ((False, of_clients), (True, of_spare)):
        subject, only = balancer(), [deployment("only", limits=quota)]
        taken = [subject.take(only, Demand("s", 10, spare=spare)) for _ in range(9)]
        assert sum(not isinstance(each, Full) for each in taken) == most


def test_a_call_for_spare_room_is_never_larger_than_half_of_the_tokens() -> None:
    assert isinstance(balancer().take([limited(tpm=50)], Demand("s", 30, spare=True)), Full)


def test_a_call_that_was_never_sent_counts_for_nothing() -> None:
    subject, only = balancer(), [limited(rpm=1, tpm=20, parallel=1)]
    _, slot = called(subject, only)
    slot.unsent()
    slot.unsent()
    _, sent = called(subject, only)
    sent.leave()
    sent.unsent()
    assert isinstance(subject.take(only, Demand("s", 10)), Full)


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, 40), st.booleans()), max_size=40))
def test_no_minute_admits_more_than_the_limits(steps: list[tuple[float, int, bool]]) -> None:
    clock = Time()
    subject, only = balancer(clock=clock), [limited(rpm=5, tpm=100, parallel=2)]
    under_way: list[Slot] = []
    admitted: list[tuple[float, int]] = []
    for pause_s, tokens, ends in steps:
        clock.now_s += pause_s
        if ends and under_way:
            under_way.pop().leave()
        taken = subject.take(only, Demand("s", tokens))
        if isinstance(taken, Full):
            assert taken.wait_s >= 1
            continue
        under_way.append(taken[1])
        admitted.append((clock.now_s, tokens))
        last = [used for at_s, used in admitted if at_s > clock.now_s - 60]
        assert len(under_way) <= 2
        assert len(last) <= 5
        assert sum(last) <= 100
