"""Counts of answers by model and kind of prompt, for the quotas of exploration. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "exploration_answers",
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("answers", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("model", "kind"),
    )


def downgrade() -> None:
    """Undo this revision."""
    op.drop_table("exploration_answers")
