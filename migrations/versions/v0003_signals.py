"""Origin and exploration floor of decisions, and the daily cost of exploration.

Expand only: a gateway of the previous revision names its columns, so the new ones are null in its rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("decisions", sa.Column("origin", sa.String(length=8), nullable=True))
    op.add_column("decisions", sa.Column("exploration_floor", sa.Float(), nullable=True))
    op.create_table(
        "exploration_days",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("extra_nanousd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("quality_given_up", sa.Float(), server_default="0", nullable=False),
        sa.CheckConstraint("extra_nanousd >= 0", name="exploration_days_not_negative"),
        sa.PrimaryKeyConstraint("day"),
    )


def downgrade() -> None:
    """Undo this revision."""
    op.drop_table("exploration_days")
    op.drop_column("decisions", "exploration_floor")
    op.drop_column("decisions", "origin")
