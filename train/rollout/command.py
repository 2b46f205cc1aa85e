"""Setup of a rollout from the command's options: configuration, tasks, plan, clock, names."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from pathlib import Path
from typing import Any

from gateway.catalog.build import load
from gateway.config.master_key import with_stored_master_key
from gateway.config.reader import SettingsError
from train.errors import InputError
from train.progress import StepProgress
from train.rollout.graders import Limits
from train.rollout.run import Rollout, cap, plan_for, run
from train.rollout.tasks import read_tasks


def play(
    tasks: Path,
    config: Path,
    out: Path,
    *,
    max_usd: str,
    gateway: str | None,
    source: str,
    parallel: int,
    check_seconds: int,
    check_megabytes: int,
    progress: StepProgress,
    **plan_options: Any,
) -> dict[str, Any]:
    """Check everything, then play. `plan_options` are those of `plan_for`. Raises InputError."""
    try:
        settings, catalog = load(config, os.environ)
        key = with_stored_master_key(settings).settings.general.master_key
    except SettingsError as error:
        raise InputError("\n".join(error.problems)) from error
    assert key is not None
    found = read_tasks(tasks)
    plan = plan_for(found, catalog, **plan_options)
    job = Rollout(
        folder=out,
        source=source,
        config=config,
        url=gateway,
        master_key=key.reveal(),
        max_usd=cap(max_usd),
        parallel=parallel,
        limits=Limits(cpu_s=check_seconds, memory_bytes=check_megabytes * 2**20),
        now_s=time.time,
        new_id=lambda: uuid.uuid4().hex[:16],
        progress=progress,
    )
    return asyncio.run(run(job, plan, found, catalog))
