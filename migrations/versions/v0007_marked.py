"""A reservation may carry the dispatch mark: one commit before a call instead of two.

The function is made anew as it is now. Expand only: a gateway of the revision before sends no checkpoint with its
reservations, which leaves the hold as it was, and marks it with an operation of its own.
"""

from __future__ import annotations

from alembic import op

from migrations.apply_function import APPLY

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.get_bind().execution_options(no_parameters=True).exec_driver_sql(APPLY)


def downgrade() -> None:
    """The function of this revision serves a gateway of the revision before as well."""
