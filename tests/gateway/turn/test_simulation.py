"""The request path in virtual time, under faults: no await at which a cancellation loses or keeps money."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from gateway.providers.call import Outgoing
from tests.harness.simulator import in_a_copy, template
from tests.harness.turn_simulator import (
    TurnSimulation,
    at_every_await,
    calm,
    simulate_crowd,
    simulate_endings,
    simulate_turns,
)

SEEDS, BATCH = 24, 12
"""`make soak` runs thousands."""


@pytest.fixture(scope="module")
def empty() -> Iterator[Any]:
    made = template()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("stream", "victim", "awaits"),
    [
        (False, None, 12),
        (True, None, 15),
        (True, "StreamPump._run", 2),
        (True, "StreamPump._read", 2),
    ],
)
def test_a_turn_may_be_cancelled_at_any_of_its_awaits(
    empty: Any, stream: bool, victim: str | None, awaits: int
) -> None:
    """Its handler (None), or a task of its own: the pump of a stream and its reader."""
    assert at_every_await(empty, stream=stream, victim=victim) >= awaits


@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_may_be_cancelled_between_its_failed_calls_and_its_fallback(empty: Any, stream: bool) -> None:
    """Both deployments of its model refuse; the third call is the fallback's."""
    assert at_every_await(empty, stream=stream, refusals=2) >= 18


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_swarms_of_faults_break_no_law_and_come_to_rest(empty: Any, first: int) -> None:
    for seed in range(first, first + BATCH):
        try:
            simulate_turns(seed, empty)
        except Exception as error:
            raise AssertionError(f"python -m tests.harness.turn_simulator --seeds {seed}:{seed + 1}") from error


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_of_a_crowd_that_waits_for_held_money_each_is_served_in_time_or_told_429(empty: Any, first: int) -> None:
    for seed in range(first, first + BATCH):
        try:
            simulate_crowd(seed, empty)
        except Exception as error:
            raise AssertionError(f"python -m tests.harness.turn_simulator --seeds {seed}:{seed + 1}") from error


def test_no_turn_and_no_sub_agent_eats_the_last_answer(empty: Any) -> None:
    for seed in range(6):
        try:
            simulate_endings(seed, empty)
        except Exception as error:
            raise AssertionError(f"python -m tests.harness.turn_simulator --seeds {seed}:{seed + 1}") from error


@pytest.mark.parametrize("stream", [False, True])
def test_what_breaks_before_a_call_is_sent_costs_nothing(empty: Any, stream: bool) -> None:
    async def story(connection: Any) -> None:
        simulation = TurnSimulation(1, connection, calm(), faults=False)

        def broken(call: Any) -> Outgoing:
            raise RuntimeError("a provider's code that knows no such model")

        simulation.provider.outgoing = broken  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            await simulation.crowd(stream)
        await simulation.rest([])
        with simulation.engine.begin() as core:
            rows = core.execute(text("SELECT state, posted_nanousd FROM holds")).all()
            [status] = core.execute(text("SELECT status FROM decisions")).scalars()
        assert ([tuple(row) for row in rows], status) == ([("released", 0)], "failed")

    in_a_copy(empty, story)
