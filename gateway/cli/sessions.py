"""Commands for sessions and their budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.account_options import ACTOR, DEFAULT_TENANT, find_tenant, tenant_names
from gateway.cli.console import (
    DEFAULT_CONFIG,
    CommandError,
    ConfigOption,
    JsonOption,
    amount_nanousd,
    environment,
    now_ms,
    opened,
    show,
    show_one,
)
from gateway.cli.groups import WholeSummaries

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.accounts.tenants import Tenant
    from gateway.ledger.records import SessionRow

sessions_app = typer.Typer(
    help="Sessions and their budgets: list, show, change, close.",
    cls=WholeSummaries,
    rich_markup_mode=None,
    no_args_is_help=True,
)

SessionArgument = Annotated[str, typer.Argument(metavar="SESSION_ID", help="As in the header x-seqroute-session-id.")]

TenantOption = Annotated[
    str | None, typer.Option(help="Name or id of the tenant; needed where several have a session of this id.")
]

# The most important column first: a narrow terminal shows only those.
_SESSION_COLUMNS = ("session_id", "tenant", "state", "turns", "remaining_usd", "spent_usd", "updated_at_ms",
                    "budget_usd", "reserved_usd")  # fmt: skip


@sessions_app.command("list")
def list_sessions(
    tenant: Annotated[str | None, typer.Option(help="Only sessions of this tenant.")] = None,
    state: Annotated[str | None, typer.Option(help="open, paused or closed; only sessions in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of rows.")] = 50,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List sessions, most recently used first."""
    from gateway.accounts import sessions as session_accounts
    from gateway.accounts.fields import describe_session

    if state not in (None, *session_accounts.STATES):
        raise CommandError(f'--state: expected one of {", ".join(session_accounts.STATES)}, got "{state}"')
    with opened(config, read_only=True) as connection:
        names = tenant_names(connection)
        if tenant is None:
            found = session_accounts.list_all_sessions(connection, state=state, limit=limit)
        else:
            tenant_id = find_tenant(connection, tenant).tenant_id
            found = session_accounts.list_sessions(connection, tenant_id, state=state, limit=limit)
    rows = [{"tenant": names.get(row.tenant_id, row.tenant_id), **describe_session(row)} for row in found]
    words = ["no", state, "sessions", "yet" if tenant is None else f"of tenant {tenant} yet"]
    empty = " ".join(word for word in words if word)
    show(rows, _SESSION_COLUMNS, as_json=as_json, empty=empty)


@sessions_app.command("show")
def show_session(
    session_id: SessionArgument, tenant: TenantOption = None, config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Show one session."""
    from gateway.accounts.fields import describe_session

    with opened(config, read_only=True) as connection:
        row = _find_session(connection, _session_tenant(connection, tenant, session_id), session_id)
    show_one(describe_session(row), as_json=as_json)


@sessions_app.command("change")
def change_session(
    session_id: SessionArgument,
    tenant: TenantOption = None,
    budget_usd: Annotated[str | None, typer.Option(help="The session's new budget.")] = None,
    expected_turns: Annotated[int | None, typer.Option(help="Expected number of turns, 1 to 10,000.")] = None,
    state: Annotated[str | None, typer.Option(help="open, paused or closed.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Open a session, change its budget or expected turns, close or reopen it."""
    from gateway.accounts import sessions as session_accounts
    from gateway.accounts.fields import describe_session
    from gateway.config.load import read_settings

    defaults = read_settings(config, environment()).settings.session
    with opened(config) as connection:
        row = session_accounts.change_session(
            connection,
            _session_tenant(connection, tenant, session_id).tenant_id,
            session_id,
            default_nanousd=defaults.default_budget_nanousd,
            budget_nanousd=amount_nanousd("--budget-usd", budget_usd),
            expected_turns=expected_turns,
            state=state,
            actor=ACTOR,
            now_ms=now_ms(),
        )
    show_one(describe_session(row), as_json=as_json)


@sessions_app.command("close")
def close_session(
    session_id: SessionArgument, tenant: TenantOption = None, config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Close a session: it accepts no further turns."""
    from gateway.accounts import sessions as session_accounts
    from gateway.accounts.fields import describe_session

    with opened(config) as connection:
        found = _session_tenant(connection, tenant, session_id)
        _find_session(connection, found, session_id)
        row = session_accounts.change_session(
            connection, found.tenant_id, session_id, default_nanousd=0, state="closed", actor=ACTOR, now_ms=now_ms()
        )
    show_one(describe_session(row), as_json=as_json)


def _session_tenant(connection: Connection, tenant: str | None, session_id: str) -> Tenant:
    """The named tenant, else the one that has the session, else the default one."""
    from gateway.accounts import sessions as session_accounts

    if tenant is not None:
        return find_tenant(connection, tenant)
    owners = session_accounts.session_tenants(connection, session_id)
    if len(owners) > 1:
        names = ", ".join(list(owners.values())[:5])
        raise CommandError(
            f'--tenant: expected one of the {len(owners)} tenants with a session "{session_id}" ({names}), got none'
        )
    return find_tenant(connection, next(iter(owners), DEFAULT_TENANT))


def _find_session(connection: Connection, tenant: Tenant, session_id: str) -> SessionRow:
    from gateway.accounts import sessions as session_accounts
    from gateway.errors import NotFound

    try:
        return session_accounts.get_session(connection, tenant.tenant_id, session_id)
    except NotFound:
        raise CommandError(
            f'session: tenant {tenant.name} has no session "{session_id[:128]}"; `seqroute sessions list` lists all'
        ) from None
