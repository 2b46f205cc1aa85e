"""Refunds for late bills below the sweeper's estimate, and the time of the last reset.

A refund counts in an account only during the window in which the estimate was posted.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

BEFORE = "kind IN ('grant', 'reserve', 'settle', 'release', 'expire', 'orphan_post', 'late_post', 'overage', 'reset')"
AFTER = (
    "kind IN ('grant', 'reserve', 'settle', 'release', 'expire', 'orphan_post', 'late_post', 'refund', 'overage', "
    "'reset')"
)


def upgrade() -> None:
    """Apply this revision."""
    for table in ("tenants", "keys"):
        op.add_column(table, sa.Column("last_reset_at_ms", sa.BigInteger(), nullable=True))
    change_kinds(BEFORE, AFTER)


def downgrade() -> None:
    """Undo this revision."""
    change_kinds(AFTER, BEFORE)
    for table in ("tenants", "keys"):
        op.drop_column(table, "last_reset_at_ms")


def change_kinds(before: str, after: str) -> None:
    """Replace the CHECK on entry kinds without touching the rows, which are immutable.

    SQLite needs the table's stored text changed for that, as its documentation of ALTER TABLE describes.
    """
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("ledger_entries_kind", "ledger_entries")
        op.create_check_constraint("ledger_entries_kind", "ledger_entries", after)
        return
    bind = op.get_bind()
    version = bind.exec_driver_sql("PRAGMA schema_version").scalar_one()
    bind.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = bind.exec_driver_sql(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'ledger_entries'"
        " AND instr(sql, ?) > 0",
        (before, after, before),
    ).rowcount
    bind.exec_driver_sql(f"PRAGMA schema_version = {int(version) + 1}")
    bind.exec_driver_sql("PRAGMA writable_schema = RESET")
    if changed != 1:
        raise RuntimeError("ledger_entries: expected the CHECK of revision 0008 on its kinds, found another table text")
