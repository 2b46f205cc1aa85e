"""Trees of sessions, and paused sessions. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

BEFORE = "state IN ('open', 'closed')"
AFTER = "state IN ('open', 'paused', 'closed')"


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("sessions", sa.Column("parent_session_id", sa.String(length=128), nullable=True))
    op.add_column("sessions", sa.Column("own_limit", sa.Integer(), nullable=False, server_default="1"))
    op.create_table(
        "session_ancestors",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("ancestor_id", sa.String(length=128), nullable=False),
        sa.Column("distance", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", "ancestor_id"),
    )
    op.create_index("session_ancestors_by_ancestor", "session_ancestors", ["tenant_id", "ancestor_id"])
    change_states(BEFORE, AFTER)


def downgrade() -> None:
    """Undo this revision; paused sessions become closed, and children sessions of their own."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION IF EXISTS seqroute_move_above(text, text, bigint, bigint, bigint, bigint)")
    op.execute("UPDATE sessions SET state = 'closed' WHERE state = 'paused'")
    change_states(AFTER, BEFORE)
    op.drop_index("session_ancestors_by_ancestor", "session_ancestors")
    op.drop_table("session_ancestors")
    for name in ("own_limit", "parent_session_id"):
        op.drop_column("sessions", name)


def change_states(before: str, after: str) -> None:
    """Replace the CHECK on session states without copying the table.

    SQLite needs the table's stored text changed for that, as its documentation of ALTER TABLE describes.
    """
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("sessions_state", "sessions")
        op.create_check_constraint("sessions_state", "sessions", after)
        return
    bind = op.get_bind()
    version = bind.exec_driver_sql("PRAGMA schema_version").scalar_one()
    bind.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = bind.exec_driver_sql(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'sessions'"
        " AND instr(sql, ?) > 0",
        (before, after, before),
    ).rowcount
    bind.exec_driver_sql(f"PRAGMA schema_version = {int(version) + 1}")
    bind.exec_driver_sql("PRAGMA writable_schema = RESET")
    if changed != 1:
        raise RuntimeError("sessions: expected the CHECK of revision 0001 on its states, found another table text")
