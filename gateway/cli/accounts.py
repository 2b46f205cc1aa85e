"""Commands for tenants and keys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.console import (
    DEFAULT_CONFIG,
    CommandError,
    ConfigOption,
    JsonOption,
    amount_nanousd,
    environment,
    now_ms,
    opened,
    say,
    show,
    show_one,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.accounts.keys import Key
    from gateway.accounts.tenants import Tenant

ACTOR = "cli"
DEFAULT_TENANT = "default"
MAX_NAMES = 100_000

tenants_app = typer.Typer(
    help="Tenants and their budgets: create, list, show, change, grant.", rich_markup_mode=None, no_args_is_help=True
)
keys_app = typer.Typer(
    help="API keys of a tenant: create, list, change, set-budget, rotate, revoke.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Name or id of the tenant.")]
TenantOption = Annotated[str, typer.Option("--tenant", help="Name or id of the tenant.")]
ModelsOption = Annotated[str | None, typer.Option("--models", help='Allowed models, comma-separated; "all" for all.')]
WindowOption = Annotated[
    str | None, typer.Option("--window", help='The budget resets after each window: "30d", "1mo", "24h".')
]

RpmOption = Annotated[int | None, typer.Option("--rpm", help="Most requests in a minute.")]
TpmOption = Annotated[int | None, typer.Option("--tpm", help="Most tokens in a minute.")]
ParallelOption = Annotated[int | None, typer.Option("--parallel", help="Most turns at once.")]
SoftOption = Annotated[
    str | None, typer.Option("--soft-budget-usd", help="Tell (webhook, header) when so much is spent; refuse nothing.")
]
NewLimitOption = '"none": the default of the configuration.'
NewRpmOption = Annotated[str | None, typer.Option("--rpm", help=f"Most requests in a minute; {NewLimitOption}")]
NewTpmOption = Annotated[str | None, typer.Option("--tpm", help=f"Most tokens in a minute; {NewLimitOption}")]
NewParallelOption = Annotated[str | None, typer.Option("--parallel", help=f"Most turns at once; {NewLimitOption}")]
NewSoftOption = Annotated[
    str | None, typer.Option("--soft-budget-usd", help='Tell when so much is spent; "none": do not.')
]

_SWITCHES = {"on": True, "off": False, "none": None}

# The most important column first: a narrow terminal shows only those.
_TENANT_COLUMNS = ("name", "remaining_usd", "budget_usd", "spent_usd", "id", "budget_duration", "reserved_usd",
                   "models", "outage")  # fmt: skip
_KEY_COLUMNS = ("id", "tenant", "role", "key_prefix", "expires_at_ms", "revoked_at_ms", "remaining_usd", "budget_usd",
                "models")  # fmt: skip


@tenants_app.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="A unique name: letters, digits and . _ : @ + -")],
    budget_usd: Annotated[str, typer.Option(help="Its budget; with --window, per window.")],
    window: WindowOption = None,
    max_session_usd: Annotated[str | None, typer.Option(help="The largest budget of a session.")] = None,
    models: ModelsOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    parallel: ParallelOption = None,
    soft_budget_usd: SoftOption = None,
    outage: Annotated[str, typer.Option(help='During a database outage: "closed" or "open".')] = "closed",
    store_text: Annotated[bool, typer.Option("--store-text", help="Keep prompts and answers in the log.")] = False,
    wrap_up: Annotated[
        bool | None, typer.Option("--wrap-up/--no-wrap-up", help="End its sessions with a last answer, or do not.")
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
            _new_id("ten"),
            name,
            budget_nanousd=budget_nanousd,
            window=window,
            max_session_nanousd=amount_nanousd("--max-session-usd", max_session_usd),
            models=_models(models, config),
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
    max_session_usd: Annotated[
        str | None, typer.Option(help='The largest budget of a session; "none": no limit.')
    ] = None,
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
        changes["models"] = _models(models, config)
    if outage is not None:
        changes["outage"] = outage
    if store_text is not None:
        changes["store_text"] = store_text
    if wrap_up is not None:
        if wrap_up not in _SWITCHES:
            raise CommandError(f'--wrap-up: expected one of {", ".join(_SWITCHES)}, got "{wrap_up}"')
        changes["wrap_up"] = _SWITCHES[wrap_up]
    changes |= _new_limits(rpm, tpm, parallel, soft_budget_usd)
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


@keys_app.command("create")
def create_key(
    tenant: TenantOption = DEFAULT_TENANT,
    role: Annotated[str, typer.Option(help="tenant, service, admin or read-only.")] = "tenant",
    models: ModelsOption = None,
    expires: Annotated[str | None, typer.Option(help='Lifetime: "90d", "12h" (default: unlimited).')] = None,
    budget_usd: Annotated[str | None, typer.Option(help="The key's own budget, within the tenant's.")] = None,
    window: WindowOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    parallel: ParallelOption = None,
    soft_budget_usd: SoftOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Create a key. Its secret is shown only once."""
    from gateway.accounts import keys

    with opened(config) as connection:
        at_ms = now_ms()
        found = find_tenant(connection, tenant)
        made = keys.create_key(
            connection,
            _new_id("key"),
            found.tenant_id,
            role=role,
            models=_models(models, config),
            expires_at_ms=_later_ms("--expires", expires, at_ms),
            budget_nanousd=amount_nanousd("--budget-usd", budget_usd),
            window=window,
            rpm=rpm,
            tpm=tpm,
            parallel=parallel,
            soft_budget_nanousd=amount_nanousd("--soft-budget-usd", soft_budget_usd),
            actor=ACTOR,
            now_ms=at_ms,
        )
        row = _key_row(made.key, found.name)
    say("keep it: only its SHA-256 is stored, so it cannot be shown again")
    show_one({"key": made.secret, **row}, as_json=as_json)


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only keys of this tenant.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List keys without their secrets."""
    from gateway.accounts import keys, tenants

    with opened(config, read_only=True) as connection:
        tenant_id = None if tenant is None else find_tenant(connection, tenant).tenant_id
        names = {found.tenant_id: found.name for found in tenants.list_tenants(connection, limit=MAX_NAMES)}
        rows = [
            _key_row(key, names.get(key.tenant_id, key.tenant_id))
            for key in keys.list_keys(connection, tenant_id=tenant_id)
        ]
    show(rows, _KEY_COLUMNS, as_json=as_json, empty="no keys yet: seqroute keys create --tenant NAME")


@keys_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="Its id, or the leaked key itself.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key, effective within seconds on every replica."""
    from gateway.accounts import keys

    with opened(config) as connection:
        key_id = keys.find_key_id(connection, key) if key.startswith("sk-") else key
        row = _named_key_row(connection, keys.revoke_key(connection, key_id, actor=ACTOR, now_ms=now_ms()))
    show_one(row, as_json=as_json)


@keys_app.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(help="Id of the key.")],
    grace: Annotated[str | None, typer.Option(help='Time for which the old secret still works: "1h", "7d".')] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Replace a key's secret; its id, budget and role stay."""
    from gateway.accounts import keys

    at_ms = now_ms()
    ends_ms = _later_ms("--grace", grace, at_ms)
    with opened(config) as connection:
        made = keys.rotate_key(
            connection,
            key_id,
            actor=ACTOR,
            now_ms=at_ms,
            grace_ms=0 if ends_ms is None else ends_ms - at_ms,
        )
        row = _named_key_row(connection, made.key)
    say("keep it: only its SHA-256 is stored, so it cannot be shown again")
    show_one({"key": made.secret, **row}, as_json=as_json)


@keys_app.command("set-budget")
def set_key_budget(
    key_id: Annotated[str, typer.Argument(help="Id of the key.")],
    usd: Annotated[str, typer.Argument(help='The new budget, including what is already spent; "none": no own budget.')],
    window: Annotated[
        str | None, typer.Option("--window", help='"30d", "1mo", "24h"; "none": the budget never resets.')
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Set, change or remove a key's own budget."""
    from gateway.accounts import keys

    changes: dict[str, Any] = {"budget_nanousd": None if usd == "none" else amount_nanousd("USD", usd)}
    if window is not None:
        changes["window"] = None if window == "none" else window
    with opened(config) as connection:
        changed = keys.set_key_budget(connection, key_id, **changes, actor=ACTOR, now_ms=now_ms())
        row = _named_key_row(connection, changed)
    show_one(row, as_json=as_json)


@keys_app.command("change")
def change_key(
    key_id: Annotated[str, typer.Argument(help="Id of the key.")],
    rpm: NewRpmOption = None,
    tpm: NewTpmOption = None,
    parallel: NewParallelOption = None,
    soft_budget_usd: NewSoftOption = None,
    expires: Annotated[str | None, typer.Option(help='When it ends, from now: "90d", "12h"; "none": never.')] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Change a key's limits and its end, leave the rest."""
    from gateway.accounts import keys

    at_ms = now_ms()
    changes = _new_limits(rpm, tpm, parallel, soft_budget_usd)
    if expires is not None:
        changes["expires_at_ms"] = None if expires == "none" else _later_ms("--expires", expires, at_ms)
    if not changes:
        raise CommandError("keys change: expected at least one of --rpm, --tpm, --parallel, --expires, ...")
    with opened(config) as connection:
        changed = keys.change_key(connection, key_id, changes, actor=ACTOR, now_ms=at_ms)
        row = _named_key_row(connection, changed)
    show_one(row, as_json=as_json)


def _new_limits(rpm: str | None, tpm: str | None, parallel: str | None, soft_budget_usd: str | None) -> dict[str, Any]:
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


def find_tenant(connection: Connection, name_or_id: str) -> Tenant:
    """The tenant of this name, else of this id. Raises NotFound."""
    from gateway.accounts import tenants
    from gateway.errors import NotFound

    found = tenants.find_tenant_by_name(connection, name_or_id) or tenants.find_tenant(connection, name_or_id)
    if found is None:
        raise NotFound(f'tenant: expected the name or id of a tenant, got "{name_or_id[:80]}"')
    return found


def _key_row(key: Key, tenant_name: str) -> dict[str, Any]:
    """A key as the API shows it, with its tenant's name."""
    from gateway.accounts.fields import describe_key

    return {**describe_key(key), "tenant": tenant_name}


def _named_key_row(connection: Connection, key: Key) -> dict[str, Any]:
    from gateway.accounts import tenants

    return _key_row(key, tenants.get_tenant(connection, key.tenant_id).name)


def _models(text: str | None, config: Path) -> list[str] | None:
    """Names of an allow-list, each a model or an alias of the configuration."""
    from gateway.accounts.budgets import refuse_unknown_models
    from gateway.catalog.models import draft
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


def _later_ms(name: str, text: str | None, at_ms: int) -> int | None:
    from gateway.config.reader import parse_duration_s

    if text is None:
        return None
    seconds = parse_duration_s(text)
    if seconds is None or seconds <= 0:
        raise CommandError(f'{name}: expected a duration like "90d" or "12h", got "{text[:40]}"')
    return at_ms + int(seconds * 1000)


def _new_id(prefix: str) -> str:
    from gateway.clock import time_ordered_ids

    return time_ordered_ids(time.time)(prefix)
