"""Alembic runs this; the connection comes from `migrations.upgrade`, inside its transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from gateway.database.tables import metadata

LOCK = 0x5E9_0011
"""Any number, the same in every replica: who holds it migrates, the others wait and then find nothing to do."""

connection = context.config.attributes["connection"]
if connection is None:
    raise RuntimeError('run migrations with "seqroute migrate", which brings the connection')
if connection.dialect.name == "postgresql":
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True, render_as_batch=True)
context.run_migrations()
