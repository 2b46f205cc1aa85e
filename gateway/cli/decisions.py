"""Commands for decisions, reports, policies and the audit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from gateway.cli.account_options import ACTOR, find_tenant, tenant_names
from gateway.cli.console import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    environment,
    now_ms,
    opened,
    say,
    show,
    show_one,
)
from gateway.cli.groups import WholeSummaries
from gateway.wording import counted

decisions_app = typer.Typer(
    help="The decision log: list, show.", cls=WholeSummaries, rich_markup_mode=None, no_args_is_help=True
)
policies_app = typer.Typer(
    help="Policies: list, show, promote, canary, shadow, pin, unpin, rollback.",
    cls=WholeSummaries,
    rich_markup_mode=None,
    no_args_is_help=True,
)

DecisionArgument = Annotated[
    str, typer.Argument(metavar="DECISION_ID", help="As in the header x-seqroute-decision-id.")
]
PolicyArgument = Annotated[str, typer.Argument(metavar="POLICY_ID", help="As `seqroute policies list` shows it.")]

# The most important column first: a narrow terminal shows only those.
_DECISION_COLUMNS = ("decision_id", "model", "effort", "turn", "cost_usd", "status", "created_at_ms", "reason",
                     "probability", "session_id", "tenant")  # fmt: skip
_CANDIDATE_COLUMNS = ("model", "effort", "probability", "cost_usd", "quality", "q_quality", "q_cost", "why_not")
_POLICY_COLUMNS = ("policy_id", "stage", "kind", "pinned", "staged_at_ms", "created_at_ms")


@decisions_app.command("list")
def list_decisions(
    tenant: Annotated[str | None, typer.Option(help="Only decisions of this tenant.")] = None,
    session: Annotated[str | None, typer.Option(help="Only decisions of this session.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of rows.")] = 50,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List decisions, newest first."""
    import orjson
    from sqlalchemy import select

    from gateway.database.tables import decisions
    from gateway.decisions.log import answered_by
    from gateway.money import usd_string

    row = decisions.c
    query = select(
        row.decision_id, row.tenant_id, row.session_id, row.turn, row.model, row.requested_model, row.policy_id,
        row.reason, row.propensity, row.cost_nanousd, row.status, row.created_at_ms, row.candidates,
    ).order_by(row.created_at_ms.desc(), row.turn.desc()).limit(limit)  # fmt: skip
    with opened(config, read_only=True) as connection:
        names = tenant_names(connection)
        if tenant is not None:
            query = query.where(row.tenant_id == find_tenant(connection, tenant).tenant_id)
        if session is not None:
            query = query.where(row.session_id == session)
        rows = [
            {
                "decision_id": found.decision_id,
                "tenant": names.get(found.tenant_id, found.tenant_id),
                "session_id": found.session_id,
                "turn": found.turn + 1,
                "requested_model": found.requested_model,
                **dict(zip(("model", "effort"), answered_by(found.model, orjson.loads(found.candidates)), strict=True)),
                "policy": found.policy_id,
                "reason": found.reason,
                "probability": found.propensity,
                "cost_nano_usd": found.cost_nanousd,
                "cost_usd": None if found.cost_nanousd is None else usd_string(found.cost_nanousd),
                "status": found.status,
                "created_at_ms": found.created_at_ms,
            }
            for found in connection.execute(query)
        ]
    if rows and not as_json:
        say("turns are counted from 1")
    empty = "no decisions yet" if tenant is None else f"no decisions of tenant {tenant} yet"
    show(rows, _DECISION_COLUMNS, as_json=as_json, empty=empty)


@decisions_app.command("show")
def explain(decision_id: DecisionArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Explain a model choice: all candidates with probability, quality, cost, values-to-go."""
    from gateway.decisions import log as decisions
    from gateway.errors import NotFound
    from gateway.money import usd_string

    with opened(config, read_only=True) as connection:
        row = decisions.find(connection, decision_id, None)
        if row is None:
            raise NotFound(f'decision: expected the id of a logged decision, got "{decision_id[:80]}"')
        explained = decisions.explain(row)
        explained["turn"] += 1
    if as_json:
        show_one(explained, as_json=True)
        return
    candidates: list[dict[str, Any]] = explained.pop("candidates")
    failed: list[dict[str, Any]] = explained.pop("failed_attempts")
    show_one(explained, as_json=False)
    for number, attempt in enumerate(failed, 1):
        print(f"\nfailed attempt {number}")
        show_one(attempt, as_json=False)
    print()
    rows = [candidate | {"cost_usd": usd_string(candidate["cost_nano_usd"])} for candidate in candidates]
    show(rows, _CANDIDATE_COLUMNS, as_json=False, empty="no candidates")


_TRAINER = "import sys; from train.__main__ import run_command; sys.exit(run_command(sys.argv[1:], program='seqroute'))"
"""The trainer's command under this program's name."""


def export(context: typer.Context) -> None:
    """Write the decision log as Parquet; `seqroute export --help` lists the options.

    The trainer does this in a separate process: serving never loads a Parquet library.
    """
    _in_the_trainer("export", context)


def retain(context: typer.Context) -> None:
    """Archive the log and remove what is older than it is kept; --help lists the options."""
    _in_the_trainer("retain", context)


def _in_the_trainer(command: str, context: typer.Context) -> None:
    finished = subprocess.run([sys.executable, "-c", _TRAINER, command, *context.args], check=False)
    raise typer.Exit(finished.returncode)


def audit(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check every invariant of the ledger; exit 1 on a violation."""
    from gateway.config.load import read_settings
    from gateway.ledger import audit as ledger_audit

    sweep_s = read_settings(config, environment()).settings.timings.sweep_s
    with opened(config, read_only=True) as connection:
        found = ledger_audit.audit(connection, now_ms=now_ms(), grace_ms=int(2000 * sweep_s))
        violations = [str(violation) for violation in found]
    if as_json:
        show_one({"ok": not violations, "violations": violations}, as_json=True)
    else:
        for violation in violations:
            print(violation)
        print("every invariant of the ledger holds" if not violations else counted(len(violations), "violation"))
    if violations:
        raise typer.Exit(1)


@policies_app.command("list")
def list_policies(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List published policies, most recently staged first."""
    from gateway.policies import registry as policies

    with opened(config, read_only=True) as connection:
        rows = [policies.describe(record) for record in policies.list_policies(connection)]
    show(rows, _POLICY_COLUMNS, as_json=as_json, empty="no policies yet: seqroute-train nightly publishes them")


@policies_app.command("show")
def show_policy(policy: PolicyArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show one policy: the gate's report, the state of its trial, and its history."""
    from gateway.config.load import read_settings
    from gateway.policies import trials

    settings = read_settings(config, environment()).settings.policy
    with opened(config, read_only=True) as connection:
        row = trials.describe_policy(connection, policy, settings, now_ms())
    show_one(row, as_json=as_json)


def _act(policy: str, action: str, config: Any, as_json: bool) -> None:
    from gateway.policies import registry as policies

    if action in policies.STAGING:
        _refuse_unusable(policy, config)
    with opened(config) as connection:
        record = policies.act_on(connection, policy, action, actor=ACTOR, now_ms=now_ms())
    _show_serving(record, as_json)


def _refuse_unusable(policy: str, config: Any) -> None:
    """Check the checkpoint where the policy directory is on this machine, before the gateways do."""
    from gateway.config.load import read_settings
    from gateway.policies import registry as policies
    from policy.reload import HotSwap

    directory = read_settings(config, environment()).settings.policy.directory
    if os.access(directory, os.R_OK | os.X_OK):
        with opened(config, read_only=True) as connection:
            wanted = policies.checkpoint_of(connection, policy)
            policies.refuse_unusable(HotSwap(directory, text_version=None), wanted)


def _show_serving(record: Any, as_json: bool) -> None:
    from gateway.policies.registry import describe

    if record is not None:
        show_one(describe(record), as_json=as_json)
        return
    say("no earlier champion: the shipped network decides")
    if as_json:
        show_one({"policy_id": None}, as_json=True)


def _act_command(action: str) -> Callable[..., None]:
    def act(policy: PolicyArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
        _act(policy, action, config, as_json)

    return act


for _action, _does in {
    "promote": "Make this policy champion; the old one retires. Gateways follow within seconds.",
    "canary": "Let it decide for a share of the sessions (policy_settings.canary_fraction).",
    "shadow": "Log its choices without executing them.",
    "pin": "Promote it and protect it from nightly runs and trials until `unpin`.",
    "unpin": "End a pin: nightly runs and trials may replace the policy again.",
}.items():
    policies_app.command(_action, help=_does)(_act_command(_action))


@policies_app.command("rollback")
def rollback(
    policy: Annotated[
        str | None,
        typer.Argument(metavar="[POLICY_ID]", help="The policy to remove from its stage (default: the champion)."),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Reinstate the previous champion, or the shipped network when there was none."""
    from gateway.policies import registry as policies

    if policy is not None:
        _act(policy, "rollback", config, as_json)
        return
    with opened(config) as connection:
        record = policies.roll_back(connection, actor=ACTOR, now_ms=now_ms())
    _show_serving(record, as_json)
