"""Alembic's environment, run inside the transaction of `migrations.upgrade`."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from gateway.database.tables import metadata
from migrations.upgrade import limit_waits

LOCK = 0x5E9_0011
"""Advisory lock shared by all replicas: its holder migrates, the others wait and find nothing to do."""

connection = context.config.attributes["connection"]
if connection is None:
    raise RuntimeError('run migrations with "seqroute migrate", which provides the connection')
if connection.dialect.name == "postgresql":
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    limit_waits(connection)
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True, render_as_batch=True)
context.run_migrations()
