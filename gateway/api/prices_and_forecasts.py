"""Current prices, and forecasts of the remaining cost of a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from msgspec import structs
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts import sessions
from gateway.accounts.auth import Authenticator
from gateway.accounts.fields import balance_fields, read_usd
from gateway.accounts.sessions import SESSION_ID
from gateway.catalog.live import Configuration
from gateway.catalog.models import Catalog, Model
from gateway.catalog.prices import Prices, Rates
from gateway.clock import Clock, now_ms
from gateway.database.database import Database
from gateway.decisions.forecasts import SessionForecasts
from gateway.dialects.request import parse_object
from gateway.errors import InvalidRequest, NotFound
from gateway.http import header_map, json_response, read_body, refuse_unknown

_PER_UNIT = frozenset({"image", "request"})


class PricesAndForecasts:
    """`GET /prices` and `POST /forecast`; both are read-only and free."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        database: Database,
        authenticator: Authenticator,
        clock: Clock,
        forecasts: SessionForecasts,
    ) -> None:
        self._configuration = configuration
        self._database = database
        self._authenticator = authenticator
        self._clock = clock
        self._forecasts = forecasts

    async def prices(self, request: Request) -> Response:
        """Current prices of every model that this key may use."""
        caller = await self._authenticator.reader(header_map(request))
        catalog = self._configuration().catalog
        lists = [catalog.resolve_all(names) for names in (caller.key_models, caller.tenant_models)]
        allowed = (model for model in catalog.served if all(names is None or model.name in names for names in lists))
        data = [_model_prices(model, catalog) for model in allowed]
        return json_response({"object": "list", "at_ms": now_ms(self._clock), "data": data})

    async def forecast(self, request: Request) -> Response:
        """Remaining cost of a session: quantiles from the tenant's finished sessions."""
        caller = await self._authenticator.reader(header_map(request))
        settings = self._configuration().settings
        body = parse_object(await read_body(request, settings.limits), settings.limits)
        refuse_unknown(body, ("session_id", "budget_usd"))
        budget_nanousd = read_usd(body, "budget_usd")
        session_id = body.get("session_id")
        if not isinstance(session_id, str) or not SESSION_ID.fullmatch(session_id):
            raise InvalidRequest("session_id: expected 1 to 128 of A-Z a-z 0-9 . _ : -", param="session_id")

        def read(connection: Connection) -> dict[str, Any]:
            found = sessions.get_session(connection, caller.tenant_id, session_id)
            balance = found.balance
            if budget_nanousd is not None:  # what the session would have left with it
                balance = structs.replace(balance, granted_nanousd=budget_nanousd)
            forecast = self._forecasts.read(connection, caller.tenant_id, session_id, balance.spendable_nanousd)
            return {"session_id": session_id, **balance_fields(balance), **forecast}

        try:
            return json_response(await self._database.read(read))
        except NotFound as error:
            raise NotFound("session: no such session", param="session_id") from error


def _model_prices(model: Model, catalog: Catalog) -> dict[str, Any]:
    """A model's prices now, and the dated ones of its deployments that follow."""
    changes = [
        {"valid_from_ms": dated.valid_from_ms, **_price_list(dated.prices)}
        for name, dated in catalog.coming
        if name == model.name
    ]
    return {"model": model.name, **_price_list(model.prices), "changes": changes}


def _price_list(prices: Prices) -> dict[str, Any]:
    low, medium, high = prices.search_femtousd
    return {
        **_token_prices(prices),
        "web_search_usd": {"low": low / 1e15, "medium": medium / 1e15, "high": high / 1e15},
        "google_maps_query_usd": prices.maps_femtousd / 1e15,
        "citation_usd_per_million_tokens": prices.citation_femtousd / 1e9,
        "service_tiers": {name: _token_prices(tier) for name, tier in prices.service_tiers},
    }


def _token_prices(prices: Prices) -> dict[str, Any]:
    thresholds = [tier.above_prompt_tokens for tier in prices.tiers]
    tiers = [{"above_prompt_tokens": above, **_rates(prices.at(above + 1))} for above in thresholds]
    return {**_rates(prices.at(0)), "tiers": tiers}


def _rates(rates: Rates) -> dict[str, float]:
    """USD per million tokens; per image or call where the price is per unit."""
    usd = {}
    for field in fields(rates):
        name, femtousd = field.name.removesuffix("_femtousd"), getattr(rates, field.name)
        if name in _PER_UNIT:
            usd[f"{name}_usd"] = femtousd / 1e15
        else:
            usd[f"{name}_usd_per_million_tokens"] = femtousd / 1e9
    return usd
