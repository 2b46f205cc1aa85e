"""The table of the `seqroute` commands.

Heavy modules are imported only when a command runs, so `--help` is fast.
"""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli import decisions, import_litellm, init, keys, report, serve, sessions, tenants
from gateway.cli.groups import WholeSummaries

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"seqroute {version('seqroute')}")
        raise typer.Exit


def build() -> typer.Typer:
    """Build the command line."""
    app = typer.Typer(
        name="seqroute",
        help="An OpenAI-compatible gateway that plans a session's budget.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        cls=WholeSummaries,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    app.command("init")(init.init)
    app.command("serve")(serve.serve)
    app.command("check-config")(serve.check_config)
    app.command("migrate")(serve.migrate)
    app.add_typer(tenants.tenants_app, name="tenants")
    app.add_typer(keys.keys_app, name="keys")
    app.add_typer(sessions.sessions_app, name="sessions")
    app.add_typer(decisions.policies_app, name="policies")
    app.add_typer(decisions.decisions_app, name="decisions")
    app.command("explain")(decisions.explain)
    app.command("report")(report.report)
    app.command("audit")(decisions.audit)
    app.command("import-litellm")(import_litellm.import_litellm)
    app.command("export", context_settings=PASS_ON)(decisions.export)
    app.command("retain", context_settings=PASS_ON)(decisions.retain)
    app.command("demo-provider", context_settings=PASS_ON)(serve.demo_provider)
    app.command("demo", context_settings=PASS_ON)(serve.demo)
    return app


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An OpenAI-compatible gateway that plans a session's budget."""
