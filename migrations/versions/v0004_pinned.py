"""A champion may be pinned: nightly runs and trials leave it where it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("policies", sa.Column("pinned", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("policies", "pinned")
