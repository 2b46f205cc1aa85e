"""An index of entries goes that another one covers: `ledger_entries_once` begins with the hold as well."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ledger_entries_by_hold", table_name="ledger_entries")


def downgrade() -> None:
    op.create_index("ledger_entries_by_hold", "ledger_entries", ["hold_id"], unique=False)
