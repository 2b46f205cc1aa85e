"""Generated admin key of a gateway without a configured one, in a file of mode 0600.

The file is beside the SQLite database, with the same readers. Replicas on Postgres must share one key, so there it has
to be configured.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.config.reader import SettingsError
from gateway.config.settings import Settings
from gateway.config.values import Secret

_PLACEHOLDER = re.compile(
    r"change.?me|example|placeholder|your[-_]|replace[-_]?|x{6,}|0123456789|1234567890", re.IGNORECASE
)

_WELL_KNOWN = re.compile(
    r"sk-(?:1234\d*|test|master|secret|admin|password|litellm)?(?:[-_]?(?:master[-_]?)?key)?", re.IGNORECASE
)

MIN_MASTER_KEY_CHARS = 24

REMEDY = (
    "write os.environ/NAME and set that variable to `sk-` and the output of `openssl rand -hex 24`, or remove the key: "
    "on SQLite one is generated at the first start"
)

SQLITE_PREFIX = "sqlite:///"


@dataclass(frozen=True, slots=True)
class WithMasterKey:
    """Settings with a master key, the `file` of a generated one, and whether it was `made` now."""

    settings: Settings
    file: Path | None
    made: bool


def with_stored_master_key(settings: Settings) -> WithMasterKey:
    """Add the stored master key to settings without one, generating it when missing.

    Raises SettingsError when the key cannot be stored or the stored key is weak or readable by others.
    """
    if settings.general.master_key is not None:
        return WithMasterKey(settings, None, made=False)
    file = master_key_file(settings)
    if file is None:
        raise SettingsError(
            ["general_settings.master_key: expected a key (replicas on Postgres share it), got nothing"]
        )
    made = _create(file)
    general = replace(settings.general, master_key=Secret(_read(file)))
    return WithMasterKey(replace(settings, general=general), file, made)


def master_key_file(settings: Settings) -> Path | None:
    """The key file beside the database, `seqroute.master-key`; None on Postgres."""
    url = settings.general.database_url.reveal()
    if not url.startswith(SQLITE_PREFIX):
        return None
    return Path(url.removeprefix(SQLITE_PREFIX)).with_suffix(".master-key")


def _create(file: Path) -> bool:
    """Write a new key to a temporary file first, so that no process reads a partial key."""
    if file.exists():
        return False
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"sk-{secrets.token_urlsafe(32)}\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
    except OSError as error:
        raise SettingsError([f"{file.name}: expected a folder to keep the master key in: {error.strerror}"]) from error
    return True


def _read(file: Path) -> str:
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise SettingsError([f"{file.name}: expected mode 0600, because it holds the master key"])
        key = file.read_text().strip()
    except OSError as error:
        raise SettingsError([f"{file.name}: expected a readable master key: {error.strerror}"]) from error
    weakness = weakness_of_master_key(key)
    if weakness is not None:
        raise SettingsError([f"{file.name}: {weakness}"])
    return key


def problem_of_master_key(key: str) -> str | None:
    """Weakness of a master key with the remedy, without the key itself; None for a strong key."""
    weakness = weakness_of_master_key(key)
    return None if weakness is None else f"{weakness}; {REMEDY}"


def weakness_of_master_key(key: str) -> str | None:
    """Weakness of a master key, without the key itself; None for a strong key."""
    if not key.startswith("sk-"):
        return 'expected a key that begins with "sk-"'
    if _WELL_KNOWN.fullmatch(key) or _PLACEHOLDER.search(key):
        return "expected a secret key, got a well-known or placeholder one"
    if len(key) < MIN_MASTER_KEY_CHARS:
        return f"expected at least {MIN_MASTER_KEY_CHARS} characters, got {len(key)}"
    if len(key) > 512 or not key.isascii() or not key.isprintable() or " " in key:
        return "expected at most 512 printable ASCII characters without spaces"
    if len(set(key[3:])) < 8:
        return "expected a random key, got fewer than 8 different characters"
    return None
