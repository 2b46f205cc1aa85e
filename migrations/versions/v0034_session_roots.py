"""The topmost session of a decision's tree: a tree is one sample. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("decisions", sa.Column("root_session_id", sa.String(length=128), nullable=True))


def downgrade() -> None:
    """Undo this revision."""
    op.drop_column("decisions", "root_session_id")
