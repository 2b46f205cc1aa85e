"""Beginnings of conversations without an id, in place of fingerprints.

A gateway of the version before serves on without the index of fingerprints, only slower.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "conversation_beginnings",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=24), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("opening", sa.Integer(), nullable=False),
        sa.Column("answer", sa.String(length=24), nullable=True),
        sa.Column("continued", sa.String(length=24), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key_id", "digest", "session_id"),
    )
    op.create_index("conversation_beginnings_by_time", "conversation_beginnings", ["at_ms"])
    op.drop_index("sessions_fingerprints", table_name="sessions")


def downgrade() -> None:
    """Undo this revision."""
    op.create_index(
        "sessions_fingerprints",
        "sessions",
        ["tenant_id", "session_id"],
        postgresql_where=sa.text("substr(session_id, 1, 3) = 'fp:'"),
        sqlite_where=sa.text("substr(session_id, 1, 3) = 'fp:'"),
        postgresql_ops={"session_id": "text_pattern_ops"},
    )
    op.drop_table("conversation_beginnings")
