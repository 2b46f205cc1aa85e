"""Feedback is found by its time: a night reads the last weeks of it, the monitor the last days."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("feedback_by_time", "feedback", ["created_at_ms"])


def downgrade() -> None:
    op.drop_index("feedback_by_time", table_name="feedback")
