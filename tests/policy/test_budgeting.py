from __future__ import annotations

import numpy as np
import pytest

from policy import budgeting
from policy import budgeting_scalar as scalar
from policy.mdp import caches_of

TWO = np.array([True, True])


def test_lagrangian_scores_by_hand() -> None:
    assert budgeting.lagrangian_scores([0.6, 0.9], [0.01, 0.05], 5.0) == pytest.approx([0.55, 0.65])
    assert budgeting.lagrangian_scores([0.6, 0.9], [0.01, 0.05], 10.0) == pytest.approx([0.5, 0.4])
    many = budgeting.lagrangian_scores([[0.6, 0.9]] * 2, [[0.01, 0.05]] * 2, [5.0, 10.0])
    assert np.argmax(many, axis=-1).tolist() == [1, 0]


def test_pacing_takes_the_best_within_an_even_share_and_the_cheapest_beyond_it() -> None:
    quality, cost = np.array([0.5, 0.7, 0.9]), np.array([1.0, 2.0, 4.0])
    every = np.ones(3, bool)
    at_share_2 = budgeting.pacing_scores(quality, cost, every, 8.0, 4.0, 1.0)
    at_share_4 = budgeting.pacing_scores(quality, cost, every, 8.0, 4.0, 2.0)
    at_share_half = budgeting.pacing_scores(quality, cost, every, 2.0, 4.0, 1.0)
    assert [int(np.argmax(s)) for s in (at_share_2, at_share_4, at_share_half)] == [1, 2, 0]


def test_pacing_pays_no_more_than_lambda_says_and_never_ranks_what_is_beyond_the_share_above_what_is_within() -> None:
    quality, cost = np.array([0.5, 0.7, 0.9]), np.array([1.0, 2.0, 4.0])
    scores = budgeting.pacing_scores(quality, cost, np.ones(3, bool), 8.0, 4.0, 1.0, 0.3)
    # Share 2: .5 - .3, .7 - .6. The costly one lies beyond: the lowest worth, .9 - 1.2, less 1, less 4/4.
    assert scores == pytest.approx([0.2, 0.1, -2.3])
    costly = budgeting.pacing_scores(quality, cost, np.ones(3, bool), 8.0, 4.0, 1.0, 10.0)
    assert costly == pytest.approx([-9.5, -19.3, -41.1])


def quantiles(*costs: float) -> np.ndarray:
    return np.array([[c] * 15 for c in costs])


@pytest.mark.parametrize(
    ("remaining", "turns", "reserve", "expected"),
    [
        (7.01, 4.0, 1.0, [True, True]),  # 4 now + 3 later turns of 1
        (6.9, 4.0, 1.0, [True, False]),
        (4.0, 4.0, 0.0, [True, True]),  # only this call must fit
        (3.9, 4.0, 0.0, [True, False]),
        (9.9, 4.0, 2.0, [True, False]),  # 4 + 2 * 3
        (0.5, 4.0, 1.0, [True, False]),  # nothing fits: the cheapest stays, no one is starved
        (4.0, 1.0, 1.0, [True, True]),  # the last turn needs no reserve
    ],
)
def test_the_shield_keeps_enough_for_the_turns_to_come(
    remaining: float, turns: float, reserve: float, expected: list[bool]
) -> None:
    assert budgeting.shield(quantiles(1.0, 4.0), TWO, remaining, turns, reserve).tolist() == expected


def test_the_reserve_for_later_turns_averages_their_bills_by_hand() -> None:
    # one candidate: 1 USD but for the top 7.5 % at 9 (levels .95 and up), mean 1.6; q95 is 9
    tail = np.array([[1.0] * 11 + [9.0] * 4])
    one, four, none = (float(budgeting.reserve_usd(tail, np.array([True]), n)[0]) for n in (1.0, 4.0, 0.0))
    assert (one, four, none) == pytest.approx((9.0, 4 * 1.6 + 2 * 7.4, 0.0), abs=1e-5)
    assert float(budgeting.reserve_usd(tail, np.array([False]), 3.0)[0]) == 0.0


@pytest.mark.parametrize(
    ("later", "after_small", "after_large"),
    [
        (0.0, 0.0, 0.0),
        (0.5, 0.05, 0.25),
        (1.0, 0.1, 0.5),  # staying with the large one costs .5, filling the small one's cache 1
        (3.0, 0.3, 1.2),  # 3 * .1; 1 + 2 * .1 for the move, less than 3 * .5
    ],
)
def test_the_reserve_reads_the_conversation_from_the_cache_that_this_turn_fills(
    later: float, after_small: float, after_large: float
) -> None:
    """A small and a large model: 1 and 4 USD with a cold cache, .1 and .5 with a warm one."""
    cached = np.array([1.0, 4.0]), np.array([0.1, 0.5])
    found = budgeting.reserve_usd(quantiles(1.0, 4.0), TWO, later, cached)
    assert found == pytest.approx([after_small, after_large])
    efforts = budgeting.reserve_usd(quantiles(1.0, 4.0), TWO, later, cached, np.ones((2, 2)))
    assert efforts == pytest.approx([0.1 * later] * 2)  # of one model, whose cache they share


def test_the_shield_allows_the_model_whose_cache_pays_for_its_later_turns() -> None:
    """Of 5.3 USD the large model takes 4 now; moving to the small one then takes 1.2 for three turns, not 3."""
    cached = np.array([1.0, 4.0]), np.array([0.1, 0.5])
    for remaining, expected in ((5.3, [True, True]), (5.1, [True, False])):
        assert budgeting.shield(quantiles(1.0, 4.0), TWO, remaining, 4.0, 1.0, cached).tolist() == expected
    assert budgeting.shield(quantiles(1.0, 4.0), TWO, 5.3, 4.0, 1.0).tolist() == [True, False]


def test_what_a_last_bill_leaves_unspent_by_hand() -> None:
    """Likely bills (q98) of 1.0 and 9.0, means of 1.0 and 5.0: 0 and 4 are left, 2 on average."""
    bills, means = np.array([[1.0] * 15, [4.0] * 12 + [9.0] * 3]), np.array([1.0, 5.0])
    cold, warm = means + 1.0, means
    pairs, flat = list(zip(cold.tolist(), warm.tolist(), strict=True)), [(2.0, 2.0), (6.0, 6.0)]
    for turns, part in ((4.0, 1.0), (2.0, 1.0), (1.5, 0.5), (1.0, 0.0), (0.0, 0.0)):
        for mask, mean_left in (([True, True], 2.0), ([False, True], 4.0), ([True, False], 0.0)):
            found = budgeting.unspent_usd(bills, means, (cold, warm), np.array(mask), turns)
            assert float(found) == part * mean_left
            assert scalar.unspent_usd(bills.tolist(), means.tolist(), pairs, mask, turns) == part * mean_left
    # Without a cache, and of two sessions at once, of which the second has no candidate.
    assert float(budgeting.unspent_usd(bills, means, (cold, cold), TWO, 4.0)) == 0.0
    assert scalar.unspent_usd(bills.tolist(), means.tolist(), flat, [True, True], 4.0) == 0.0
    both = [np.stack([each, each]) for each in (bills, means, cold, warm)]
    twice = budgeting.unspent_usd(both[0], both[1], (both[2], both[3]), np.array([TWO, ~TWO]), [2.0, 2.0])
    assert twice.tolist() == [2.0, 0.0]


def test_where_no_candidate_leaves_enough_the_one_that_lacks_least_stays() -> None:
    """The large model, warm, is cheaper now (.5 for 1), but seven turns of the small one cost less: 1.6 for 3.5."""
    cached = np.array([1.0, 4.0]), np.array([0.1, 0.5])
    assert budgeting.shield(quantiles(1.0, 0.5), TWO, 1.5, 7.0, 1.0, cached).tolist() == [True, False]
    # At the last turn nothing comes later: the cheapest of now.
    assert budgeting.shield(quantiles(1.0, 0.5), TWO, 0.4, 1.0, 1.0, cached).tolist() == [False, True]


def test_the_shield_reads_the_tail_and_never_widens_the_mask() -> None:
    heavy = np.array([[1.0] * 13 + [6.0, 8.0], [2.0] * 15])  # q99 of the first is 6
    assert budgeting.shield(heavy, TWO, 5.0, 1.0, 1.0).tolist() == [False, True]
    assert budgeting.shield(quantiles(1.0, 4.0), np.array([False, True]), 0.1, 3.0, 1.0).tolist() == [False, True]
    batch = budgeting.shield(
        np.stack([quantiles(1.0, 4.0)] * 2),
        np.array([[True, True]] * 2),
        np.array([7.01, 6.0]),
        np.array([4.0, 4.0]),
        1.0,
    )
    assert batch.tolist() == [[True, True], [True, False]]


def test_cache_costs_by_hand() -> None:
    # 10k tokens at 1 USD/Mtok, cached at .1, 4k of them warm; the turn is expected to cost .02 so.
    cold, warm = budgeting.cache_costs([0.02], [4_000], [10_000], [1.0], [0.1])
    assert cold == pytest.approx([0.02 + 0.0036])
    assert warm == pytest.approx([0.02 + 0.0036 - 0.009])
    # Writing costs 1.25: the 4k saved 1.15 a million, and so will 10k.
    cold, warm = budgeting.cache_costs([0.02], [4_000], [10_000], [1.25], [0.1])
    assert (cold[0], warm[0]) == pytest.approx((0.02 + 0.0046, 0.02 + 0.0046 - 0.0115))
    none = budgeting.cache_costs([0.02], [0], [10_000], [1.0], [1.0])  # without a cached price
    assert none[0] == none[1] == pytest.approx([0.02])


@pytest.mark.parametrize(
    ("tokens", "warm", "served_last", "paused", "kept"),
    [
        (9_000, 0, False, False, 9_000.0),  # nothing is known of this model: all of a prompt that it reads
        (900, 0, False, False, 0.0),  # too short for any provider's cache
        (9_000, 0, False, True, 0.0),  # the session pauses for longer than caches live
        (9_000, 8_000, True, False, 8_000.0),  # as much as it reads now
        (9_000, 8_000, True, True, 8_000.0),  # of a cache that outlived the pause
        (9_000, 8_000, False, False, 8_000.0),
        (9_000, 0, True, False, 0.0),  # it served the last turn, and nothing is cached
    ],
)
def test_a_later_turn_is_expected_to_read_what_was_learned_of_the_cache(
    tokens: int, warm: int, served_last: bool, paused: bool, kept: float
) -> None:
    found = budgeting.kept_tokens([tokens], [warm], [served_last], paused)
    assert found.tolist() == [kept] == [scalar.kept_tokens(tokens, warm, served_last, paused)]


def test_one_later_turn_is_a_softmax_over_the_candidates() -> None:
    quality, cost = np.array([0.5, 0.9]), np.array([0.1, 0.5])
    plan = budgeting.later_plan(quality, cost, cost, TWO, 1.0, np.array(1.0), 0.1)
    # both are worth .4 at this price: ln 2 of the spread on top, half of each cost
    assert plan.value == pytest.approx([0.4 + 0.1 * np.log(2)] * 2)
    assert plan.spend_usd == pytest.approx([0.3, 0.3])


def test_without_a_cache_later_turns_add_up_in_whole_and_in_part() -> None:
    quality, cost = np.array([0.5, 0.8]), np.array([0.1, 0.5])
    one = budgeting.later_plan(quality, cost, cost, TWO, 1.0, np.array(0.3), 0.1)
    for turns in (0.0, 0.5, 2.5, 4.0, 11.0):
        plan = budgeting.later_plan(quality, cost, cost, TWO, turns, np.array(0.3), 0.1)
        assert plan.value == pytest.approx(turns * one.value)
        assert plan.spend_usd == pytest.approx(turns * one.spend_usd)


def brute_force(
    quality: np.ndarray, cold: np.ndarray, warm: np.ndarray, turns: int, price: float, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """The soft Bellman equation pair by pair."""
    count = len(quality)
    value, spend = np.zeros(count), np.zeros(count)
    for _ in range(turns):
        cost = np.where(np.eye(count, dtype=bool), warm[None, :], cold[None, :])  # [now, next]
        terms = (quality - price * cost + value) / spread
        weights = np.exp(terms - terms.max(axis=1, keepdims=True))
        chosen = weights / weights.sum(axis=1, keepdims=True)
        value, spend = (
            spread * (np.log(weights.sum(axis=1)) + terms.max(axis=1)),
            (chosen * (cost + spend[None, :])).sum(axis=1),
        )
    return value, spend


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_the_plan_with_a_cache_equals_backward_induction_pair_by_pair(turns: int) -> None:
    rng = np.random.default_rng(turns)
    quality, cold = rng.random(5), rng.random(5)
    warm = cold * rng.random(5)
    for price in (0.0, 0.7, 40.0):
        plan = budgeting.later_plan(quality, cold, warm, np.ones(5, bool), float(turns), np.array(price), 0.1)
        value, spend = brute_force(quality, cold, warm, turns, price, 0.1)
        assert plan.value == pytest.approx(value)
        assert plan.spend_usd == pytest.approx(spend)


def test_efforts_of_one_model_keep_each_others_cache_warm_by_hand() -> None:
    # At a price of 1 per USD a turn is worth .4 on either effort of `a` warm, .2 cold, and .2 on `b`.
    quality, cold, warm = np.array([0.5, 0.7, 0.6]), np.array([0.3, 0.5, 0.4]), np.array([0.1, 0.3, 0.4])
    caches = caches_of(["a#low", "a#high", "b"])
    assert caches == [0, 0, 2]
    alike = budgeting.sharing_caches(np.array(caches))
    plan = budgeting.later_plan(quality, cold, warm, np.ones(3, bool), 1.0, np.array(1.0), 0.1, alike)
    less = np.exp(-2.0)  # `b` after `a`: .2 / .1 below
    assert plan.value == pytest.approx([*[0.4 + 0.1 * np.log(2 + less)] * 2, 0.2 + 0.1 * np.log(3)])
    assert plan.spend_usd == pytest.approx([*[(0.1 + 0.3 + 0.4 * less) / (2 + less)] * 2, 0.4])
    apart = budgeting.later_plan(quality, cold, warm, np.ones(3, bool), 1.0, np.array(1.0), 0.1)
    assert apart.value[0] == pytest.approx(0.4 + 0.1 * np.log(1 + 2 * less))


def test_candidates_of_separate_models_share_nothing() -> None:
    assert caches_of(["a#low", "b#low", "ab"]) is None
    assert caches_of(["team#fast", "team#deep", "team"]) is None, "names of their own"
    assert caches_of(["team#fast#low", "team#deep#low", "team#fast#high"]) == [0, 1, 0]
    assert caches_of(["low", "#low", "high"]) is None


def test_a_name_that_ends_like_an_effort_is_none_where_efforts_are_known() -> None:
    names = ["team#low", "team#high", "x#low", "x#high"]
    assert caches_of(names, ["", "", "low", "high"]) == [0, 1, 2, 2]
    assert caches_of(names) == [0, 0, 2, 2]
    assert budgeting.sharing_caches(np.array([[0, 1, 2], [0, 2, 1]])) is None


def test_a_long_plan_goes_on_as_it_settled() -> None:
    rng = np.random.default_rng(9)
    quality, cold = rng.random(4), rng.random(4)
    warm = cold * 0.3
    plan = budgeting.later_plan(quality, cold, warm, np.ones(4, bool), 12.0, np.array(1.0), 0.1)
    value, spend = brute_force(quality, cold, warm, 12, 1.0, 0.1)
    assert plan.value == pytest.approx(value, rel=0.02)
    assert plan.spend_usd == pytest.approx(spend, rel=0.1)


def resolved(remaining: float, turns: float = 4.0, floor: float = 0.0) -> budgeting.ResolvedPrice:
    quality, cost = np.array([0.6, 0.9]), np.array([1.0, 10.0])
    return budgeting.resolve(quality, quality, cost, cost, cost, TWO, remaining, turns, floor, 0.1)


def test_with_enough_money_its_price_is_the_floor_and_without_it_rises() -> None:
    assert resolved(40.0).lambda_per_usd == 0.0
    assert resolved(40.0, floor=0.02).lambda_per_usd == pytest.approx(0.02)
    prices = [float(resolved(r).lambda_per_usd) for r in (38.0, 30.0, 20.0, 10.0, 5.0)]
    assert prices == sorted(prices)
    assert prices[0] < prices[-1]
    assert int(np.argmax(resolved(40.0).scores)) == 1
    assert int(np.argmax(resolved(4.0).scores)) == 0
    assert int(np.argmax(resolved(0.0).scores)) == 0


def test_the_price_makes_the_expected_spend_what_is_left() -> None:
    """Four turns, costs 1 and 10: a share p of costly turns costs 4 + 36 p; the softmax at the price found gives p."""
    for remaining in (8.0, 15.0, 25.0, 35.0):
        price = float(resolved(remaining).lambda_per_usd)
        costly = 1.0 / (1.0 + np.exp(-(0.3 - 9.0 * price) / 0.1))
        assert 4.0 + 36.0 * costly == pytest.approx(remaining, rel=0.1)  # the prices tried lie 1.35 apart


def test_a_turn_that_gains_more_than_the_others_gets_the_costly_model() -> None:
    usual, cost = np.array([0.6, 0.8]), np.array([1.0, 10.0])

    def choice(*now: float) -> int:
        found = budgeting.resolve(np.array(now), usual, cost, cost, cost, TWO, 15.0, 4.0, 0.0, 0.1)
        return int(np.argmax(found.scores))

    assert choice(0.2, 0.9) == 1
    assert choice(0.79, 0.8) == 0


def test_a_warm_cache_is_worth_staying_for_and_a_blind_plan_does_not_see_it() -> None:
    """Served last by the first: staying costs .2, the rival costs 1 now and .2 from then on."""
    quality, now = np.array([0.6, 0.63]), np.array([0.2, 1.0])
    cold, warm = np.array([1.0, 1.0]), np.array([0.2, 0.2])
    stays = budgeting.resolve(quality, quality, now, cold, warm, TWO, 1.2, 4.0, 0.0, 0.05)
    assert int(np.argmax(stays.scores)) == 0
    rich = budgeting.resolve(quality, quality, now, cold, warm, TWO, 50.0, 4.0, 0.0, 0.05)
    assert int(np.argmax(rich.scores)) == 1


def test_the_prices_tried_tell_staying_on_a_warm_model_from_leaving_it() -> None:
    """The large model, warm, costs .12 now and the small one .11; both would cost 1 and .11 cold, .1 and .01 warm.

    Seven turns of the large one cost .72 of the .75 that are left. Steps of a range of .01 would go from a price of 0
    to one of 3, at which even a model of no cost would be left.
    """
    quality, now = np.array([0.5, 0.6]), np.array([0.11, 0.12])
    cold, warm = np.array([0.11, 1.0]), np.array([0.01, 0.1])
    found = budgeting.resolve(quality, quality, now, cold, warm, TWO, 0.75, 7.0, 0.0, 0.1)
    assert int(np.argmax(found.scores)) == 1
    assert float(found.lambda_per_usd) < 1.0


def test_resolving_many_sessions_at_once_is_resolving_each() -> None:
    rng = np.random.default_rng(2)
    quality, cost = rng.random((6, 3)), rng.random((6, 3)) + 0.01
    mask = rng.random((6, 3)) < 0.8
    mask[:, 0] = True
    left, turns = rng.random(6) * 3, rng.integers(1, 9, 6).astype(float)
    together = budgeting.resolve(quality, quality, cost, cost, 0.4 * cost, mask, left, turns, np.zeros(6), 0.1)
    for k in range(6):
        alone = budgeting.resolve(
            quality[k], quality[k], cost[k], cost[k], 0.4 * cost[k], mask[k], left[k], turns[k], 0.0, 0.1
        )
        assert together.lambda_per_usd[k] == pytest.approx(float(alone.lambda_per_usd))
        assert together.scores[k][mask[k]] == pytest.approx(alone.scores[mask[k]])
