"""A reservation may carry the dispatch mark: one commit before a call instead of two. Only functions changed."""

from __future__ import annotations

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing: `migrations.upgrade` makes the functions after the last revision."""


def downgrade() -> None:
    """Nothing to undo."""
