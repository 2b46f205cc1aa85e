"""Commands for tenants and their budgets."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.account_options import (
    ACTOR,
    ModelsOption,
    NewParallelOption,
    NewRpmOption,
    NewSoftOption,
    NewTpmOption,
    ParallelOption,
    RpmOption,
    SoftOption,
    TpmOption,
    WindowOption,
    allowed_models,
    changed_limits,
    find_tenant,
    new_id,
)
from gateway.cli.console import (
    DEFAULT_CONFIG,
    CommandError,
    ConfigOption,
    JsonOption,
    amount_nanousd,
    now_ms,
    opened,
    show,
    show_one,
)
from gateway.cli.groups import WholeSummaries

tenants_app = typer.Typer(
    help="Tenants and their budgets: create, list, show, change, grant.",
    cls=WholeSummaries,
    rich_markup_mode=None,
    no_args_is_help=True,
)

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Name or id of the tenant.")]

_SWITCHES = {"on": True, "off": False, "none": None}

# The most important column first: a narrow terminal shows only those.
_TENANT_COLUMNS = ("name", "remaining_usd", "budget_usd", "spent_usd", "id", "budget_duration", "reserved_usd",
                   "models", "outage")  # fmt: skip


@tenants_app.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="A unique name: letters, digits and . _ : @ + -")],
    budget_usd: Annotated[str, typer.Option(help="Its budget; with --window, per window.")],
    window: WindowOption = None,
    max_session_usd: Annotated[str | None, typer.Option(help="Maximum budget of a session.")] = None,
    models: ModelsOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    parallel: ParallelOption = None,
    soft_budget_usd: SoftOption = None,
    outage: Annotated[str, typer.Option(help='During a database outage: "closed" or "open".')] = "closed",
    store_text: Annotated[bool, typer.Option("--store-text", help="Keep prompts and answers in the log.")] = False,
    wrap_up: Annotated[
        bool | None,
        typer.Option("--wrap-up/--no-wrap-up", help="Whether its sessions end with a last answer (wrap-up)."),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Create a tenant with a budget."""
    from gateway.accounts import tenants
    from gateway.accounts.fields import describe_tenant

    budget_nanousd = amount_nanousd("--budget-usd", budget_usd)
    assert budget_nanousd is not None
    with opened(config) as connection:
        tenant = tenants.create_tenant(
            connection,
            new_id("ten"),
            name,
            budget_nanousd=budget_nanousd,
            window=window,
            max_session_nanousd=amount_nanousd("--max-session-usd", max_session_usd),
            models=allowed_models(models, config),
            outage=outage,
            store_text=store_text,
            wrap_up=wrap_up,
            rpm=rpm,
            tpm=tpm,
            parallel=parallel,
            soft_budget_nanousd=amount_nanousd("--soft-budget-usd", soft_budget_usd),
            actor=ACTOR,
            now_ms=now_ms(),
        )
    show_one(describe_tenant(tenant), as_json=as_json)


@tenants_app.command("list")
def list_tenants(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List all tenants with their budgets."""
    from gateway.accounts import tenants
    from gateway.accounts.fields import describe_tenant

    with opened(config, read_only=True) as connection:
        rows = [describe_tenant(tenant) for tenant in tenants.list_tenants(connection)]
    show(rows, _TENANT_COLUMNS, as_json=as_json, empty="no tenants yet: seqroute tenants create NAME --budget-usd 100")


@tenants_app.command("show")
def show_tenant(tenant: TenantArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show one tenant."""
    from gateway.accounts.fields import describe_tenant

    with opened(config, read_only=True) as connection:
        found = find_tenant(connection, tenant)
    show_one(describe_tenant(found), as_json=as_json)


@tenants_app.command("change")
def change_tenant(
    tenant: TenantArgument,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    budget_usd: Annotated[str | None, typer.Option(help="The new budget, including what is already spent.")] = None,
    window: Annotated[str | None, typer.Option(help='"30d", "1mo", "24h"; "none": the budget never resets.')] = None,
    max_session_usd: Annotated[str | None, typer.Option(help='Maximum budget of a session; "none": no limit.')] = None,
    models: ModelsOption = None,
    rpm: NewRpmOption = None,
    tpm: NewTpmOption = None,
    parallel: NewParallelOption = None,
    soft_budget_usd: NewSoftOption = None,
    outage: Annotated[str | None, typer.Option(help='"closed" or "open".')] = None,
    store_text: Annotated[
        bool | None, typer.Option("--store-text/--forget-text", help="Keep texts in the log.")
    ] = None,
    wrap_up: Annotated[
        str | None, typer.Option("--wrap-up", help='"on" or "off"; "none": as the configuration says.')
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Change the given options of a tenant."""
    from gateway.accounts import tenants
    from gateway.accounts.fields import describe_tenant

    changes: dict[str, Any] = {}
    if name is not None:
        changes["name"] = name
    if budget_usd is not None:
        changes["budget_nanousd"] = amount_nanousd("--budget-usd", budget_usd)
    if window is not None:
        changes["window"] = None if window == "none" else window
    if max_session_usd is not None:
        changes["max_session_nanousd"] = (
            None if max_session_usd == "none" else amount_nanousd("--max-session-usd", max_session_usd)
        )
    if models is not None:
        changes["models"] = allowed_models(models, config)
    if outage is not None:
        changes["outage"] = outage
    if store_text is not None:
        changes["store_text"] = store_text
    if wrap_up is not None:
        if wrap_up not in _SWITCHES:
            raise CommandError(f'--wrap-up: expected one of {", ".join(_SWITCHES)}, got "{wrap_up}"')
        changes["wrap_up"] = _SWITCHES[wrap_up]
    changes |= changed_limits(rpm, tpm, parallel, soft_budget_usd)
    if not changes:
        raise CommandError("tenants change: expected at least one of --name, --budget-usd, --window, ...")
    with opened(config) as connection:
        found = find_tenant(connection, tenant)
        after = tenants.patch_tenant(connection, found.tenant_id, changes, actor=ACTOR, now_ms=now_ms())
    show_one(describe_tenant(after), as_json=as_json)


@tenants_app.command("grant", context_settings={"ignore_unknown_options": True})
def grant_tenant(
    tenant: TenantArgument,
    usd: Annotated[str, typer.Argument(help="Amount to add; with --take-back, to remove.")],
    take_back: Annotated[bool, typer.Option("--take-back", help="Remove unspent money instead.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Add money to a budget, or remove it."""
    from gateway.accounts import tenants
    from gateway.accounts.fields import describe_tenant

    if usd.startswith("-"):
        raise CommandError(
            f"USD: expected an amount of at least 0, got {usd[:40]}; to remove money: "
            f"seqroute tenants grant {tenant} {usd.lstrip('-')[:40]} --take-back"
        )
    amount = amount_nanousd("USD", usd)
    assert amount is not None
    with opened(config) as connection:
        found = find_tenant(connection, tenant)
        after = tenants.grant_to_tenant(
            connection, found.tenant_id, -amount if take_back else amount, actor=ACTOR, now_ms=now_ms()
        )
    show_one(describe_tenant(after), as_json=as_json)
