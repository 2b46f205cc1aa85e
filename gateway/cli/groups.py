"""Groups of commands whose help shows every summary whole, wrapped to the terminal's width."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter


class WholeSummaries(TyperGroup):
    """A group that wraps the summaries of its commands; the inherited one cuts them with "..."."""

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write a row for each command that is not hidden."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, each.get_short_help_str(sys.maxsize)) for name, each in commands if each and not each.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
