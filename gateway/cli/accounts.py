"""tenants and keys: who may spend, and with what."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.console import (
    DEFAULT_CONFIG,
    CommandError,
    ConfigOption,
    JsonOption,
    amount_nanousd,
    moment,
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

tenants_app = typer.Typer(
    help="Who pays: create, list, show, change, grant.", rich_markup_mode=None, no_args_is_help=True
)
keys_app = typer.Typer(
    help="API keys of a tenant: create, list, rotate, revoke.", rich_markup_mode=None, no_args_is_help=True
)

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Name or id of the tenant.")]
TenantOption = Annotated[str, typer.Option("--tenant", help="Name or id of the tenant.")]
ModelsOption = Annotated[str | None, typer.Option("--models", help='Allowed models, comma-separated; "all" for all.')]
WindowOption = Annotated[
    str | None, typer.Option("--window", help='After this the budget begins anew: "30d", "1mo", "24h".')
]

_TENANT_COLUMNS = (
    "name",
    "id",
    "budget_usd",
    "spent_usd",
    "reserved_usd",
    "remaining_usd",
    "window",
    "models",
    "outage",
)
_KEY_COLUMNS = ("id", "prefix", "tenant_id", "role", "models", "budget_usd", "remaining_usd", "expires", "revoked")


@tenants_app.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="Its name, once among all tenants.")],
    budget_usd: Annotated[str, typer.Option(help="What it may spend, in a window if there is one.")],
    window: WindowOption = None,
    max_session_usd: Annotated[str | None, typer.Option(help="The most that one session may be given.")] = None,
    models: ModelsOption = None,
    outage: Annotated[str, typer.Option(help='While the database is away: "closed" or "open".')] = "closed",
    store_text: Annotated[bool, typer.Option("--store-text", help="Keep prompts and answers in the log.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Open an account."""
    from gateway.accounts import tenants

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
            models=_models(models),
            outage=outage,
            store_text=store_text,
            actor=ACTOR,
            now_ms=now_ms(),
        )
    show_one(_tenant_row(tenant), as_json=as_json)


@tenants_app.command("list")
def list_tenants(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """All tenants with their money."""
    from gateway.accounts import tenants

    with opened(config, read_only=True) as connection:
        rows = [_tenant_row(tenant) for tenant in tenants.list_tenants(connection)]
    show(rows, _TENANT_COLUMNS, as_json=as_json, empty="no tenants yet: seqroute tenants create NAME --budget-usd 100")


@tenants_app.command("show")
def show_tenant(tenant: TenantArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """One tenant."""
    with opened(config, read_only=True) as connection:
        found = find_tenant(connection, tenant)
    show_one(_tenant_row(found), as_json=as_json)


@tenants_app.command("change")
def change_tenant(
    tenant: TenantArgument,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    budget_usd: Annotated[str | None, typer.Option(help="The new budget, spent money included.")] = None,
    window: Annotated[
        str | None, typer.Option(help='"30d", "1mo", "24h"; "none": the budget never begins anew.')
    ] = None,
    max_session_usd: Annotated[
        str | None, typer.Option(help='The most for one session; "none": no such limit.')
    ] = None,
    models: ModelsOption = None,
    outage: Annotated[str | None, typer.Option(help='"closed" or "open".')] = None,
    store_text: Annotated[
        bool | None, typer.Option("--store-text/--forget-text", help="Keep texts in the log.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Change what is given, leave the rest."""
    from gateway.accounts import tenants

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
        changes["models"] = _models(models)
    if outage is not None:
        changes["outage"] = outage
    if store_text is not None:
        changes["store_text"] = store_text
    if not changes:
        raise CommandError("tenants change: expected at least one of --name, --budget-usd, --window, ...")
    with opened(config) as connection:
        found = find_tenant(connection, tenant)
        after = tenants.patch_tenant(connection, found.tenant_id, changes, actor=ACTOR, now_ms=now_ms())
    show_one(_tenant_row(after), as_json=as_json)


@tenants_app.command("grant")
def grant_tenant(
    tenant: TenantArgument,
    usd: Annotated[str, typer.Argument(help="How much to add; with --take-back, to take away.")],
    take_back: Annotated[bool, typer.Option("--take-back", help="Take from what is unspent.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Add to a budget, or take back from it."""
    from gateway.accounts import tenants

    amount = amount_nanousd("USD", usd)
    assert amount is not None
    with opened(config) as connection:
        found = find_tenant(connection, tenant)
        after = tenants.grant_to_tenant(
            connection, found.tenant_id, -amount if take_back else amount, actor=ACTOR, now_ms=now_ms()
        )
    show_one(_tenant_row(after), as_json=as_json)


@keys_app.command("create")
def create_key(
    tenant: TenantOption = DEFAULT_TENANT,
    role: Annotated[str, typer.Option(help="tenant, service, admin or read-only.")] = "tenant",
    models: ModelsOption = None,
    expires: Annotated[str | None, typer.Option(help='From now: "90d", "12h"; never, when absent.')] = None,
    budget_usd: Annotated[str | None, typer.Option(help="A budget of its own within the tenant's.")] = None,
    window: WindowOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown this once."""
    from gateway.accounts import keys

    with opened(config) as connection:
        at_ms = now_ms()
        made = keys.create_key(
            connection,
            _new_id("key"),
            find_tenant(connection, tenant).tenant_id,
            role=role,
            models=_models(models),
            expires_at_ms=_later_ms("--expires", expires, at_ms),
            budget_nanousd=amount_nanousd("--budget-usd", budget_usd),
            window=window,
            actor=ACTOR,
            now_ms=at_ms,
        )
    say("keep it: only its SHA-256 is stored, so it cannot be shown again")
    show_one({"key": made.secret, **_key_row(made.key)}, as_json=as_json)


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Keys without their secrets."""
    from gateway.accounts import keys

    with opened(config, read_only=True) as connection:
        tenant_id = None if tenant is None else find_tenant(connection, tenant).tenant_id
        rows = [_key_row(key) for key in keys.list_keys(connection, tenant_id=tenant_id)]
    show(rows, _KEY_COLUMNS, as_json=as_json, empty="no keys yet: seqroute keys create --tenant NAME")


@keys_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="Its id, or the key itself when it leaked.")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Stop a key within seconds, on every replica."""
    from gateway.accounts import keys

    with opened(config) as connection:
        key_id = keys.find_key_id(connection, key) if key.startswith("sk-") else key
        row = _key_row(keys.revoke_key(connection, key_id, actor=ACTOR, now_ms=now_ms()))
    show_one(row, as_json=as_json)


@keys_app.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(help="Id of the key.")],
    grace: Annotated[str | None, typer.Option(help='How long the old secret still works: "1h", "7d".')] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret; id, budget and rights stay."""
    from gateway.accounts import keys

    at_ms = now_ms()
    ends_ms = _later_ms("--grace", grace, at_ms)
    with opened(config) as connection:
        made = keys.rotate_key(
            connection,
            key_id,
            _new_id("key"),
            actor=ACTOR,
            now_ms=at_ms,
            grace_ms=0 if ends_ms is None else ends_ms - at_ms,
        )
    say("keep it: only its SHA-256 is stored, so it cannot be shown again")
    show_one({"key": made.secret, **_key_row(made.key)}, as_json=as_json)


def find_tenant(connection: Connection, name_or_id: str) -> Tenant:
    """The tenant of this name, else of this id. Raises NotFound."""
    from gateway.accounts import tenants
    from gateway.errors import NotFound

    found = tenants.find_tenant_by_name(connection, name_or_id) or tenants.find_tenant(connection, name_or_id)
    if found is None:
        raise NotFound(f'tenant: expected the name or id of a tenant, got "{name_or_id[:80]}"')
    return found


def _tenant_row(tenant: Tenant) -> dict[str, Any]:
    from gateway.accounts.fields import balance_fields, money_fields

    return {
        "id": tenant.tenant_id,
        "name": tenant.name,
        **balance_fields(tenant.balance),
        "window": tenant.window,
        "reset_at": moment(tenant.reset_at_ms),
        **money_fields("max_session", tenant.max_session_nanousd),
        "models": None if tenant.models is None else list(tenant.models),
        "outage": tenant.outage,
        "store_text": tenant.store_text,
        "created": moment(tenant.created_at_ms),
    }


def _key_row(key: Key) -> dict[str, Any]:
    from gateway.accounts.fields import money_fields

    balance = key.balance
    return {
        "id": key.key_id,
        "prefix": key.key_prefix,
        "tenant_id": key.tenant_id,
        "role": key.role,
        "models": None if key.models is None else list(key.models),
        **money_fields("budget", None if balance is None else balance.granted_nanousd),
        **money_fields("remaining", None if balance is None else balance.available_nanousd),
        "window": key.window,
        "expires": moment(key.expires_at_ms),
        "revoked": moment(key.revoked_at_ms),
        "created": moment(key.created_at_ms),
    }


def _models(text: str | None) -> list[str] | None:
    return None if text is None or text == "all" else [name.strip() for name in text.split(",") if name.strip()]


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


def now_ms() -> int:
    """The wall clock, as every table stores it."""
    return int(time.time() * 1000)
