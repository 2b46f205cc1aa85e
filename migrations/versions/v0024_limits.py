"""Rate limits, soft budgets and the earlier secret of a rotated key. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

ACCOUNT_COLUMNS = ("rpm", "tpm", "parallel", "soft_budget_nanousd")


def upgrade() -> None:
    """Add the columns and the counters."""
    for table in ("tenants", "keys"):
        for name in ACCOUNT_COLUMNS:
            op.add_column(table, sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("keys", sa.Column("previous_sha256", sa.LargeBinary(length=32), nullable=True))
    op.add_column("keys", sa.Column("previous_until_ms", sa.BigInteger(), nullable=True))
    op.create_index("keys_by_previous_secret", "keys", ["previous_sha256"], unique=True)
    op.add_column("holds", sa.Column("limited", sa.Integer(), nullable=True))
    op.add_column("holds", sa.Column("limit_key_id", sa.String(length=64), nullable=True))
    op.add_column("holds", sa.Column("limit_tokens", sa.BigInteger(), nullable=True))
    counted = sa.text("state = 'open' AND limited IS NOT NULL")
    op.create_index("holds_open_limited", "holds", ["tenant_id"], sqlite_where=counted, postgresql_where=counted)
    op.create_index("holds_open_limited_key", "holds", ["limit_key_id"], sqlite_where=counted, postgresql_where=counted)
    op.create_table(
        "rate_counts",
        sa.Column("account", sa.String(length=72), nullable=False),
        sa.Column("second", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "second"),
    )


def downgrade() -> None:
    """Drop them, with the functions that use them."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION IF EXISTS seqroute_limit(jsonb, bigint, bigint, text, bigint, text, bigint)")
        op.execute("DROP FUNCTION IF EXISTS seqroute_count(jsonb, bigint, bigint, bigint)")
        op.execute("DROP FUNCTION IF EXISTS seqroute_recount(holds, bigint, bigint)")
    op.drop_table("rate_counts")
    op.drop_index("holds_open_limited_key", "holds")
    op.drop_index("holds_open_limited", "holds")
    for name in ("limit_tokens", "limit_key_id", "limited"):
        op.drop_column("holds", name)
    op.drop_index("keys_by_previous_secret", "keys")
    op.drop_column("keys", "previous_until_ms")
    op.drop_column("keys", "previous_sha256")
    for table in ("keys", "tenants"):
        for name in reversed(ACCOUNT_COLUMNS):
            op.drop_column(table, name)
