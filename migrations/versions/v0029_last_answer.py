"""Money kept for a session's last answer, and the tenants that want one. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("tenants", sa.Column("wrap_up", sa.Integer(), nullable=True))
    op.add_column("sessions", sa.Column("kept_nanousd", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop them, with the function that uses them."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION IF EXISTS seqroute_free(bigint, bigint)")
    op.drop_column("sessions", "kept_nanousd")
    op.drop_column("tenants", "wrap_up")
