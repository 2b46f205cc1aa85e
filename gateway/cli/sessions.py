"""Commands for sessions and their budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.account_options import ACTOR, DEFAULT_TENANT, TenantOption, find_tenant
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

    from gateway.accounts.tenants import Tenant
    from gateway.ledger.records import SessionRow

sessions_app = typer.Typer(
    help="Sessions and their budgets: list, show, change, close.", rich_markup_mode=None, no_args_is_help=True
)

SessionArgument = Annotated[str, typer.Argument(metavar="SESSION_ID", help="As in the header x-seqroute-session-id.")]

# The most important column first: a narrow terminal shows only those.
_SESSION_COLUMNS = ("session_id", "state", "turns", "remaining_usd", "spent_usd", "updated_at_ms", "budget_usd",
                    "reserved_usd")  # fmt: skip


@sessions_app.command("list")
def list_sessions(
    tenant: TenantOption = DEFAULT_TENANT,
    state: Annotated[str | None, typer.Option(help="open, paused or closed; only sessions in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of rows.")] = 50,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List a tenant's sessions, most recently used first."""
    from gateway.accounts import sessions as session_accounts
    from gateway.accounts.fields import describe_session

    if state not in (None, *session_accounts.STATES):
        raise CommandError(f'--state: expected one of {", ".join(session_accounts.STATES)}, got "{state}"')
    with opened(config, read_only=True) as connection:
        found = find_tenant(connection, tenant)
        sessions = session_accounts.list_sessions(connection, found.tenant_id, state=state, limit=limit)
    if sessions and not as_json:
        say(f"sessions of tenant {found.name}")
    empty = f"no {state or ''} sessions of tenant {found.name} yet; --tenant NAME lists another's".replace("  ", " ")
    show([describe_session(row) for row in sessions], _SESSION_COLUMNS, as_json=as_json, empty=empty)


@sessions_app.command("show")
def show_session(
    session_id: SessionArgument, tenant: TenantOption = DEFAULT_TENANT, config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Show one session."""
    from gateway.accounts.fields import describe_session

    with opened(config, read_only=True) as connection:
        row = _find_session(connection, find_tenant(connection, tenant), session_id)
    show_one(describe_session(row), as_json=as_json)


@sessions_app.command("change")
def change_session(
    session_id: SessionArgument,
    tenant: TenantOption = DEFAULT_TENANT,
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
            find_tenant(connection, tenant).tenant_id,
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
    session_id: SessionArgument, tenant: TenantOption = DEFAULT_TENANT, config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Close a session: it accepts no further turns."""
    from gateway.accounts import sessions as session_accounts
    from gateway.accounts.fields import describe_session

    with opened(config) as connection:
        found = find_tenant(connection, tenant)
        tenant_id = found.tenant_id
        _find_session(connection, found, session_id)
        row = session_accounts.change_session(
            connection, tenant_id, session_id, default_nanousd=0, state="closed", actor=ACTOR, now_ms=now_ms()
        )
    show_one(describe_session(row), as_json=as_json)


def _find_session(connection: Connection, tenant: Tenant, session_id: str) -> SessionRow:
    from gateway.accounts import sessions as session_accounts
    from gateway.errors import NotFound

    try:
        return session_accounts.get_session(connection, tenant.tenant_id, session_id)
    except NotFound:
        raise CommandError(
            f'session: tenant {tenant.name} has no session "{session_id[:128]}"; --tenant NAME looks in another'
        ) from None
