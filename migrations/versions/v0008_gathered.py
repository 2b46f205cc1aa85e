"""New rows of a group are inserted by one statement per table; an index of entries that another one covers goes.

`ledger_entries_once` begins with the hold as well. The function is made anew as it is now.
"""

from __future__ import annotations

from alembic import op

from migrations.apply_function import APPLY

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ledger_entries_by_hold", table_name="ledger_entries")
    if op.get_bind().dialect.name == "postgresql":
        op.get_bind().execution_options(no_parameters=True).exec_driver_sql(APPLY)


def downgrade() -> None:
    op.create_index("ledger_entries_by_hold", "ledger_entries", ["hold_id"], unique=False)
