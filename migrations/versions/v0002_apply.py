"""Postgres: the ledger's operations as functions, so that a group of them is one round trip.

SQLite needs none: there the gateway's writer thread runs the same laws in Python.
"""

from __future__ import annotations

from alembic import op

from migrations.apply_function import APPLY
from migrations.value_functions import NEXT_RESET, REMEMBER

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for statement in (NEXT_RESET, REMEMBER, APPLY):
        # The driver must not look for parameters: PL/pgSQL has percent signs of its own.
        op.get_bind().execution_options(no_parameters=True).exec_driver_sql(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute("DROP FUNCTION seqroute_apply(boolean, boolean, boolean, jsonb)")
    op.execute("DROP FUNCTION IF EXISTS seqroute_remember(text, text)")
    op.execute("DROP FUNCTION seqroute_next_reset(text, bigint)")
