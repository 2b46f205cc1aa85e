"""The open connections of a test server, so that none outlives its event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Connections:
    """Writers of a server's connections; `abort` when the server ends."""

    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def add(self, writer: asyncio.StreamWriter) -> None:
        """Note a connection that was accepted."""
        self._writers.add(writer)

    async def abort(self) -> None:
        """Cut what is open, and let the loop close it: a transport that is collected later is an error elsewhere."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        for _ in range(2):
            await asyncio.sleep(0)
