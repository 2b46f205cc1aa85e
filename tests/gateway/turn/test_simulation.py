"""The request path in virtual time, under faults: no await at which a cancellation loses or keeps money."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.simulator import template
from tests.harness.turn_simulator import at_every_await, simulate_turns

SEEDS = 200


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


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_swarms_of_faults_break_no_law_and_come_to_rest(empty: Any, first: int) -> None:
    for seed in range(first, first + 50):
        try:
            simulate_turns(seed, empty)
        except Exception as error:
            raise AssertionError(f"python -m tests.harness.turn_simulator --seeds {seed}:{seed + 1}") from error
