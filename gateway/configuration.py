"""The configuration that is in force, and how it changes while the gateway serves.

SIGHUP or a change of a file reads everything again. A bad file changes nothing: its problems are logged and what was
in force stays. The database, the master key, timings and limits are fixed at the start; a change of those is named
in the log and waits for a restart.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from watchfiles import awatch

from gateway.catalog import Catalog, load
from gateway.settings import Settings, SettingsError

_log = logging.getLogger("seqroute.configuration")
_FIXED = ("general", "timings", "limits")


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
        kept = {name: getattr(before, name) for name in _FIXED}
        self.current = Configuration(replace(settings, **kept), catalog)
        _log.info("configuration reloaded: %d models, catalogue %s", len(catalog.models), catalog.digest[:12])
        return True

    async def follow(self) -> None:
        """Reload whenever a file changes, until cancelled."""
        files = self.current.settings.files
        if not files:
            return
        async for _ in awatch(*files, recursive=False, debounce=300):
            await asyncio.to_thread(self.reload)

    def on_hangup(self) -> Callable[[], None]:
        """Reload on SIGHUP; returns the undoing of it. Nothing in a thread: whoever embeds us handles signals."""
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, self.reload))

        def undo() -> None:
            loop.remove_signal_handler(signal.SIGHUP)

        return undo
