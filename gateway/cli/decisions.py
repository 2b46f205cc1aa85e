"""decisions, explain, report, policies, audit: what was decided, why, what it brought, and who decides next."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Annotated, Any

import typer

from gateway.cli.accounts import ACTOR, DEFAULT_TENANT, find_tenant
from gateway.cli.console import (
    DEFAULT_CONFIG,
    CommandError,
    ConfigOption,
    JsonOption,
    environment,
    moment,
    opened,
    say,
    show,
    show_one,
)

decisions_app = typer.Typer(help="The log of decisions: list, show.", rich_markup_mode=None, no_args_is_help=True)
policies_app = typer.Typer(
    help="Who decides: list, show, promote, canary, shadow, pin, unpin, rollback.", rich_markup_mode=None
)

DecisionArgument = Annotated[
    str, typer.Argument(metavar="DECISION_ID", help="As in the header x-seqroute-decision-id.")
]
PolicyArgument = Annotated[str, typer.Argument(metavar="POLICY_ID", help="As `seqroute policies list` shows it.")]

_DECISION_COLUMNS = (
    "decision_id",
    "session_id",
    "turn",
    "model",
    "reason",
    "probability",
    "cost_usd",
    "status",
    "created",
)
_CANDIDATE_COLUMNS = ("model", "feasible", "why_not", "probability", "quality", "cost_usd", "q_quality", "q_cost")
_POLICY_COLUMNS = ("policy_id", "kind", "stage", "pinned", "staged", "created")


@decisions_app.command("list")
def list_decisions(
    tenant: Annotated[str, typer.Option(help="Name or id of the tenant.")] = DEFAULT_TENANT,
    session: Annotated[str | None, typer.Option(help="Only of this session.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """A tenant's decisions, newest first."""
    from sqlalchemy import select

    from gateway.database.tables import decisions
    from gateway.money import usd_string

    row = decisions.c
    query = select(
        row.decision_id, row.session_id, row.turn, row.model, row.requested_model, row.policy_id, row.reason,
        row.propensity, row.cost_nanousd, row.status, row.created_at_ms,
    ).order_by(row.created_at_ms.desc(), row.turn.desc()).limit(limit)  # fmt: skip
    with opened(config, read_only=True) as connection:
        query = query.where(row.tenant_id == find_tenant(connection, tenant).tenant_id)
        if session is not None:
            query = query.where(row.session_id == session)
        rows = [
            {
                "decision_id": found.decision_id,
                "session_id": found.session_id,
                "turn": found.turn,
                "requested_model": found.requested_model,
                "model": found.model,
                "policy": found.policy_id,
                "reason": found.reason,
                "probability": found.propensity,
                "cost_nano_usd": found.cost_nanousd,
                "cost_usd": None if found.cost_nanousd is None else usd_string(found.cost_nanousd),
                "status": found.status,
                "created": moment(found.created_at_ms),
            }
            for found in connection.execute(query)
        ]
    show(rows, _DECISION_COLUMNS, as_json=as_json, empty="no decisions yet")


@decisions_app.command("show")
def explain(decision_id: DecisionArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Why this model: every candidate with mask, probability, quality, cost and values-to-go."""
    from gateway.decisions import log as decisions
    from gateway.errors import NotFound
    from gateway.money import usd_string

    with opened(config, read_only=True) as connection:
        row = decisions.find(connection, decision_id, None)
        if row is None:
            raise NotFound(f'decision: expected the id of a logged decision, got "{decision_id[:80]}"')
        explained = decisions.explain(row)
    if as_json:
        show_one(explained, as_json=True)
        return
    candidates: list[dict[str, Any]] = explained.pop("candidates")
    show_one({name: value for name, value in explained.items() if not name.endswith("_nano_usd")}, as_json=False)
    print()
    rows = [candidate | {"cost_usd": usd_string(candidate["cost_nano_usd"])} for candidate in candidates]
    show(rows, _CANDIDATE_COLUMNS, as_json=False, empty="no candidates")


def report(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    since: Annotated[str | None, typer.Option(help='How far back: "7d", "24h", or a date 2026-11-01.')] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Spend, savings against always taking one model, bankrupt sessions."""
    from gateway.decisions.report import money_columns
    from gateway.decisions.report import report as make_report

    since_ms = _since_ms(since)
    with opened(config, read_only=True) as connection:
        tenant_id = None if tenant is None else find_tenant(connection, tenant).tenant_id
        found = make_report(connection, tenant_id=tenant_id, since_ms=since_ms)
    if as_json:
        show_one(found, as_json=True)
        return
    tables = {name: found.pop(name) for name in ("tenants", "models", "baselines")}
    show_one({name: value for name, value in found.items() if not name.endswith("_nano_usd")}, as_json=False)
    for title, rows in tables.items():
        print(f"\n{title}" + (" (estimated from the log)" if title == "baselines" else ""))
        show(rows, money_columns(rows), as_json=False, empty="nothing yet")


def export(context: typer.Context) -> None:
    """Write the decision log as partitioned Parquet, for training elsewhere; `seqroute export --help` has the options.

    Serving never loads what writes Parquet: the trainer does it, in a process of its own.
    """
    finished = subprocess.run([sys.executable, "-m", "train", "export", *context.args], check=False)
    raise typer.Exit(finished.returncode)


def audit(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check every invariant of the ledger; exit 1 when one is broken."""
    from gateway.config.load import read_settings
    from gateway.ledger import audit as ledger_audit

    sweep_s = read_settings(config, environment()).settings.timings.sweep_s
    with opened(config, read_only=True) as connection:
        found = ledger_audit.audit(connection, now_ms=_now_ms(), grace_ms=int(2000 * sweep_s))
        violations = [str(violation) for violation in found]
    if as_json:
        show_one({"ok": not violations, "violations": violations}, as_json=True)
    else:
        for violation in violations:
            print(violation)
        print("the ledger is whole" if not violations else f"{len(violations)} violations")
    if violations:
        raise typer.Exit(1)


@policies_app.command("list")
def list_policies(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Published policies, the one staged last first. Without a champion the rule decides."""
    from gateway.policies import registry as policies

    with opened(config, read_only=True) as connection:
        rows = [_policy_row(record) for record in policies.list_policies(connection)]
    show(rows, _POLICY_COLUMNS, as_json=as_json, empty="no policies yet: seqroute-train nightly publishes them")


@policies_app.command("show")
def show_policy(policy: PolicyArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """One policy: the gate's report, how its trial stands by now, and what happened to it."""
    from gateway.config.load import read_settings
    from gateway.policies import trials

    settings = read_settings(config, environment()).settings.policy
    with opened(config, read_only=True) as connection:
        row = trials.describe_policy(connection, policy, settings, _now_ms())
    show_one(row | {"created": moment(row["created_at_ms"]), "staged": moment(row["staged_at_ms"])}, as_json=as_json)


def _act(policy: str, action: str, config: Any, as_json: bool) -> None:
    from gateway.policies import registry as policies

    with opened(config) as connection:
        record = policies.act_on(connection, policy, action, actor=ACTOR, now_ms=_now_ms())
    _show_serving(record, as_json)


def _show_serving(record: Any, as_json: bool) -> None:
    if record is not None:
        show_one(_policy_row(record), as_json=as_json)
        return
    say("no earlier champion: the rule decides")
    if as_json:
        show_one({"policy_id": None}, as_json=True)


@policies_app.command("promote")
def promote(policy: PolicyArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Let this policy decide; the champion retires. Gateways follow within seconds."""
    _act(policy, "promote", config, as_json)


@policies_app.command("canary")
def canary(policy: PolicyArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Let it decide a share of the sessions (policy_settings.canary_fraction)."""
    _act(policy, "canary", config, as_json)


@policies_app.command("shadow")
def shadow(policy: PolicyArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Log what it would have done, and let it do nothing."""
    _act(policy, "shadow", config, as_json)


@policies_app.command("pin")
def pin(policy: PolicyArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Promote it, and let neither nightly runs nor trials replace it until `unpin`."""
    _act(policy, "pin", config, as_json)


@policies_app.command("unpin")
def unpin(policy: PolicyArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """End a pin: the policy serves on until a better one comes."""
    _act(policy, "unpin", config, as_json)


@policies_app.command("rollback")
def rollback(
    policy: Annotated[
        str | None, typer.Argument(metavar="[POLICY_ID]", help="Take this one off its stage (default: the champion).")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Take the champion off and reinstate the one before it; the rule, when there was none."""
    from gateway.policies import registry as policies

    if policy is not None:
        _act(policy, "rollback", config, as_json)
        return
    with opened(config) as connection:
        record = policies.roll_back(connection, actor=ACTOR, now_ms=_now_ms())
    _show_serving(record, as_json)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _policy_row(record: Any) -> dict[str, Any]:
    from gateway.policies.registry import describe

    row = describe(record)
    return row | {"created": moment(row["created_at_ms"]), "staged": moment(row["staged_at_ms"])}


def _since_ms(text: str | None) -> int | None:
    from datetime import UTC, datetime

    from gateway.config.reader import parse_duration_s

    if text is None:
        return None
    seconds = parse_duration_s(text)
    if seconds is not None:
        return int((time.time() - seconds) * 1000)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f'--since: expected "7d", "24h" or a date like 2026-11-01, got "{text[:40]}"') from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
