"""A function with which budgets that were set by hand hold against headers. Expand only.

The functions are made after the last revision; this one tells a gateway that needs them from a database without.
"""

from __future__ import annotations

from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change no table."""


def downgrade() -> None:
    """Drop the function; that of 0032 does not call it."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION IF EXISTS seqroute_budget_header(text, text, int)")
