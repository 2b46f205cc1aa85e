"""kill -9 and SIGSTOP of real gateway processes: no acknowledged turn is lost, no hold stays, no money is free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.cluster import Ground, ground
from tests.harness.crashes import crash_rounds
from tests.harness.processes import TTL_AND_TWO_SWEEPS_S, ForkServer

pytestmark = pytest.mark.faults

MODELS = {
    "words": "ok:tokens=30,delay=0.01",
    "slow": "ok:tokens=400,delay=0.02",
    "held": "ok:tokens=40,delay=0.15",
    "stuck": "stall:after=0",
}


@pytest.fixture
async def scene(tmp_path: Path, nursery: ForkServer, database_url: str) -> AsyncIterator[Ground]:
    async with ground(tmp_path, nursery, database_url, modes=MODELS) as made:
        yield made


async def test_a_stream_that_dies_with_its_gateway_is_posted_from_its_checkpoint_and_never_as_nothing(
    scene: Ground,
) -> None:
    replica = await scene.fleet.start()
    client = await scene.client()
    streaming = asyncio.create_task(client.turn("slow", stream=True))
    await scene.until(lambda: sum(a.output_tokens for a in scene.provider.bill) > 120)
    replica.kill()
    assert (await streaming).fate == "unknown"
    await scene.fleet.start(port=replica.port)
    await asyncio.sleep(TTL_AND_TWO_SWEEPS_S)
    assert scene.open_holds() == 0
    verdict = await scene.judge()
    assert verdict.orphaned == 1
    [entry] = [e for e in scene.entries() if e["kind"] == "orphan_post"]
    [attempt] = scene.provider.bill
    # The checkpoint is at most about a second (50 tokens) old, counts a token per four bytes (these words have 4.1 on
    # average, so up to a fifth too many) and has a second at 80 tokens as its margin, the prior of a model's speed.
    assert (attempt.output_tokens - 80) * 2_000 <= entry["amount_nanousd"]
    assert entry["amount_nanousd"] <= attempt.output_tokens * 2_400 + 80 * 2_000 + 100_000


async def test_a_call_that_dies_before_its_answer_is_posted_at_a_likely_bill(scene: Ground) -> None:
    replica = await scene.fleet.start()
    client = await scene.client()
    asked = asyncio.create_task(client.turn("held", stream=False))
    await scene.until(lambda: bool(scene.provider.bill))
    replica.kill()
    assert (await asked).fate == "unknown"
    await scene.fleet.start(port=replica.port)
    await asyncio.sleep(TTL_AND_TWO_SWEEPS_S)
    verdict = await scene.judge()
    assert verdict.orphaned == 1


async def test_kills_at_random_moments_lose_nothing_that_was_acknowledged(scene: Ground) -> None:
    figures = await crash_rounds(scene, seed=1, kills=4, clients=8)
    assert figures.kills == 4
    assert figures.verdict.acknowledged > 0


async def test_a_gateway_that_was_frozen_past_its_leases_posts_the_late_bill_once(
    tmp_path: Path, nursery: ForkServer, postgres_url: str
) -> None:
    async with ground(tmp_path, nursery, postgres_url, modes=MODELS) as scene:
        frozen, other = await scene.fleet.start(), await scene.fleet.start()
        client = await scene.client([frozen.url])
        streaming = [asyncio.create_task(client.turn("held", stream=True, session=f"s{n}")) for n in range(4)]
        asked = [asyncio.create_task(client.turn("held", session=f"u{n}")) for n in range(4)]
        await scene.until(lambda: len(scene.provider.bill) == 8 and scene.provider.bill[-1].output_tokens > 5)
        frozen.freeze()
        await asyncio.sleep(TTL_AND_TWO_SWEEPS_S + 4.0)
        assert scene.open_holds() == 0  # the other replica swept
        assert {e["kind"] for e in scene.entries()} == {"reserve", "orphan_post"}
        frozen.thaw()
        turns = await asyncio.gather(*streaming, *asked)
        assert [turn.fate for turn in turns] == ["ok"] * 8
        await asyncio.sleep(0.5)
        entries = scene.entries()
        for hold_id in {e["hold_id"] for e in entries}:
            kinds = [e["kind"] for e in entries if e["hold_id"] == hold_id]
            assert kinds.count("orphan_post") == 1
            assert kinds.count("late_post") <= 1
        # Together with its late post every orphan comes to what the provider billed.
        await scene.judge()
        posted = sum(e["spent_delta_nanousd"] for e in entries)
        billed = sum(a.prompt_tokens * 1_000 + a.output_tokens * 2_000 for a in scene.provider.bill)
        assert posted >= billed
        assert other.alive


async def test_a_killed_gateway_keeps_its_word_on_idempotency_keys(scene: Ground) -> None:
    """The key of a turn that died is free again once its hold is resolved; the key of one that ended replays."""
    replica = await scene.fleet.start()
    client = await scene.client()
    done = await client.turn("words", idempotency_key="done", tag="done")
    dying = asyncio.create_task(client.turn("slow", stream=True, idempotency_key="dying", tag="dying"))
    await scene.until(lambda: len(scene.provider.bill) == 2)
    replica.kill()
    await dying
    await scene.fleet.start(port=replica.port)
    again = await client.turn("words", idempotency_key="done", tag="done")
    assert (again.fate, again.text, again.cost_nanousd) == ("ok", done.text, done.cost_nanousd)
    await asyncio.sleep(TTL_AND_TWO_SWEEPS_S)
    retried = await client.turn("slow", stream=True, idempotency_key="dying", tag="dying", leave_after_s=4.0)
    assert retried.status == 200
    assert len(scene.provider.bill) == 3
    await scene.judge()
