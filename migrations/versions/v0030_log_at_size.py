"""Refused turns, lowered answer limits, retention, monthly partitions of decisions.

A decision's id begins with the time at which it was made, so ranges of ids are ranges of time: the primary key stays
the id alone, and a query by id reads one partition. Rows that exist are not copied: their table becomes the partition
of everything before the next month. Databases whose collation sorts letters before digits keep one table.

Stop the gateways for it on Postgres: `decisions` is locked until the upgrade has read it once, to prove that the rows
fit their partition, which takes as long as the disk needs to read the table without its indexes and large values.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

INDEXES = {
    "decisions_by_session": "(tenant_id, session_id, turn)",
    "decisions_by_completion": "(tenant_id, completion_id)",
    "decisions_by_time": "(created_at_ms)",
    "decisions_pending": "(created_at_ms) WHERE status = 'pending'",
}
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "refused_turns",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=128), nullable=False),
        sa.Column("code", sa.String(length=48), nullable=False),
        sa.Column("turns", sa.BigInteger(), nullable=False),
        sa.Column("first_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", "code"),
    )
    op.create_index("refused_turns_by_time", "refused_turns", ["last_at_ms"])
    op.create_table(
        "log_retention",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("through_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.add_column("decisions", sa.Column("lowered_max_tokens", sa.BigInteger(), nullable=True))
    op.add_column("usage_hours", sa.Column("lowered_turns", sa.BigInteger(), nullable=False, server_default="0"))
    if op.get_bind().dialect.name == "postgresql" and _digits_first():
        _partition()


def downgrade() -> None:
    """Undo this revision."""
    if op.get_bind().dialect.name == "postgresql":
        _join_partitions()
    op.drop_column("usage_hours", "lowered_turns")
    op.drop_column("decisions", "lowered_max_tokens")
    op.drop_table("log_retention")
    op.drop_table("refused_turns")


def _digits_first() -> bool:
    found = op.get_bind().execute(sa.text("SELECT 'dec_9' < 'dec_a' AND 'dec_0' < 'dec_1' AND 'dec_a' < 'dec_z'"))
    return bool(found.scalar_one())


def _partition() -> None:
    rows = bool(op.get_bind().execute(sa.text("SELECT EXISTS (SELECT FROM decisions)")).scalar_one())
    op.execute("ALTER TABLE decisions RENAME TO decisions_before")
    op.execute("ALTER INDEX decisions_pkey RENAME TO decisions_before_pkey")
    for name in INDEXES:
        op.execute(f"ALTER INDEX {name} RENAME TO {name.replace('decisions', 'decisions_before')}")
    op.execute(
        "CREATE TABLE decisions (LIKE decisions_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS) "
        "PARTITION BY RANGE (decision_id)"
    )
    op.execute("ALTER TABLE decisions ADD CONSTRAINT decisions_pkey PRIMARY KEY (decision_id)")
    for name, columns in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON decisions {columns}")
    op.execute("CREATE TABLE decisions_other PARTITION OF decisions DEFAULT WITH (fillfactor = 70)")
    if not rows:
        op.execute("DROP TABLE decisions_before")
        return
    now_ms = int(op.get_bind().execute(sa.text("SELECT extract(epoch FROM now()) * 1000")).scalar_one())
    month = datetime.fromtimestamp(now_ms / 1000, UTC)
    following = datetime(month.year + month.month // 12, month.month % 12 + 1, 1, tzinfo=UTC)
    bound = _first_id(int(following.timestamp() * 1000))
    op.execute(
        f"WITH moved AS (DELETE FROM decisions_before WHERE decision_id >= '{bound}' RETURNING *) "
        "INSERT INTO decisions_other SELECT * FROM moved"
    )
    through = f"decisions_through_{month:%Y_%m}"
    op.execute(f"ALTER TABLE decisions_before RENAME TO {through}")
    op.execute(f"ALTER TABLE decisions ATTACH PARTITION {through} FOR VALUES FROM (MINVALUE) TO ('{bound}')")


def _join_partitions() -> None:
    """One table again, with every row copied."""
    kind = sa.text("SELECT relkind = 'p' FROM pg_class WHERE oid = 'decisions'::regclass")
    if not op.get_bind().execute(kind).scalar_one():
        return
    op.execute("CREATE TABLE decisions_joined (LIKE decisions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
    op.execute("INSERT INTO decisions_joined SELECT * FROM decisions")
    # Functions use the row's type, and are made again by the next upgrade.
    op.execute("DROP TABLE decisions CASCADE")
    op.execute("ALTER TABLE decisions_joined RENAME TO decisions")
    op.execute("ALTER TABLE decisions SET (fillfactor = 70)")
    op.execute("ALTER TABLE decisions ADD CONSTRAINT decisions_pkey PRIMARY KEY (decision_id)")
    for name, columns in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON decisions {columns}")


def _first_id(at_ms: int) -> str:
    """The least id of a decision made at this time or later: ten characters of five bits."""
    return "dec_" + "".join(ALPHABET[at_ms >> shift & 31] for shift in range(45, -1, -5))
