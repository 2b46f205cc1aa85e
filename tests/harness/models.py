"""Catalogue entries and chat requests for tests: plausible by default, every part replaceable.

Prices are USD per million tokens, so that a token of `1.0` costs 1,000 nano-USD.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
from msgspec import structs

from gateway.catalog.models import Catalog, Deployment, Model
from gateway.catalog.prices import Prices
from gateway.config.settings import NO_LIMITS, LimitSettings
from gateway.dialects.message_digests import MessageDigests
from gateway.dialects.request import ChatRequest, parse_chat
from gateway.ledger.records import merge_memory
from gateway.routing.session import SessionMemory, memory_update

FEMTOUSD_PER_MTOK_USD = 10**9


def prices(input_usd: float = 1.0, output_usd: float = 2.0, **more: Any) -> Prices:
    """`more` are fields of Prices in femto-USD."""
    return Prices(round(input_usd * FEMTOUSD_PER_MTOK_USD), round(output_usd * FEMTOUSD_PER_MTOK_USD), **more)


def deployment(deployment_id: str = "small#0", billed: Prices | None = None, **changes: Any) -> Deployment:
    fields: dict[str, Any] = {
        "deployment_id": deployment_id, "litellm_model": "openai/small", "prices": billed or prices(),
        "api_base": "http://provider.invalid/v1", "api_key": None, "api_version": None, "organization": None,
        "timeout_s": 10.0, "stream_timeout_s": 10.0, "weight": 1.0, "order": 0, "limits": NO_LIMITS,
        "extra_headers": {}, "provider_params": {},
    }  # fmt: skip
    return Deployment(**(fields | changes))


def model(name: str = "small", charged: Prices | None = None, **changes: Any) -> Model:
    """A chat model with one deployment `NAME#0` at the same prices."""
    charged = charged or prices()
    fields: dict[str, Any] = {
        "name": name, "mode": "chat", "prices": charged, "max_input_tokens": 100_000, "max_output_tokens": 4_000,
        "capabilities": frozenset({"tools", "response_schema"}), "quality_prior": 0.6,
        "deployments": (deployment(f"{name}#0", charged),),
    }  # fmt: skip
    return Model(**(fields | changes))


def catalog(*models: Model, **aliases: str) -> Catalog:
    return Catalog({m.name: m for m in models}, aliases, digest="test")


def chat(messages: Any = "hello", **fields: Any) -> ChatRequest:
    """A parsed body; a string is the one user message."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return parse_chat(json.dumps({"model": "auto", "messages": messages} | fields).encode(), LimitSettings())


def remember(memory: SessionMemory, **turn: Any) -> SessionMemory:
    """The memory after a turn with `messages`, as the ledger merges it."""
    turn["digests"] = MessageDigests(turn.pop("messages"))
    return SessionMemory.from_json(merge_memory(orjson.dumps(structs.asdict(memory)).decode(), memory_update(**turn)))
