"""Services that most parts of a gateway use: settings, storage, clocks, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from gateway.accounts.auth import Authenticator
from gateway.accounts.jwt import TokenVerifier, key_reader
from gateway.api.admission import call_left
from gateway.api.health import Lifecycle
from gateway.catalog.live import Configuration, LiveConfiguration
from gateway.catalog.models import Catalog
from gateway.catalog.tokens import TokenCounter
from gateway.clock import Clock, NewId, SteadyClock, Uniform, elapsed_s
from gateway.config.settings import Settings
from gateway.database.database import Database
from gateway.decisions.refused_turns import RefusedTurns
from gateway.ledger.leases import Leases
from gateway.ledger.ledger import Ledger
from gateway.ledger.offline import OfflineLedger
from gateway.metrics import Metrics
from gateway.policies.registry import PolicyRegistry
from gateway.providers.call import Lane
from gateway.providers.providers import Upstream
from gateway.routing.text_space import text_space
from gateway.tasks import Background
from policy.text import TextSpace


@dataclass(frozen=True, slots=True)
class Services:
    """Services of one gateway; `settings` are those of its start, `current()` those in force."""

    settings: Settings
    configuration: LiveConfiguration
    database: Database
    ledger: Ledger
    outage: OfflineLedger
    leases: Leases
    authenticator: Authenticator
    policies: PolicyRegistry
    upstream: Upstream
    tokens: TokenCounter
    text_space: TextSpace
    refused: RefusedTurns
    background: Background
    lifecycle: Lifecycle
    metrics: Metrics
    clock: Clock
    steady: SteadyClock
    uniform: Uniform
    new_id: NewId

    def current(self) -> Configuration:
        """The configuration in force."""
        return self.configuration.current


def make_services(
    settings: Settings,
    models: Catalog,
    *,
    environ: Mapping[str, str],
    upstream: Upstream,
    clock: Clock,
    uniform: Uniform,
    new_id: NewId,
) -> Services:
    """Create the services of one gateway; nothing starts yet."""
    general = settings.general
    assert general.master_key is not None, "the caller provides a master key"
    database = Database(general.database_url.reveal(), serving=True)
    steady = SteadyClock(clock)
    ledger = Ledger(database, clock=steady)
    signed = general.jwt
    tokens = None if signed is None else TokenVerifier(signed, key_reader(signed.jwks), clock, elapsed_s)
    space = text_space(settings.policy.text)
    metrics = Metrics()
    upstream.on_call = partial(_count_call, metrics)
    return Services(
        settings=settings,
        configuration=LiveConfiguration(Configuration(settings, models), environ, clock),
        database=database,
        ledger=ledger,
        outage=OfflineLedger(
            settings.policy.directory / "outage",
            cap_nanousd=settings.limits.outage_cap_nanousd,
            clock=steady,
            new_id=new_id,
        ),
        leases=Leases(ledger, steady, ttl_s=settings.timings.hold_ttl_s),
        authenticator=Authenticator(database, general.master_key, clock, new_id, tokens=tokens),
        policies=PolicyRegistry(settings.policy, database, space.version),
        upstream=upstream,
        tokens=TokenCounter(),
        text_space=space,
        refused=RefusedTurns(clock),
        background=Background(),
        lifecycle=Lifecycle(),
        metrics=metrics,
        clock=clock,
        steady=steady,
        uniform=uniform,
        new_id=new_id,
    )


def _count_call(metrics: Metrics, lane: Lane) -> None:
    """A call leaves for its provider: its request no longer counts as starting."""
    metrics.upstream_calls.labels(lane).inc()
    call_left()
