"""Commands for API keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.account_options import (
    ACTOR,
    DEFAULT_TENANT,
    ModelsOption,
    NewParallelOption,
    NewRpmOption,
    NewSoftOption,
    NewTpmOption,
    ParallelOption,
    RpmOption,
    SoftOption,
    TenantOption,
    TpmOption,
    WindowOption,
    allowed_models,
    changed_limits,
    find_tenant,
    new_id,
    tenant_names,
)
from gateway.cli.console import (
    DEFAULT_CONFIG,
    CommandError,
    ConfigOption,
    JsonOption,
    amount_nanousd,
    now_ms,
    opened,
    say,
    show,
    show_one,
)
from gateway.cli.groups import WholeSummaries

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.accounts.keys import Key

keys_app = typer.Typer(
    help="API keys of a tenant: create, list, change, set-budget, rotate, revoke.",
    cls=WholeSummaries,
    rich_markup_mode=None,
    no_args_is_help=True,
)

# The most important column first: a narrow terminal shows only those.
_KEY_COLUMNS = ("id", "tenant", "role", "key_prefix", "expires_at_ms", "revoked_at_ms", "remaining_usd", "budget_usd",
                "models")  # fmt: skip


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
            new_id("key"),
            found.tenant_id,
            role=role,
            models=allowed_models(models, config),
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
    say("save it now: only its SHA-256 is stored, so it cannot be shown again")
    show_one({"key": made.secret, **row}, as_json=as_json)


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only keys of this tenant.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List keys without their secrets."""
    from gateway.accounts import keys

    with opened(config, read_only=True) as connection:
        tenant_id = None if tenant is None else find_tenant(connection, tenant).tenant_id
        names = tenant_names(connection)
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
    say("save it now: only its SHA-256 is stored, so it cannot be shown again")
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
    changes = changed_limits(rpm, tpm, parallel, soft_budget_usd)
    if expires is not None:
        changes["expires_at_ms"] = None if expires == "none" else _later_ms("--expires", expires, at_ms)
    if not changes:
        raise CommandError("keys change: expected at least one of --rpm, --tpm, --parallel, --expires, ...")
    with opened(config) as connection:
        changed = keys.change_key(connection, key_id, changes, actor=ACTOR, now_ms=at_ms)
        row = _named_key_row(connection, changed)
    show_one(row, as_json=as_json)


def _key_row(key: Key, tenant_name: str) -> dict[str, Any]:
    """A key as the API shows it, with its tenant's name."""
    from gateway.accounts.fields import describe_key

    return {**describe_key(key), "tenant": tenant_name}


def _named_key_row(connection: Connection, key: Key) -> dict[str, Any]:
    from gateway.accounts import tenants

    return _key_row(key, tenants.get_tenant(connection, key.tenant_id).name)


def _later_ms(name: str, text: str | None, at_ms: int) -> int | None:
    from gateway.config.values import parse_duration_s

    if text is None:
        return None
    seconds = parse_duration_s(text)
    if seconds is None or seconds <= 0:
        raise CommandError(f'{name}: expected a duration like "90d" or "12h", got "{text[:40]}"')
    return at_ms + int(seconds * 1000)
