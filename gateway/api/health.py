"""Liveness, readiness and metrics endpoints for orchestrators and Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from gateway.http import json_response
from gateway.metrics import Metrics


@dataclass(slots=True)
class Lifecycle:
    """State of this worker (starting, serving, draining) and of its ledger."""

    serving: bool = False
    """Connections are served, with or without a ledger."""
    started: bool = False
    draining: bool = False
    ledger_up: bool = False
    draining_since_s: float = 0.0
    """On the monotonic clock."""

    @property
    def ready(self) -> bool:
        """Turns can be served."""
        return self.started and self.ledger_up and not self.draining

    def drain(self) -> None:
        """Stop accepting requests. Only the first call has an effect; safe in a signal handler."""
        if not self.draining:
            self.draining_since_s = time.monotonic()
            self.draining = True


class Health:
    """Routes that need no key."""

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics, refresh: Callable[[], None]) -> None:
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._refresh = refresh

    async def livez(self, request: Request) -> Response:
        """Report that the process runs."""
        return json_response({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """200 when ready; 503 with the reason while starting, draining or without a ledger."""
        state = self._lifecycle
        if state.ready:
            return json_response({"status": "ok"})
        reason = "draining" if state.draining else "starting" if not state.started else "ledger_unavailable"
        return json_response({"status": reason}, 503, {"Retry-After": "1"})

    async def metrics(self, request: Request) -> Response:
        """Metrics in the Prometheus text format."""
        self._refresh()
        return Response(generate_latest(self._metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})
