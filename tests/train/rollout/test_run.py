"""Rollouts through a real gateway: the cap, the books, and what a stop in the middle costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from gateway.catalog.build import load
from tests.harness.gateway import PRICES, config
from tests.harness.scenario import Play, playing
from tests.harness.upstream_answers import Attempt
from tests.train.rollout.scenes import at_once, task
from train.rollout.budget import message_of
from train.rollout.graders import Limits
from train.rollout.run import Rollout, RolloutError, cap, plan_for, run
from train.rollout.tree import RolloutPlan

MODES = {"third": "ok:tokens=8"}
MODELS = ("small", "big", "third")
TASKS = tuple(task(f"t{i}", "one", "two", "three", check={"exact": "yes"}) for i in range(3))
WHOLE = 3 * 3 * (1 + 2 + 4)


def rollout(play: Play, folder: Path, max_usd: str, **more: Any) -> Rollout:
    made = Rollout(
        folder=folder,
        source="mine",
        config=play.path,
        url=play.gateway.url + "/v1",
        master_key=play.gateway.master_key,
        max_usd=cap(max_usd),
        parallel=16,
        limits=Limits(),
        now_s=lambda: 2e9,
        new_id=lambda: "one",
        sleep=at_once,
    )
    return replace(made, **more)


def plan_of(branches: int = 2) -> RolloutPlan:
    return RolloutPlan(MODELS, 3, branches, seed=1, max_tokens=40)


async def played(play: Play, job: Rollout, a_plan: RolloutPlan | None = None) -> dict[str, Any]:
    return await run(job, a_plan or plan_of(), TASKS, load(play.path, {})[1])


def billed_nanousd(bill: Sequence[Attempt]) -> int:
    """What the provider asks to be paid, by its own books."""
    rate = {name: [round(float(p) * 1e9) for p in PRICES[name]] for name in ("big", "small")}
    priced = [(attempt, rate["big" if attempt.model == "big" else "small"]) for attempt in bill]
    return sum(a.prompt_tokens * prompt + a.output_tokens * output for a, (prompt, output) in priced)


async def test_every_answer_is_called_once_and_the_ledger_and_the_provider_agree(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url, modes=MODES) as play:
        report = await played(play, rollout(play, tmp_path / "out", "1"))
        assert (report["outcome"], report["answers"], report["failures"]) == ("played", WHOLE, 0)
        assert len(play.provider.bill) == WHOLE
        assert report["spent_nano_usd"] == billed_nanousd(play.provider.bill)
        again = await played(play, rollout(play, tmp_path / "out", "1"))
        assert len(play.provider.bill) == WHOLE
        assert again == report
    outcomes = pq.read_table(tmp_path / "out" / "outcomes.parquet").to_pylist()
    assert len(outcomes) == 3 * 3 * 3
    assert len(pq.read_table(tmp_path / "out" / "tree.parquet")) == WHOLE


async def test_the_cap_holds_under_concurrency_and_a_larger_one_goes_on(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, modes=MODES) as play:
        for max_usd in ("0.002", "0.004", "0.006"):
            report = await played(play, rollout(play, tmp_path / "out", max_usd))
            assert report["outcome"] == "out of money"
            assert report["spent_nano_usd"] == billed_nanousd(play.provider.bill) <= int(float(max_usd) * 1e9)
            assert report["spent_nano_usd"] > float(max_usd) * 1e9 / 4
        report = await played(play, rollout(play, tmp_path / "out", "5"))
        assert (report["outcome"], report["answers"]) == ("played", WHOLE)
        journal = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
        cut = sum(1 for record in journal if record["kind"] == "attempts")
        assert len(play.provider.bill) == WHOLE + cut
        async with play.gateway.http() as http:
            keys = (await http.get("/admin/keys")).json()["data"]
            assert all(key["revoked_at_ms"] for key in keys)


class Stopped(Exception):
    """The process dies here."""


def dies_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise Stopped

    return progress


async def test_stopped_anywhere_it_goes_on_without_paying_twice(tmp_path: Path, sqlite_url: str) -> None:
    """Calls under way when it stopped are finished by the gateway, and their answers given when asked again."""
    async with playing(tmp_path, sqlite_url, modes=MODES | {"small": "ok:delay=0.005"}) as play:
        for count in (1, 7, 20):
            with pytest.raises(ExceptionGroup):
                await played(play, rollout(play, tmp_path / "out", "1", progress=dies_after(count)))
            await play.gateway.settled()
        report = await played(play, rollout(play, tmp_path / "out", "1"))
        assert (report["outcome"], report["answers"]) == ("played", WHOLE)
        assert len(play.provider.bill) == WHOLE
        assert not any(attempt.cut for attempt in play.provider.bill)
        assert report["spent_nano_usd"] == billed_nanousd(play.provider.bill)


async def test_a_named_call_is_finished_for_a_client_that_left(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, modes={"slow": "ok:tokens=20,delay=0.02"}) as play:
        body = {"model": "slow", "messages": [{"role": "user", "content": "hi"}]}
        async with play.gateway.http() as http:
            leaving = asyncio.create_task(
                http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "k"})
            )
            while not play.provider.bill:  # noqa: ASYNC110 - the provider tells no one
                await asyncio.sleep(0.01)
            leaving.cancel()
        await play.gateway.settled()
        async with play.gateway.http() as http:
            answer = await http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "k"})
        assert (answer.status_code, answer.headers["x-seqroute-replayed"]) == (200, "true")
        assert [(attempt.cut, attempt.finished) for attempt in play.provider.bill] == [(False, True)]


async def test_a_model_that_fails_leaves_a_hole_that_the_next_run_fills(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, modes={"third": "e400"}) as play:
        report = await played(play, rollout(play, tmp_path / "out", "1"), plan_of(3))
        assert report["outcome"] == "played"
        assert report["failures"] == 3 * (1 + 2 + 4)
        assert report["turns_in_folder"] == 0
        play.provider.modes["e400"] = "ok"
        report = await played(play, rollout(play, tmp_path / "out", "1"), plan_of(3))
        assert (report["failures"], report["answers"]) == (0, 3 * 3 * (1 + 3 + 9))


def test_options_are_checked_before_anything_is_spent(tmp_path: Path) -> None:
    catalog = load(config(tmp_path, "http://127.0.0.1:9/v1", modes=MODES), {})[1]
    options: dict[str, Any] = {"models": (), "depth": 2, "branches": "all", "seed": 0, "max_tokens": 9}
    options |= {"judge": None, "user": None}
    assert plan_for(TASKS, catalog, **options) == RolloutPlan(MODELS, 2, 3, 0, 9)
    assert plan_for(TASKS, catalog, **options | {"judge": "big"}).models == ("small", "third")
    judged = (task("j", "one", check={"judge": "nice?"}),)
    for tasks, wrong, message in (
        (TASKS, {"models": ("small", "none")}, '"none": expected a chat model of the configuration, one of small, big'),
        (TASKS, {"models": ("small",)}, "at least two different models"),
        (TASKS, {"branches": "4"}, "--branches: expected all or a number from 1 to 3, got 4"),
        (TASKS, {"branches": "some"}, "--branches: expected all"),
        (judged, {}, "--judge: expected a model"),
    ):
        with pytest.raises(RolloutError, match=message):
            plan_for(tasks, catalog, **options | wrong)
    assert cap("0.5") == "0.5"
    for text in ("0", "-1", "five"):
        with pytest.raises(RolloutError, match="--max-usd"):
            cap(text)


def test_a_gateway_that_says_no_is_quoted() -> None:
    assert message_of(httpx.Response(401, json={"error": {"message": "no such key"}})) == "401 no such key"
    assert message_of(httpx.Response(500, text="oops")) == "status 500"
