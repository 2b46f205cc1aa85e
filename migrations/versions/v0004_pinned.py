"""A pin on the champion that nightly runs and trials respect."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("policies", sa.Column("pinned", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    """Undo this revision."""
    op.drop_column("policies", "pinned")
