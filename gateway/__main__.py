"""The `seqroute` program; its commands are in `gateway.cli.commands`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from gateway.cli.commands import build
from gateway.cli.console import BAD_INPUT, CommandError
from gateway.pipes import run_while_read


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status; errors are one line each on stderr."""
    from gateway.config.reader import SettingsError

    try:
        status = build()(list(arguments), prog_name="seqroute", standalone_mode=False)
    except SettingsError as error:
        return _fail(error.problems, BAD_INPUT)
    except CommandError as error:
        return _fail(error.lines, error.status)
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        message = error.format_message()
        if message.startswith("Usage: "):  # a group without a command: print its help
            print(message)
            return BAD_INPUT
        return _fail([" ".join(message.split())], BAD_INPUT)
    except KeyboardInterrupt:
        return 130
    return status if isinstance(status, int) else 0


def _fail(lines: Sequence[str], status: int) -> int:
    for line in lines:
        print(f"seqroute: {line}", file=sys.stderr)
    return status


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_while_read(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
