"""The learning loop over a simulated day; `make soak-loop` is the same over thirty."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.database.database import transaction
from gateway.policies.registry import get_policy
from policy.rules import ReSolving
from tests.harness.learning_loop import PLANTED, Size, month
from tests.harness.learning_loop_world import catalogue, greedy, plan, play
from tests.harness.soak_loop import findings


def test_the_same_seed_plays_the_same_session_and_the_world_changes_as_it_says() -> None:
    session = plan(7, 3, 5)
    one, again = (play(7, session, greedy(ReSolving()), logged=True) for _ in range(2))
    assert (one.quality, one.cost_usd, len(one.rows)) == (again.quality, again.cost_usd, len(again.rows))
    assert [len(catalogue(day)) for day in (0, 12)] == [3, 4]
    assert catalogue(0)[2].usd_per_mtok > catalogue(8)[2].usd_per_mtok
    assert catalogue(0)[1].hard > catalogue(20)[1].hard


@pytest.mark.timeout(900)
def test_a_day_and_its_night_serve_no_planted_policy_and_log_what_was_drawn(tmp_path: Path) -> None:
    made = month(1, Size(days=1, sessions=170, duels=10), tmp_path)
    found = {finding.name: finding for finding in findings(made)}
    assert found["bad policies planted, served"].shown == "1, 0"
    assert found["propensities recomputed, largest error"].kept
    assert found["days with more sessions than the canary's share"].kept
    assert len([line for line in made.verdicts if line.startswith("night")]) == 1
    with transaction(made.url, read_only=True) as connection:
        assert get_policy(connection, f"planted-{PLANTED[0]:02d}").stage == "rejected"
