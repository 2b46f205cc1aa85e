"""The ASGI application: services, the objects of a turn, routes, and admission before them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp

from gateway.api.admission import Admission, Bodies
from gateway.api.slots import SlotLimits, Slots
from gateway.catalog import build as catalog
from gateway.catalog.models import Catalog
from gateway.clock import Clock, Entropy, NewId, Uniform, time_ordered_ids
from gateway.composition.lifespan import Gateway, running
from gateway.composition.routes import all_routes, error_handlers
from gateway.composition.services import make_services
from gateway.composition.turns import compose
from gateway.config.master_key import with_stored_master_key
from gateway.config.settings import Settings
from gateway.providers.providers import Upstream

MAX_LARGE_BODIES = 8
"""Largest request bodies held in memory at once; the limit is on their total size."""
COLLECTOR_THRESHOLDS = (20_000, 20, 20)


def from_environment() -> ASGIApp:
    """Build the gateway of the file in SEQROUTE_CONFIG; the factory for uvicorn."""
    settings, models = catalog.load(Path(os.environ.get("SEQROUTE_CONFIG", "gateway.yaml")), os.environ)
    app = build(with_stored_master_key(settings).settings, models, environ=os.environ)
    app_parts(app).on_started = tune_garbage_collection
    return app


def tune_garbage_collection() -> None:
    """Exclude the objects made at start from garbage collection, and collect less often.

    LiteLLM and JAX are some 400,000 objects; a full collection over them blocks all turns for a quarter of a second.
    Most objects of a turn are freed by reference counting.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def build(
    settings: Settings,
    models: Catalog,
    *,
    environ: Mapping[str, str] | None = None,
    upstream: Upstream | None = None,
    clock: Clock = time.time,
    uniform: Uniform | None = None,
    new_id: NewId | None = None,
) -> ASGIApp:
    """Build the gateway; `settings.general.master_key` must be set."""
    entropy = Entropy()
    services = make_services(
        settings,
        models,
        environ=environ or {},
        upstream=upstream or Upstream(),
        clock=clock,
        uniform=uniform or entropy.uniform,
        new_id=new_id or time_ordered_ids(clock, entropy.bytes),
    )
    parts = compose(services)
    app = Starlette(
        routes=all_routes(parts),
        lifespan=lambda _: running(parts),
        exception_handlers=error_handlers(),
    )
    app.router.redirect_slashes = False  # a path with a trailing slash is a 404 like any other
    app.state.parts = parts
    admission = _admission(app, parts)
    parts.shedding = admission.shedding()
    return admission


def _admission(app: ASGIApp, parts: Gateway) -> Admission:
    """Limits on requests under way; chats go from here to their endpoint without a search of the routes."""
    services = parts.services
    limits, metrics = services.settings.limits, services.metrics
    slots = Slots(SlotLimits(limits.parallel_requests, limits.tenant_parallel_requests, limits.admission_wait_s))
    metrics.running.set_function(lambda: slots.active)
    metrics.waiting.set_function(lambda: slots.waiting)
    return Admission(
        app,
        services.lifecycle,
        slots,
        Bodies(MAX_LARGE_BODIES * limits.body_bytes),
        services.authenticator.known_tenant,
        {("POST", prefix + "/chat/completions"): parts.endpoints.chat for prefix in ("/v1", "")},
        cors_origins=services.settings.general.cors_origins,
        on_refusal=metrics.count_refusal,
    )


def app_parts(app: ASGIApp) -> Gateway:
    """The parts of a gateway from `build`, for tests and embedding programs."""
    assert isinstance(app, Admission)
    assert isinstance(app.app, Starlette)
    state: Mapping[str, Any] = app.app.state._state
    found = state["parts"]
    assert isinstance(found, Gateway)
    return found
