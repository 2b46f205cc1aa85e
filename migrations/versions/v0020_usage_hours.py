"""Hourly sums for the dashboard and the report. Expand only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    counts = ("turns", "spent_nanousd", "input_tokens", "cached_tokens", "output_tokens", "estimated_turns",
              "forced_turns", "cut_turns")  # fmt: skip
    _hourly("usage_hours", *(_count(name) for name in counts))
    _hourly(
        "baseline_hours",
        *(_count(name) for name in ("turns", "predicted_nanousd", "billed_nanousd", "quality_turns")),
        sa.Column("quality_sum", sa.Float(), server_default="0", nullable=False),
    )
    op.create_table(
        "rollup_progress",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("through_entry_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("sessions_by_use", "sessions", ["updated_at_ms"])


def downgrade() -> None:
    """Undo this revision."""
    op.drop_index("sessions_by_use", table_name="sessions")
    for table in ("rollup_progress", "baseline_hours", "usage_hours"):
        op.drop_table(table)


def _hourly(name: str, *columns: sa.Column[object]) -> None:
    op.create_table(
        name,
        sa.Column("hour_ms", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("hour_ms", "tenant_id", "model"),
    )


def _count(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
