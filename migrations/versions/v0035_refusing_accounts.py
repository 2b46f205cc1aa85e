"""Add the time when the budget of a tenant or key last refused a turn. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "refusing_accounts",
        sa.Column("account", sa.String(length=8), nullable=False),
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("last_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "account_id"),
    )


def downgrade() -> None:
    """Undo this revision."""
    op.drop_table("refusing_accounts")
