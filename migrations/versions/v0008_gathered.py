"""Drop an index of entries by hold that `ledger_entries_once` covers."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.drop_index("ledger_entries_by_hold", table_name="ledger_entries")


def downgrade() -> None:
    """Undo this revision."""
    op.create_index("ledger_entries_by_hold", "ledger_entries", ["hold_id"], unique=False)
