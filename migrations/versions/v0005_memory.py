"""Index for the newest session of a fingerprint."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    fingerprinted = sa.text("substr(session_id, 1, 3) = 'fp:'")
    op.create_index(
        "sessions_fingerprints",
        "sessions",
        ["tenant_id", "session_id"],
        postgresql_where=fingerprinted,
        sqlite_where=fingerprinted,
        postgresql_ops={"session_id": "text_pattern_ops"},
    )


def downgrade() -> None:
    """Undo this revision."""
    op.drop_index("sessions_fingerprints", table_name="sessions")
