"""An index of sessions by the beginning of their id, for the dashboard. Expand only.

On Postgres its operator class makes LIKE use it under every collation. Building it holds back writes to `sessions`
for about a second per million rows.
"""

from __future__ import annotations

from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.create_index("sessions_by_id", "sessions", ["session_id"], postgresql_ops={"session_id": "text_pattern_ops"})


def downgrade() -> None:
    """Drop it."""
    op.drop_index("sessions_by_id", "sessions")
