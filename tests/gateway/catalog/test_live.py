"""Reload: a good file is in force within moments, a bad one changes nothing, and what cannot change says so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.catalog.build import load
from gateway.catalog.live import Configuration, LiveConfiguration
from tests.harness.gateway import config


def live(folder: Path, **sections: Any) -> LiveConfiguration:
    path = config(folder, "http://provider.invalid/v1", **sections)
    return LiveConfiguration(Configuration(*load(path, {})), {})


def edited(subject: LiveConfiguration, section: str, **values: Any) -> str:
    """The text of the file with `values` in one section."""
    tree = yaml.safe_load(subject.current.settings.path.read_text())
    tree[section] |= values
    return yaml.safe_dump(tree)


def test_a_good_file_is_in_force_at_once_and_the_old_configuration_stays_as_it_was(tmp_path: Path) -> None:
    subject = live(tmp_path)
    before = subject.current
    path = before.settings.path
    path.write_text(edited(subject, "session_settings", default_budget_usd=2))
    assert subject.reload()
    assert subject.current.settings.session.default_budget_nanousd == 2_000_000_000
    assert before.settings.session.default_budget_nanousd == 1_000_000_000


@pytest.mark.parametrize(
    "bad",
    ["", "{", "model_list: 5", "model_list: []", "\0", "!!python/object/apply:os.system [id]", "a: &a [*a]"],
)
def test_a_bad_file_changes_nothing_and_its_problems_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    subject = live(tmp_path)
    before = subject.current
    before.settings.path.write_text(bad)
    assert not subject.reload()
    assert subject.current is before
    assert [r for r in caplog.records if "configuration not reloaded" in r.message]


def test_a_file_that_is_gone_or_unreadable_changes_nothing(tmp_path: Path) -> None:
    subject = live(tmp_path)
    before = subject.current
    before.settings.path.unlink()
    assert not subject.reload()
    before.settings.path.write_bytes(b"\xff\xfe\x00")
    assert not subject.reload()
    assert subject.current is before


def test_what_is_fixed_at_the_start_is_kept_and_named_in_the_log_without_its_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = live(tmp_path)
    before = subject.current.settings
    other_key = "sk-Zq8PtVw3Lr7Xc2Nb6Md1Kf9Js5Hg4"
    path = before.path
    path.write_text(edited(subject, "general_settings", master_key=other_key, sweep_seconds=3, max_body_bytes=2048))
    assert subject.reload()
    after = subject.current.settings
    assert (after.general, after.timings, after.limits) == (before.general, before.timings, before.limits)
    waiting = [r.message for r in caplog.records if "restart to apply this" in r.message]
    assert len(waiting) == 3
    assert other_key not in caplog.text


def test_the_policies_folder_and_the_exploration_wait_for_a_restart_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = live(tmp_path)
    before = subject.current.settings.policy
    path = subject.current.settings.path
    path.write_text(edited(subject, "policy_settings", exploration_floor=0.4, directory="elsewhere", mode="shadow"))
    assert subject.reload()
    after = subject.current.settings.policy
    assert (after.exploration_floor, after.directory) == (before.exploration_floor, before.directory)
    assert after.mode == "shadow"
    assert "policy_settings.exploration_floor" in caplog.text
    assert "policy_settings.directory" in caplog.text


def test_a_generated_master_key_survives_a_reload(tmp_path: Path) -> None:
    path = config(tmp_path, "http://provider.invalid/v1")
    settings, models = load(path, {})
    assert settings.general.master_key is not None
    subject = LiveConfiguration(Configuration(settings, models), {})
    tree = yaml.safe_load(path.read_text())
    del tree["general_settings"]["master_key"]
    path.write_text(yaml.safe_dump(tree))
    assert subject.reload()
    assert subject.current.settings.general.master_key is settings.general.master_key


@contextlib.asynccontextmanager
async def followed(subject: LiveConfiguration) -> AsyncIterator[None]:
    following = asyncio.create_task(subject.follow())
    await asyncio.sleep(0.3)  # until the folder is watched
    try:
        yield
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def budget_becomes(subject: LiveConfiguration, usd: int) -> None:
    async with asyncio.timeout(20):
        while subject.current.settings.session.default_budget_nanousd != usd * 10**9:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_of_two_reloads_at_once_the_one_that_reads_last_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = live(tmp_path)
    path, begun = subject.current.settings.path, [threading.Event(), threading.Event()]
    go_on, number = threading.Event(), itertools.count()

    def slow_load(*arguments: Any) -> Any:
        turn = next(number)
        read = load(*arguments)
        begun[turn].set()
        assert turn or go_on.wait(20)
        return read

    monkeypatch.setattr("gateway.catalog.live.load", slow_load)
    first, second = threading.Thread(target=subject.reload), threading.Thread(target=subject.reload)
    first.start()
    assert begun[0].wait(20)
    path.write_text(edited(subject, "session_settings", default_budget_usd=2))
    second.start()
    begun[1].wait(0.2)  # it would read the change at once, and the first, which did not see it, would end after it
    second.join(0.2)
    go_on.set()
    first.join()
    second.join()
    assert subject.current.settings.session.default_budget_nanousd == 2_000_000_000


async def test_a_change_before_the_files_are_followed_is_applied(tmp_path: Path) -> None:
    subject = live(tmp_path)
    path = subject.current.settings.path
    path.write_text(edited(subject, "session_settings", default_budget_usd=7))
    async with followed(subject):
        await budget_becomes(subject, 7)


async def test_a_change_of_the_file_is_noticed_also_when_editors_replace_it_again_and_again(tmp_path: Path) -> None:
    subject = live(tmp_path)
    path = subject.current.settings.path
    async with followed(subject):
        path.write_text(edited(subject, "session_settings", default_budget_usd=2))
        await budget_becomes(subject, 2)
        for usd in (3, 4, 5):
            replacement = tmp_path / "gateway.yaml.swp"
            replacement.write_text(edited(subject, "session_settings", default_budget_usd=usd))
            os.replace(replacement, path)
            await budget_becomes(subject, usd)


async def test_a_file_that_vanishes_and_comes_back_is_followed_on(tmp_path: Path) -> None:
    subject = live(tmp_path)
    path = subject.current.settings.path
    async with followed(subject):
        text = edited(subject, "session_settings", default_budget_usd=2)
        path.unlink()
        await asyncio.sleep(0.5)
        path.write_text(text)
        await budget_becomes(subject, 2)


async def test_an_included_file_is_followed_from_the_moment_it_is_included(tmp_path: Path) -> None:
    subject = live(tmp_path)
    path = subject.current.settings.path
    part = tmp_path / "part" / "more.yaml"
    part.parent.mkdir()
    part.write_text("session_settings: {default_budget_usd: 3}\n")
    async with followed(subject):
        tree = yaml.safe_load(path.read_text())
        del tree["session_settings"]
        path.write_text(yaml.safe_dump(tree | {"include": ["part/more.yaml"]}))
        await budget_becomes(subject, 3)
        part.write_text("session_settings: {default_budget_usd: 4}\n")
        await budget_becomes(subject, 4)


async def test_other_files_of_the_folder_reload_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "seqroute.configuration")
    subject = live(tmp_path)
    async with followed(subject):
        for number in range(5):
            (tmp_path / "gateway.db-wal").write_text(str(number))
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
    assert "configuration reloaded" not in caplog.text


async def test_a_hangup_reloads(tmp_path: Path) -> None:
    subject = live(tmp_path)
    undo = subject.on_hangup()
    try:
        subject.current.settings.path.write_text(edited(subject, "session_settings", default_budget_usd=2))
        os.kill(os.getpid(), 1)
        await budget_becomes(subject, 2)
    finally:
        undo()


async def test_a_hangup_after_a_change_reads_the_file_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "seqroute.configuration")
    subject = live(tmp_path)
    undo = subject.on_hangup()
    try:
        async with followed(subject):
            subject.current.settings.path.write_text(edited(subject, "session_settings", default_budget_usd=2))
            os.kill(os.getpid(), 1)
            await budget_becomes(subject, 2)
            await asyncio.sleep(0.8)  # longer than the watch waits for further changes
    finally:
        undo()
    assert caplog.text.count("configuration reloaded") == 1
