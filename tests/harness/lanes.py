"""The same tests on both lanes: an upstream whose calls are made to take one."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.providers.direct import PLAIN_PROVIDERS
from gateway.providers.providers import Call, Outgoing, Upstream

LANES = ("thin", "litellm")


class OnLane(Upstream):
    """Calls take `lane`; those of providers that have no thin lane take LiteLLM's in any case."""

    def __init__(self, lane: str) -> None:
        super().__init__()
        self._lane = lane

    def outgoing(self, call: Call) -> Outgoing:
        plain = call.litellm_model.partition("/")[0] in PLAIN_PROVIDERS
        return super().outgoing(replace(call, lane=self._lane if plain else "auto"))
