"""Reservations with the dispatch mark: one commit before a call instead of two."""

from __future__ import annotations

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Do nothing: only functions changed, which `migrations.upgrade` creates."""


def downgrade() -> None:
    """Do nothing: there is nothing to undo."""
