"""Databases with today's tables, made once and copied: running every revision takes longer than many a test."""

from __future__ import annotations

import functools
import shutil
import tempfile
import weakref
from pathlib import Path

from sqlalchemy.engine import make_url

from gateway.database.database import transaction
from migrations.upgrade import current_revision, newest_revision, upgrade


def migrate(url: str) -> None:
    """Bring the database at `url` to today's revision; an SQLite file that is absent becomes a copy."""
    file = make_url(url).database if url.startswith("sqlite") else None
    if file and not Path(file).exists():
        shutil.copyfile(_template().path, file)
        return
    with transaction(url) as connection:
        migrated = current_revision(connection) == newest_revision()
    if not migrated:
        upgrade(url)


class _Template:
    """A migrated SQLite file in a folder that is removed with the process."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="seqroute-template-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder) / "template.db"
        upgrade(f"sqlite:///{self.path}")


@functools.cache
def _template() -> _Template:
    return _Template()
