"""Fallbacks: the models that answer a turn whose model cannot, in LiteLLM's configuration.

A fallback is not the policy's draw: its decision has the reason `fallback`, and training leaves it out. Embeddings of
different models cannot be compared, so only the same model under another name answers for one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from gateway.accounts.auth import Caller
from gateway.catalog.live import Configuration
from gateway.catalog.models import Catalog, Model
from gateway.config.settings import RouterSettings
from gateway.dialects.request import ChatRequest
from gateway.providers.balance import LoadBalancer
from gateway.providers.cooldown import Breaker
from gateway.providers.errors import (
    BrokenMidAnswer,
    CallRefused,
    DialectFault,
    MessagesRefused,
    RejectedFault,
    UpstreamFault,
)
from gateway.routing.guard import BUSY, TOO_SMALL, UNHEALTHY, Eligibility, RequestedModel, feasible

Cause = Literal["failure", "context_window", "content_policy"]
FALLBACK = "fallback"
"""The reason of such a decision."""
EVERY_MODEL = "*"
_CAUSES: Mapping[str, Cause] = {"context_length_exceeded": "context_window", "content_filter": "content_policy"}
_EXCLUSIONS: Mapping[str, Cause] = {UNHEALTHY: "failure", BUSY: "failure", TOO_SMALL: "context_window"}
NOT_FOUND = 404


def cause_of(fault: UpstreamFault) -> Cause | None:
    """The kind of fallbacks that a failed call needs; None: none would help, or it is paid for."""
    if isinstance(fault, MessagesRefused):
        return "failure"
    if fault.usage is not None or isinstance(fault, CallRefused | BrokenMidAnswer):
        return None
    if isinstance(fault, RejectedFault):
        return _CAUSES.get(
            fault.code, "failure" if isinstance(fault, DialectFault) or fault.status == NOT_FOUND else None
        )
    return "failure"


def chain(router: RouterSettings, catalog: Catalog, cause: Cause, requested: str, model: str) -> tuple[str, ...]:
    """The models to try, in order; `requested` is the client's name of the failed `model`.

    As in LiteLLM, the general fallbacks also serve a cause that has no configuration of its own.
    """
    special = {
        "failure": {},
        "context_window": router.context_window_fallbacks,
        "content_policy": router.content_policy_fallbacks,
    }[cause]
    general: Mapping[str, tuple[str, ...]] = {EVERY_MODEL: router.default_fallbacks} | dict(router.fallbacks)
    configured = special or general
    of_this = [name for name in configured if name != EVERY_MODEL and catalog.aliases.get(name, name) == model]
    name = requested if requested in of_this else (of_this or [EVERY_MODEL])[0]
    found = (catalog.resolve(target) for target in configured.get(name, ()))
    return tuple(each.name for each in found if each is not None)


def eligible_fallback(
    cause: Cause,
    tried: Sequence[str],
    chat: ChatRequest,
    caller: Caller,
    prompt_tokens: int,
    *,
    configuration: Configuration,
    breaker: Breaker,
    balancer: LoadBalancer,
) -> Eligibility | None:
    """The first fallback that can serve this request, in place of the models that were tried.

    Those of the first model come before those of its last fallback. The guard holds for it as for every candidate:
    capabilities, context, allow-lists, health. Reasoning that only its own model can read goes to no other.
    """
    router, catalog = configuration.settings.router, configuration.catalog
    failed = catalog.models.get(tried[0])
    if chat.provider_bound or failed is None:
        return None
    names = [name for model in (tried[0], tried[-1]) for name in chain(router, catalog, cause, chat.model, model)]
    for name in names:
        if name in tried or not _may_stand_in(failed, catalog.models[name]):
            continue
        options = feasible(
            chat,
            RequestedModel(pinned=name, preset=None),
            catalog,
            breaker,
            balancer,
            allow_lists=(caller.tenant_models, caller.key_models),
            bound_to=None,
            prompt_tokens=prompt_tokens,
        )
        able = [option for option in options if option.model.name == name and not option.why_not]
        if able:  # of the efforts the usual one
            return able[len(able) // 2]
    return None


def cause_of_exclusion(options: Collection[Eligibility], pinned: str | None) -> Cause | None:
    """The kind of fallbacks for a requested model that cannot be called at all."""
    causes = (_EXCLUSIONS.get(option.why_not) for option in options if option.model.name == pinned)
    return next(filter(None, causes), None)


def _may_stand_in(failed: Model, other: Model) -> bool:
    return failed.mode != "embedding" or _provider_models(failed) == _provider_models(other)


def _provider_models(model: Model) -> frozenset[str]:
    return frozenset((each.base_model or each.litellm_model).rpartition("/")[2] for each in model.deployments)
