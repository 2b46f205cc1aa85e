"""Postgres functions: created by every upgrade, dropped below this revision."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Do nothing: `migrations.upgrade` creates the functions after the last revision."""


def downgrade() -> None:
    """Undo this revision."""
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute("DROP FUNCTION IF EXISTS seqroute_apply(boolean, boolean, boolean, jsonb)")
    op.execute("DROP FUNCTION IF EXISTS seqroute_remember(text, text)")
    op.execute("DROP FUNCTION IF EXISTS seqroute_next_reset(text, bigint)")
    op.execute("DROP FUNCTION IF EXISTS seqroute_now_ms()")
