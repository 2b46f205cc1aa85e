"""sessions: the conversations, and what each may still spend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.accounts import ACTOR, DEFAULT_TENANT, TenantOption, find_tenant, now_ms
from gateway.cli.console import (
    DEFAULT_CONFIG,
    CommandError,
    ConfigOption,
    JsonOption,
    amount_nanousd,
    environment,
    moment,
    opened,
    show,
    show_one,
)

if TYPE_CHECKING:
    from gateway.ledger.records import SessionRow

sessions_app = typer.Typer(
    help="Sessions and their budgets: list, show, change, close.", rich_markup_mode=None, no_args_is_help=True
)

_SESSION_COLUMNS = (
    "session_id",
    "state",
    "turns",
    "budget_usd",
    "spent_usd",
    "reserved_usd",
    "remaining_usd",
    "updated",
)


@sessions_app.command("list")
def list_sessions(
    tenant: TenantOption = DEFAULT_TENANT,
    state: Annotated[str | None, typer.Option(help="Only open or closed ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """A tenant's sessions, the one used last first."""
    from gateway.accounts import sessions as session_accounts

    if state not in (None, "open", "closed"):
        raise CommandError(f'--state: expected open or closed, got "{state}"')
    with opened(config, read_only=True) as connection:
        tenant_id = find_tenant(connection, tenant).tenant_id
        rows = [
            _session_row(row) for row in session_accounts.list_sessions(connection, tenant_id, state=state, limit=limit)
        ]
    show(rows, _SESSION_COLUMNS, as_json=as_json, empty="no sessions yet")


@sessions_app.command("show")
def show_session(
    session_id: str, tenant: TenantOption = DEFAULT_TENANT, config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """One session."""
    from gateway.accounts import sessions as session_accounts

    with opened(config, read_only=True) as connection:
        row = session_accounts.get_session(connection, find_tenant(connection, tenant).tenant_id, session_id)
    show_one(_session_row(row), as_json=as_json)


@sessions_app.command("change")
def change_session(
    session_id: str,
    tenant: TenantOption = DEFAULT_TENANT,
    budget_usd: Annotated[str | None, typer.Option(help="Raise or lower the session's ceiling.")] = None,
    expected_turns: Annotated[int | None, typer.Option(min=1, max=100_000, help="How many turns it will have.")] = None,
    state: Annotated[str | None, typer.Option(help="open or closed.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Open a session, change its budget or horizon, close it or open it again."""
    from gateway.accounts import sessions as session_accounts
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
    show_one(_session_row(row), as_json=as_json)


@sessions_app.command("close")
def close_session(
    session_id: str, tenant: TenantOption = DEFAULT_TENANT, config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Let a session take no further turns."""
    from gateway.accounts import sessions as session_accounts

    with opened(config) as connection:
        tenant_id = find_tenant(connection, tenant).tenant_id
        session_accounts.get_session(connection, tenant_id, session_id)
        row = session_accounts.change_session(
            connection, tenant_id, session_id, default_nanousd=0, state="closed", actor=ACTOR, now_ms=now_ms()
        )
    show_one(_session_row(row), as_json=as_json)


def _session_row(session: SessionRow) -> dict[str, Any]:
    from gateway.accounts.fields import balance_fields

    return {
        "session_id": session.session_id,
        "tenant_id": session.tenant_id,
        "state": session.state,
        "turns": session.turns,
        "expected_turns": session.expected_turns,
        **balance_fields(session.balance),
        "created": moment(session.created_at_ms),
        "updated": moment(session.updated_at_ms),
    }
