"""Options and readers that the commands for tenants and keys share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.console import (
    CommandError,
    amount_nanousd,
    environment,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.accounts.tenants import Tenant

ACTOR = "cli"
DEFAULT_TENANT = "default"
MAX_NAMES = 100_000

TenantOption = Annotated[str, typer.Option("--tenant", help="Name or id of the tenant.")]
ModelsOption = Annotated[
    str | None,
    typer.Option("--models", help='Allowed models, aliases or access groups, comma-separated; "all" for all.'),
]
WindowOption = Annotated[
    str | None, typer.Option("--window", help='The budget resets after each window: "30d", "1mo", "24h".')
]
RpmOption = Annotated[int | None, typer.Option("--rpm", help="Maximum requests per minute.")]
TpmOption = Annotated[int | None, typer.Option("--tpm", help="Maximum tokens per minute.")]
ParallelOption = Annotated[int | None, typer.Option("--parallel", help="Maximum concurrent turns.")]
SoftOption = Annotated[
    str | None,
    typer.Option(
        "--soft-budget-usd", help="Soft budget: report (webhook, header) when this much is spent, refuse nothing."
    ),
]
NewLimitOption = '"none": the default of the configuration.'
NewRpmOption = Annotated[str | None, typer.Option("--rpm", help=f"Maximum requests per minute; {NewLimitOption}")]
NewTpmOption = Annotated[str | None, typer.Option("--tpm", help=f"Maximum tokens per minute; {NewLimitOption}")]
NewParallelOption = Annotated[
    str | None, typer.Option("--parallel", help=f"Maximum concurrent turns; {NewLimitOption}")
]
NewSoftOption = Annotated[
    str | None, typer.Option("--soft-budget-usd", help='Soft budget: report when this much is spent; "none": do not.')
]


def find_tenant(connection: Connection, name_or_id: str) -> Tenant:
    """The tenant of this name, else of this id. Raises NotFound."""
    from gateway.accounts import tenants
    from gateway.errors import NotFound

    found = tenants.find_tenant_by_name(connection, name_or_id) or tenants.find_tenant(connection, name_or_id)
    if found is None:
        raise NotFound(
            f'tenant: expected the name or id of a tenant, got "{name_or_id[:80]}"; `seqroute tenants list` lists them'
        )
    return found


def tenant_names(connection: Connection) -> dict[str, str]:
    """Id -> name of all tenants."""
    from gateway.accounts import tenants

    return {found.tenant_id: found.name for found in tenants.list_tenants(connection, limit=MAX_NAMES)}


def changed_limits(
    rpm: str | None, tpm: str | None, parallel: str | None, soft_budget_usd: str | None
) -> dict[str, Any]:
    """The limits that are given, by their columns; "none" ends one."""
    changes: dict[str, Any] = {}
    for name, text in (("rpm", rpm), ("tpm", tpm), ("parallel", parallel)):
        if text is not None and text != "none" and not (text.isascii() and text.isdigit() and len(text) <= 13):
            raise CommandError(f'--{name}: expected a whole number or "none", got "{text[:40]}"')
        if text is not None:
            changes[name] = None if text == "none" else int(text)
    if soft_budget_usd is not None:
        soft = None if soft_budget_usd == "none" else amount_nanousd("--soft-budget-usd", soft_budget_usd)
        changes["soft_budget_nanousd"] = soft
    return changes


def allowed_models(text: str | None, config: Path) -> list[str] | None:
    """Names of an allow-list, each a model or an alias of the configuration."""
    from gateway.accounts.budgets import refuse_unknown_models
    from gateway.catalog.build import draft
    from gateway.config.reader import AssumedEnvironment
    from gateway.errors import InvalidRequest

    if text is None or text == "all":
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        refuse_unknown_models(names, draft(config, AssumedEnvironment(environment())).catalog.names)
    except InvalidRequest as error:
        raise CommandError(f"--{error.message}") from error
    return names


def new_id(prefix: str) -> str:
    """A new id that sorts by time."""
    from gateway.clock import time_ordered_ids

    return time_ordered_ids(time.time)(prefix)
