"""One-line diagnosis of an unreachable database: its address, the reason, and a remedy."""

from __future__ import annotations

from urllib.parse import quote

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

MAX_REASON_CHARS = 300
_NOT_WRITTEN = {
    "read-only": "lead general_settings.database_url to the primary",
    "readonly": "let this process write to the file and its folder",
    "no space": "free space where it stores its files",
    "is full": "free space where it stores its files",
    "disk i/o": "free space where it stores its files, or repair the disk",
}
"""What drivers say of a database that answers but takes no writes, and what to do."""


def address(url: URL) -> str:
    """The database's address without its password and options."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{url.database or ''}"
    host = url.host or url.query.get("host") or "localhost"
    user = f"{url.username}@" if url.username else ""
    port = f":{url.port}" if url.port else ""
    return f"{url.get_backend_name()}://{user}{host}{port}/{url.database or ''}"


def outage(url: URL, error: BaseException) -> str:
    """A message for the operator; never contains the password."""
    reason = _reason(url, error)
    for words, remedy in _NOT_WRITTEN.items():
        if words in reason.lower():
            return f"the database {address(url)} cannot be written to ({reason}): {remedy}"
    return f"the database {address(url)} cannot be reached ({reason}): {_advice(reason)}"


def _reason(url: URL, error: BaseException) -> str:
    """The first line of the root cause, as the driver or the server worded it."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    reason = (lines or [type(error).__name__])[0]
    if url.password:
        for secret in {str(url.password), quote(str(url.password)), quote(str(url.password), safe="")}:
            reason = reason.replace(secret, "***")
    return reason[:MAX_REASON_CHARS]


def _advice(reason: str) -> str:
    if "does not exist" in reason and "database" in reason:
        return "create it, then run `seqroute migrate`"
    if "authentication failed" in reason or "pg_hba.conf" in reason or "role " in reason:
        return "correct user and password in general_settings.database_url"
    return "start it, or correct general_settings.database_url"
