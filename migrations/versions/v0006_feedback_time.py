"""Index of feedback by time: nightly runs and trials read recent feedback."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_index("feedback_by_time", "feedback", ["created_at_ms"])


def downgrade() -> None:
    """Undo this revision."""
    op.drop_index("feedback_by_time", table_name="feedback")
