"""Turns of one session that run beside each other merge what they remember; a fingerprint's newest session is found.

The functions are made anew as they are now. Expand only: what a gateway of the revision before sends still means the
same to them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.apply_function import APPLY
from migrations.value_functions import REMEMBER

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    fingerprinted = sa.text("substr(session_id, 1, 3) = 'fp:'")
    op.create_index(
        "sessions_fingerprints",
        "sessions",
        ["tenant_id", "session_id"],
        postgresql_where=fingerprinted,
        sqlite_where=fingerprinted,
        postgresql_ops={"session_id": "text_pattern_ops"},
    )
    if op.get_bind().dialect.name == "postgresql":
        for statement in (REMEMBER, APPLY):
            op.get_bind().execution_options(no_parameters=True).exec_driver_sql(statement)


def downgrade() -> None:
    op.drop_index("sessions_fingerprints", table_name="sessions")
