"""The start of a gateway, where no other test looks."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.app import app_parts, build, running
from gateway.catalog.models import load
from gateway.providers.providers import Upstream
from migrations.upgrade import upgrade


class NoUpstream(Upstream):
    async def start(self) -> None:
        pass


async def test_what_is_to_be_done_after_the_start_is_done_once_and_before_the_first_turn(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "model_list: [{model_name: a, litellm_params: {model: openai/gpt-4o-mini}}]\n"
        "general_settings: {master_key: sk-Zt7qWc41LmVx9uRkPb2nHs8d, database_url: 'sqlite:///g.db'}\n"
    )
    settings, models = load(path, {})
    upgrade(settings.general.database_url.reveal())
    parts = app_parts(build(settings, models, upstream=NoUpstream()))
    seen: list[bool] = []
    parts.on_started = lambda: seen.append(parts.lifecycle.started)
    async with running(parts), asyncio.timeout(30):
        while not parts.lifecycle.started:  # noqa: ASYNC110 - the start has no event
            await asyncio.sleep(0.01)
    assert seen == [False]
