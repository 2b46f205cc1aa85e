"""Quotas of exploration over HTTP: what counts are the answers that training reads, and a little every attempt."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from gateway.database.tables import decisions, exploration_answers
from gateway.decisions.trainable import why_not_trained
from gateway.routing.exploration import ATTEMPT
from tests.harness.money import until
from tests.harness.scenario import playing, session, turn


async def test_an_answer_counts_towards_a_quota_when_training_will_read_it(tmp_path: Path, sqlite_url: str) -> None:
    judge = {"model": "grader", "sample": 1.0, "budget_usd_per_day": 5}
    async with playing(
        tmp_path,
        sqlite_url,
        modes={"bad": "e500", "worse": "e500", "grader": "judge"},
        infos={name: {"quality_prior": prior} for name, prior in {"small": 0.9, "bad": 0.99, "grader": 0.1}.items()},
        policy={"judge": judge, "exploration_quota": 20},
        router={"fallbacks": [{"bad": ["small"]}], "allowed_fails": 1_000},
        audited=False,
    ) as play:
        _, key = await play.gateway.tenant("acme", models=["small", "bad", "worse"])
        _, other = await play.gateway.tenant("other", models=["small"])
        async with play.gateway.http(key) as http:
            for n in range(2):
                assert (await turn(http, "small", headers=session(f"pinned{n}"))).status_code == 200
                assert (await turn(http, "auto", headers=session(f"fallback{n}"))).status_code == 200
                assert (await turn(http, "worse", headers=session(f"failed{n}"))).status_code >= 500
        judged = {"origin": "judge", "status": "completed"}
        await until(lambda: bool(play.rows(decisions, **judged)), seconds=30)
        # Last: the write that has these has everything that was counted before.
        async with play.gateway.http(other) as http:
            for n in range(3):
                assert (await turn(http, "auto", headers=session(f"auto{n}"))).status_code == 200
        await until(lambda: sum(row["answers"] for row in play.rows(exploration_answers)) >= 3.3, seconds=30)
        rows = play.rows(decisions)
        assert {"pinned", "fallback", "failed", "judge", ""} <= {why_not_trained(row) for row in rows}
        read = Counter(row["model"] for row in rows if not why_not_trained(row))
        counted: defaultdict[str, float] = defaultdict(float)
        for row in play.rows(exploration_answers):
            counted[row["model"]] += row["answers"]
        assert read == Counter(small=3)
        assert counted == pytest.approx({"small": 3.0, "bad": 2 * ATTEMPT}), "the drawn model failed twice"
