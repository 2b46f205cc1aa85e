"""The active configuration and its reload.

SIGHUP or a changed file reloads it. A bad file changes nothing: its problems are logged and the active configuration
stays. The database, the master key, timings, limits, the policy folder, the exploration floor and the text are fixed at
start; a change to them is logged and takes effect after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from watchfiles import awatch

from gateway.catalog.build import load
from gateway.catalog.models import Catalog
from gateway.clock import Clock, now_ms
from gateway.config.reader import SettingsError
from gateway.config.settings import Settings

_log = logging.getLogger("seqroute.configuration")
_FIXED = ("general", "timings", "limits")
_FIXED_OF_POLICY = ("directory", "exploration_floor", "text")
POLL_S = 2


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings and the catalogue built from them, swapped together on a reload."""

    settings: Settings
    catalog: Catalog


class LiveConfiguration:
    """Holder of the active configuration; a turn reads `current` once and keeps it to its end."""

    def __init__(self, first: Configuration, environ: Mapping[str, str], clock: Clock = time.time) -> None:
        self._environ = environ
        self._clock = clock
        self._current = first
        self._stamps_read = _stamps(first.settings.files)
        """Stamps of the files when they were read last."""
        self._reading = threading.Lock()
        self._assigning = threading.Lock()

    @property
    def current(self) -> Configuration:
        """Settings and catalogue, with the prices that are in force now."""
        coming = self._current.catalog.coming
        now = now_ms(self._clock) if coming else 0
        if coming and coming[0][1].valid_from_ms <= now:
            with self._assigning:  # a reload may end at the same time
                catalog = self._current.catalog.at(now)
                self._current = replace(self._current, catalog=catalog)
            _log.info("new prices are in force: catalogue %s", catalog.digest[:12])
        return self._current

    def reload(self) -> bool:
        """Read the files again; True when the new configuration is active.

        One at a time: of a signal and a changed file, the one that reads last counts.
        """
        with self._reading:
            return self._reload()

    def _reload(self) -> bool:
        before = self.current.settings
        self._stamps_read = _stamps(before.files)
        try:
            settings, catalog = load(before.path, self._environ, self._clock)
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
                _log.warning("%s_settings changed: restart to apply this", name)
        for name in _FIXED_OF_POLICY:
            if getattr(settings.policy, name) != getattr(before.policy, name):
                _log.warning("policy_settings.%s changed: restart to apply this", name)
        kept = {name: getattr(before, name) for name in _FIXED}
        policy = replace(settings.policy, **{name: getattr(before.policy, name) for name in _FIXED_OF_POLICY})
        with self._assigning:
            self._current = Configuration(replace(settings, **kept, policy=policy), catalog)
        _log.info("configuration reloaded: %d models, catalogue %s", len(catalog.models), catalog.digest[:12])
        return True

    async def follow(self) -> None:
        """Reload whenever a file changes, until cancelled.

        Folders are watched, not files: editors and deployment tools replace a file or repoint a symbolic link, which
        a watch on the old file would miss. Polling every POLL_S covers network file systems, where watches report
        nothing.
        """
        files = self.current.settings.files
        while files:
            folders = {file.parent for file in files}
            watch = awatch(
                *folders, watch_filter=None, recursive=False, debounce=1000, rust_timeout=POLL_S * 1000,
                yield_on_timeout=True,
            )  # fmt: skip
            async with contextlib.aclosing(watch) as looks:
                async for _ in looks:
                    if await asyncio.to_thread(_stamps, files) != self._stamps_read:
                        await asyncio.to_thread(self.reload)
                    if self.current.settings.files != files:
                        break
            # Watch the new set of files; they may change before the watch begins, so the first look reloads.
            files = self.current.settings.files

    def on_hangup(self) -> Callable[[], None]:
        """Reload on SIGHUP; return a function that removes the handler.

        Does nothing outside the main thread, where the embedding program handles signals.
        """
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, self.reload))

        def undo() -> None:
            loop.remove_signal_handler(signal.SIGHUP)

        return undo


def _stamps(files: Sequence[Path]) -> list[object]:
    """Change stamps (time, inode, size) of the files; None for a missing one."""
    stamps: list[object] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
    return stamps
