"""`seqroute-train`: from the decision log to a better policy. Commands import lazily."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from gateway.cli.groups import WholeSummaries
from gateway.pipes import run_while_read
from train.cli.data import export, import_logs, replay, retain, rollout
from train.cli.learn import evaluate, fit, frontier, nightly, pretrain
from train.cli.options import BAD_INPUT, BROKEN, database_errors, problem_of
from train.errors import InputError

OF_TRAINING = ("jsonschema", "matplotlib", "optax", "pyarrow")
"""Packages of the extra `train`: a gateway that only serves may lack them."""


def build() -> typer.Typer:
    """Build the command line."""
    app = typer.Typer(
        name="seqroute-train",
        help="From the decision log to a better policy.",
        cls=WholeSummaries,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in (nightly, fit, evaluate, frontier, replay, rollout, export, retain, pretrain):
        app.command(command.__name__)(command)
    app.command("import-logs")(import_logs)
    app.callback()(_options)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"seqroute-train {version('seqroute')}")
        raise typer.Exit


def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From the decision log to a better policy."""


def run_command(arguments: Sequence[str], program: str = "seqroute-train") -> int:
    """Run one command line and return its exit status; errors follow `program` on stderr."""
    # Threads for products of a few hundred rows wait for one another: beside a busy gateway a fit took 18 times the CPU
    # of one thread. NumPy reads this when it is imported, so it is set before a command imports it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        status = build()(list(arguments), prog_name=program, standalone_mode=False)
    except InputError as error:
        return _fail(program, str(error))
    except ModuleNotFoundError as error:
        if error.name not in OF_TRAINING:
            raise
        return _fail(
            program, f'expected the packages of training, found no {error.name}: pip install "seqroute[train]"'
        )
    except database_errors() as error:  # evaluated only when there is one
        return _fail(program, problem_of(error), BROKEN)
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        if error.format_message().startswith("Usage: "):  # without a command: list them
            print(error.format_message())
            return BAD_INPUT
        return _fail(program, " ".join(error.format_message().split()))
    except KeyboardInterrupt:
        return 130
    return status if isinstance(status, int) else 0


def _fail(program: str, text: str, status: int = BAD_INPUT) -> int:
    for line in text.splitlines():
        print(f"{program}: {line}", file=sys.stderr)
    return status


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_while_read(lambda: run_command(sys.argv[1:])))


if __name__ == "__main__":
    main()
