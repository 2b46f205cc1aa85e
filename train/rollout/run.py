"""One rollout: from tasks to a folder of graded counterfactual sessions, within a cap.

tasks   = read the file                               errors are reported before anything is spent
gateway = the one at `url`, or a process of its own   the only access to money
account = a tenant with exactly the cap, and a key    the ledger refuses anything beyond
trees   = play                                        journalled call by call, resumed after a kill
folder  = prompts, outcomes, models, tree
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateway.catalog.models import Catalog
from gateway.money import MoneyError, nanousd_from_usd, usd_string
from train.errors import InputError
from train.progress import StepProgress
from train.rollout.budget import open_account, spent_nanousd
from train.rollout.client import RolloutClient, Sleep
from train.rollout.graders import Limits
from train.rollout.journal import Journal
from train.rollout.output import write_folder
from train.rollout.play import Walk, play
from train.rollout.report import summary
from train.rollout.server import own_gateway
from train.rollout.tasks import Task, kinds_of
from train.rollout.tree import RolloutPlan

CALL_TIMEOUT_S = 900.0


class RolloutError(InputError):
    """Options that do not fit together: what was found, what was expected."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """Settings of a rollout. `url` None: start a gateway with `config`.

    `now_s` is Unix time in seconds, `new_id` returns a unique name.
    """

    folder: Path
    source: str
    config: Path
    url: str | None
    master_key: str
    max_usd: str
    parallel: int
    limits: Limits
    now_s: Callable[[], float]
    new_id: Callable[[], str]
    sleep: Sleep = asyncio.sleep
    progress: StepProgress | None = None


def plan_for(
    tasks: tuple[Task, ...],
    catalog: Catalog,
    *,
    models: tuple[str, ...],
    depth: int,
    branches: str,
    seed: int,
    max_tokens: int,
    judge: str | None,
    user: str | None,
) -> RolloutPlan:
    """Validate the options against catalogue and tasks. Raises RolloutError.

    Without `models`: every chat model except judge and user, who would grade and answer themselves.
    """
    known = [model.name for model in catalog.chat_models]
    for name in (*models, *(x for x in (judge, user) if x is not None)):
        if name not in known:
            raise RolloutError(f'"{name}": expected a chat model of the configuration, one of {", ".join(known)}')
    chosen = models or tuple(name for name in known if name not in (judge, user))
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise RolloutError(f"expected at least two different models to compare, got {', '.join(chosen) or 'none'}")
    if "judge" in kinds_of(tasks) and judge is None:
        raise RolloutError("--judge: expected a model, for tasks whose check is a judge")
    wanted = len(chosen) if branches == "all" else int(branches) if branches.isdecimal() else 0
    if not 1 <= wanted <= len(chosen):
        raise RolloutError(f"--branches: expected all or a number from 1 to {len(chosen)}, got {branches}")
    return RolloutPlan(chosen, depth, wanted, seed, max_tokens, judge, user)


def cap(text: str) -> str:
    """The cap in the ledger's notation. Raises RolloutError."""
    try:
        nanousd = nanousd_from_usd(text)
    except MoneyError as error:
        raise RolloutError(f"--max-usd: {error}") from error
    if nanousd <= 0:
        raise RolloutError(f"--max-usd: expected more than 0, got {text}")
    return usd_string(nanousd)


async def run(rollout: Rollout, plan: RolloutPlan, tasks: tuple[Task, ...], catalog: Catalog) -> dict[str, Any]:
    """Play, write the folder and return the report. Raises JournalError and GatewayRefused."""
    with Journal(rollout.folder, plan.identity(tasks)) as journal:
        account = _account(journal, rollout.new_id)
        async with (
            _gateway(rollout) as url,
            _client(url, rollout.master_key) as admin,
            open_account(admin, account, rollout.max_usd, rollout.now_s()) as opened,
            _client(url, opened.key) as http,
        ):
            caller = RolloutClient(
                http,
                journal,
                max_usd=rollout.max_usd,
                max_tokens=plan.max_tokens,
                parallel=rollout.parallel,
                sleep=rollout.sleep,
            )
            walk = Walk(plan, caller, journal, rollout.limits, rollout.parallel, rollout.progress)
            trees = await play(plan.shuffled(tasks), walk)
            spent = await spent_nanousd(admin, opened)
    written = write_folder(rollout.folder, rollout.source, trees, plan, catalog.models)
    return summary(rollout.folder, account, rollout.max_usd, spent, caller.out_of_money, plan, trees, written)


def _account(journal: Journal, new_id: Callable[[], str]) -> str:
    """The tenant's name, recorded before the tenant is created."""
    found = journal.find("rollout", "account")
    if found is None:
        found = {"tenant": f"rollout-{new_id()}"}
        journal.write("rollout", "account", found)
    return str(found["tenant"])


@contextlib.asynccontextmanager
async def _gateway(rollout: Rollout) -> AsyncIterator[str]:
    if rollout.url is not None:
        yield rollout.url.rstrip("/").removesuffix("/v1")
        return
    async with own_gateway(rollout.config, rollout.folder / "gateway.log") as url:
        yield url


def _client(url: str, key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=200)
    return httpx.AsyncClient(
        base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=CALL_TIMEOUT_S, limits=limits
    )
