"""The configuration that is in force, and how it changes while the gateway serves.

SIGHUP or a change of a file reads everything again. A bad file changes nothing: its problems are logged and what was
in force stays. The database, the master key, timings, limits, the policies' folder and the exploration floor are fixed
at the start; a change of those is named in the log and waits for a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from watchfiles import awatch

from gateway.catalog.models import Catalog, load
from gateway.config.reader import SettingsError
from gateway.config.settings import Settings

_log = logging.getLogger("seqroute.configuration")
_FIXED = ("general", "timings", "limits")
_FIXED_OF_POLICY = ("directory", "exploration_floor")
LOOK_S = 2


@dataclass(frozen=True, slots=True)
class Configuration:
    settings: Settings
    catalog: Catalog


class LiveConfiguration:
    """Holds the configuration in force; a turn reads `current` once and is served by it to its end."""

    def __init__(self, first: Configuration, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.current = first

    def reload(self) -> bool:
        """Read the file again; True when what it says is in force now."""
        before = self.current.settings
        try:
            settings, catalog = load(before.path, self._environ)
        except SettingsError as error:
            for problem in error.problems:
                _log.error("configuration not reloaded: %s", problem)
            return False
        for warning in (*settings.warnings, *catalog.warnings):
            _log.warning("%s", warning)
        if settings.general.master_key is None:
            settings = replace(settings, general=replace(settings.general, master_key=before.general.master_key))
        for name in _FIXED:
            if getattr(settings, name) != getattr(before, name):
                _log.warning("%s_settings changed: this waits for a restart", name)
        for name in _FIXED_OF_POLICY:
            if getattr(settings.policy, name) != getattr(before.policy, name):
                _log.warning("policy_settings.%s changed: this waits for a restart", name)
        kept = {name: getattr(before, name) for name in _FIXED}
        policy = replace(settings.policy, **{name: getattr(before.policy, name) for name in _FIXED_OF_POLICY})
        self.current = Configuration(replace(settings, **kept, policy=policy), catalog)
        _log.info("configuration reloaded: %d models, catalogue %s", len(catalog.models), catalog.digest[:12])
        return True

    async def follow(self) -> None:
        """Reload whenever a file changes, until cancelled.

        Folders are watched and the files in them looked at: editors and deployment tools put a new file in the old
        one's place, or turn a symbolic link, and a watch on the old file would never hear of it. A look every
        LOOK_S finds what no watch tells, as on network file systems.
        """
        files = self.current.settings.files
        seen = await asyncio.to_thread(_stamps, files)
        while files:
            folders = {file.parent for file in files}
            watch = awatch(
                *folders, watch_filter=None, recursive=False, debounce=300, rust_timeout=LOOK_S * 1000,
                yield_on_timeout=True,
            )  # fmt: skip
            async with contextlib.aclosing(watch) as looks:
                async for _ in looks:
                    before, seen = seen, await asyncio.to_thread(_stamps, files)
                    if seen != before and await asyncio.to_thread(self.reload) and self.current.settings.files != files:
                        break
            # Other files count now; they may have changed again before this watch began, so the first look reads them.
            files, seen = self.current.settings.files, []

    def on_hangup(self) -> Callable[[], None]:
        """Reload on SIGHUP; returns the undoing of it. Nothing in a thread: whoever embeds us handles signals."""
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, self.reload))

        def undo() -> None:
            loop.remove_signal_handler(signal.SIGHUP)

        return undo


def _stamps(files: Sequence[Path]) -> list[object]:
    """Differs when the content of a file may; a file that is not there counts as a state of its own."""
    stamps: list[object] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
    return stamps
