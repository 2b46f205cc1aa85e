"""The policies table: one champion at a time, a way back, and a trail of who did it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import Connection, insert, select

from gateway.config.settings import PolicySettings
from gateway.database.database import Database
from gateway.database.tables import policies, policy_events
from gateway.errors import InvalidRequest, NotFound
from gateway.policies.registry import (
    PolicyRegistry,
    act_on,
    describe,
    get_policy,
    list_events,
    list_policies,
    roll_back,
    stage_policy,
    wanted_policies,
)
from policy.reload import PRETRAINED, CheckpointRef, StagedPolicies

T = TypeVar("T")


@asynccontextmanager
async def table(url: str, **stages: str) -> AsyncIterator[Database]:
    """A database with one policy per name; names are ids with `_` for `-`."""
    database = Database(url, serving=True)
    await database.start()

    def fill(connection: Connection) -> None:
        for at_ms, (name, stage) in enumerate(stages.items()):
            connection.execute(
                insert(policies).values(
                    policy_id=name.replace("_", "-"), kind="learned", stage=stage, manifest_sha256="ab",
                    created_at_ms=at_ms, staged_at_ms=at_ms,
                )
            )  # fmt: skip

    try:
        await database.write(fill)
        yield database
    finally:
        await database.close()


async def stages(database: Database) -> dict[str, str]:
    rows = await database.read(list_policies)
    return {row.policy_id: row.stage for row in rows}


async def write(database: Database, change: Callable[[Connection], T]) -> T:
    return await database.write(change)


async def test_a_new_champion_retires_the_old_one_and_a_new_trial_sends_the_old_back(database_url: str) -> None:
    async with table(database_url, a="champion", b="candidate", c="canary", d="candidate") as database:
        await write(database, lambda c: stage_policy(c, "b", "champion", actor="key_1", now_ms=10, action="promote"))
        await write(database, lambda c: stage_policy(c, "d", "canary", actor="key_1", now_ms=11))
        assert await stages(database) == {"a": "retired", "b": "champion", "c": "candidate", "d": "canary"}
        assert await database.read(wanted_policies) == StagedPolicies(
            champion=CheckpointRef("b", "ab"), canary=CheckpointRef("d", "ab"), shadow=None
        )
        events = await database.read(lambda c: c.execute(select(policy_events)).all())
        assert [(e.policy_id, e.action, e.actor) for e in events] == [
            ("b", "promote", "key_1"),
            ("d", "canary", "key_1"),
        ]


async def test_to_promote_the_champion_again_changes_nothing(sqlite_url: str) -> None:
    async with table(sqlite_url, a="champion") as database:
        before = await database.read(lambda c: get_policy(c, "a"))
        assert await write(database, lambda c: stage_policy(c, "a", "champion", actor="x", now_ms=10)) == before
        assert await database.read(lambda c: c.execute(select(policy_events)).all()) == []


async def test_a_roll_back_reinstates_the_champion_before_and_then_the_rule(sqlite_url: str) -> None:
    async with table(sqlite_url, a="champion", b="candidate", c="candidate") as database:
        for at_ms, name in ((10, "b"), (20, "c")):
            await write(database, lambda c, n=name, t=at_ms: stage_policy(c, n, "champion", actor="x", now_ms=t))  # type: ignore[misc]
        back = await write(database, lambda c: roll_back(c, actor="x", now_ms=30))
        assert back is not None
        assert back.policy_id == "b"
        assert (await database.read(lambda c: wanted_policies(c, "c"))).withdrawn
        assert not (await database.read(lambda c: wanted_policies(c, "b"))).withdrawn
        assert not (await database.read(lambda c: wanted_policies(c, "a"))).withdrawn, "replaced, not rejected"
        assert await stages(database) == {"a": "retired", "b": "champion", "c": "rejected"}
        await write(database, lambda c: roll_back(c, actor="x", now_ms=40))
        assert await write(database, lambda c: roll_back(c, actor="x", now_ms=50)) is None
        assert set((await stages(database)).values()) == {"rejected"}
        with pytest.raises(InvalidRequest):
            await write(database, lambda c: roll_back(c, actor="x", now_ms=60))


@pytest.mark.parametrize("policy_id", ["nope", "' OR 1=1 --", "../../etc"])
async def test_an_unknown_policy_is_not_found(sqlite_url: str, policy_id: str) -> None:
    async with table(sqlite_url, a="champion") as database:
        with pytest.raises(NotFound):
            await write(database, lambda c: stage_policy(c, policy_id, "champion", actor="x", now_ms=1))
        assert await stages(database) == {"a": "champion"}


async def test_a_policy_is_shown_with_its_report(sqlite_url: str) -> None:
    async with table(sqlite_url, a="champion") as database:
        record = await database.read(lambda c: get_policy(c, "a"))
        assert describe(record) == {
            "policy_id": "a", "kind": "learned", "stage": "champion", "pinned": False, "path": None,
            "manifest_sha256": "ab", "report": {}, "created_at_ms": 0, "staged_at_ms": 0,
        }  # fmt: skip


async def test_a_champion_without_a_checkpoint_leaves_the_shipped_network_serving_and_is_named_once(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with table(sqlite_url, ghost="champion") as database:
        board = PolicyRegistry(PolicySettings(directory=tmp_path), database)
        await board.refresh()
        await board.refresh()
        assert board.lineup().champion.policy.policy_id == PRETRAINED
        [problem] = board.problems
        assert problem.startswith("champion ghost:")
        assert len([r for r in caplog.records if "policy not served" in r.message]) == 1


async def test_a_built_in_rule_may_be_champion_without_having_been_published(sqlite_url: str, tmp_path: Path) -> None:
    async with table(sqlite_url) as database:
        await write(database, lambda c: stage_policy(c, "rule:cheapest", "champion", actor="x", now_ms=1))
        board = PolicyRegistry(PolicySettings(directory=tmp_path), database)
        await board.refresh()
        assert board.lineup().champion.policy.policy_id == "rule:cheapest"


async def test_a_pin_holds_until_it_is_ended_or_somebody_promotes_another(database_url: str) -> None:
    async with table(database_url, a="champion", b="candidate") as database:

        async def act(name: str, action: str, at_ms: int) -> bool:
            done = await write(database, lambda c: act_on(c, name, action, actor="cli", now_ms=at_ms))
            return done is not None and done.pinned

        assert await act("b", "pin", 10)
        assert await act("b", "pin", 11)
        assert not await act("b", "unpin", 12)
        assert await act("b", "pin", 13)
        assert not await act("a", "promote", 14)
        assert not (await database.read(lambda c: get_policy(c, "b"))).pinned
        assert await stages(database) == {"a": "champion", "b": "retired"}
        events = await database.read(lambda c: list_events(c, "b"))
        assert [event["action"] for event in events] == ["pin", "unpin", "pin", "promote"]


async def test_a_canary_is_taken_off_without_touching_the_champion(sqlite_url: str) -> None:
    async with table(sqlite_url, a="champion", b="canary") as database:
        champion = await write(database, lambda c: act_on(c, "b", "rollback", actor="cli", now_ms=10))
        assert champion is not None
        assert champion.policy_id == "a"
        assert await stages(database) == {"a": "champion", "b": "rejected"}


async def test_the_champion_before_is_found_behind_any_number_of_refused_candidates(sqlite_url: str) -> None:
    many = {f"night_{number}": "rejected" for number in range(250)}
    async with table(sqlite_url, a="retired", **many) as database:
        await write(database, lambda c: stage_policy(c, "rule:cheapest", "champion", actor="x", now_ms=1_000))
        back = await write(database, lambda c: roll_back(c, actor="x", now_ms=1_001))
        assert back is not None
        assert back.policy_id == "a"


async def test_a_policy_whose_checkpoint_was_not_kept_cannot_be_promoted(sqlite_url: str) -> None:
    async with table(sqlite_url, a="rejected") as database:
        with pytest.raises(InvalidRequest, match="not kept"):
            await write(database, lambda c: stage_policy(c, "a", "champion", actor="x", now_ms=1))
