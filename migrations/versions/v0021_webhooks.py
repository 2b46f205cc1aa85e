"""Queue of webhook messages. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "webhook_events",
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("url", sa.String(length=512), nullable=False),
        sa.Column("account", sa.String(length=8), nullable=False),
        sa.Column("account_id", sa.String(length=256), nullable=False),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("granted_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("reset_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("accepted", sa.Integer(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
        sa.UniqueConstraint(
            "account", "account_id", "threshold", "granted_nanousd", "reset_at_ms", "url", name="webhook_events_once"
        ),
    )
    waiting = sa.text("done_at_ms IS NULL")
    op.create_index(
        "webhook_events_due", "webhook_events", ["due_at_ms"], sqlite_where=waiting, postgresql_where=waiting
    )


def downgrade() -> None:
    """Undo this revision."""
    op.drop_table("webhook_events")
