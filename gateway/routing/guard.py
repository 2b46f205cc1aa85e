"""The guard: the eligible models of a turn, and the reasons that exclude the others.

The policy can only choose among eligible models. Conditions are the capabilities that the request needs, the context
window, the allow-lists of tenant and key, health, and the model of an open tool loop. Affordability, the last
condition, is added by `gateway.routing.estimates` from the current balances.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from msgspec import Struct, structs

from gateway.catalog.efforts import nearest
from gateway.catalog.hosted_tools import PROVIDER_FILES
from gateway.catalog.models import Catalog, Deployment, Model
from gateway.config.model_entry import CAPABILITY_KEYS
from gateway.config.settings import PRESETS
from gateway.dialects.request import ChatRequest
from gateway.errors import (
    ContextLengthExceeded,
    GatewayError,
    InvalidRequest,
    ModelNotFound,
    RateLimited,
    UpstreamError,
)
from gateway.providers.attachments import kinds_of_parts
from gateway.providers.balance import Demand, LoadBalancer
from gateway.providers.cooldown import Breaker
from gateway.providers.parameters import takes_effort
from gateway.wording import did_you_mean

NOT_ALLOWED = "not allowed"
"""The reason that excludes a model outside the allow-list of tenant or key."""

TOO_SMALL = "context too small"
UNHEALTHY = "unhealthy"
BUSY = "at its deployments' limits"

TOOL_LOOP = "tool loop on another model"
NOT_PINNED = "not the pinned model"
OTHER_EFFORT = "the client asks for another effort"
NO_EFFORT = "the request cannot carry an effort"
NO_FORM = "its provider has no form for the request"
EFFORT_REASONS = frozenset({OTHER_EFFORT, NO_EFFORT})
"""Reasons that exclude an effort of a model which another candidate stands for."""

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class RequestedModel:
    """The client's `model`: a pinned model, or any model under a preset of lambda."""

    pinned: str | None
    preset: str | None


class Eligibility(Struct, frozen=True):
    """One model of the catalogue and its reason for exclusion, empty if it is eligible."""

    model: Model
    healthy: tuple[Deployment, ...]
    why_not: str
    wait_s: int = 0
    """Seconds until a model at its deployments' limits has room."""
    certain: bool = True
    """False if only assumptions say that the model has what the request needs."""

    @property
    def capable(self) -> bool:
        """True if the model can serve the turn, now or once it has room."""
        return self.why_not in ("", BUSY)


def parse_model(requested: str, catalog: Catalog) -> RequestedModel:
    """Resolve `auto`, `auto@preset`, a catalogue name or an alias. Raises ModelNotFound."""
    name = requested
    if name == AUTO:
        return RequestedModel(pinned=None, preset=None)
    if name.startswith(AUTO + "@"):
        preset = name.removeprefix(AUTO + "@")
        if preset not in PRESETS:
            raise InvalidRequest(f"model: expected auto@ with one of {', '.join(PRESETS)}", param="model")
        return RequestedModel(pinned=None, preset=preset)
    model = catalog.resolve(name)
    if model is None:
        raise _unknown(requested)
    return RequestedModel(pinned=model.name, preset=None)


def refuse_unknown(requested: str, catalog: Catalog, allow_lists: Sequence[frozenset[str] | None]) -> None:
    """Raise ModelNotFound for a name that is none, or that an allow-list leaves out."""
    pinned = parse_model(requested, catalog).pinned
    allowed = map(catalog.resolve_all, allow_lists)
    if pinned is not None and any(names is not None and pinned not in names for names in allowed):
        raise _unknown(requested)


def feasible(
    chat: ChatRequest,
    requested: RequestedModel,
    catalog: Catalog,
    breaker: Breaker,
    balancer: LoadBalancer,
    *,
    allow_lists: Sequence[frozenset[str] | None],
    bound_to: str | None,
    prompt_tokens: int,
    tenant_id: str = "",
) -> list[Eligibility]:
    """The eligibility of every model, in catalogue order. `bound_to`: the model of a tool loop.

    A model whose efforts cannot be sent with this request is one more candidate, without an effort.
    """
    options = []
    demand = Demand("", prompt_tokens)
    allow_lists = [catalog.resolve_all(names) for names in allow_lists]
    for model, other_effort in _candidates(chat, catalog):
        healthy = tuple(breaker.healthy(model.deployments))
        why_not = _why_not(chat, requested, model, healthy, allow_lists, bound_to, prompt_tokens)
        if other_effort and why_not in ("", TOOL_LOOP):
            why_not = other_effort
        wait_s = balancer.wait_s(healthy, demand) if why_not in ("", TOOL_LOOP) else 0
        certain = requested.pinned is not None or _is_certain(model, chat)
        options.append(Eligibility(model, healthy, why_not or (BUSY if wait_s else ""), wait_s, certain))
    if requested.pinned is None and breaker.knows_losses:
        parts = kinds_of_parts(chat.messages)
        return _without_losses(options, lambda model: breaker.loses(tenant_id, model.deployments, parts))
    return options


def _without_losses(options: list[Eligibility], loses: Callable[[Model], bool]) -> list[Eligibility]:
    """The options without models whose providers have no place for a part, where others can serve the turn."""
    left = [
        structs.replace(option, why_not=NO_FORM) if not option.why_not and loses(option.model) else option
        for option in options
    ]
    return left if any(not option.why_not for option in left) else options


def _is_certain(model: Model, chat: ChatRequest) -> bool:
    """False for assumed capabilities, and for servers that may have a provider's dialect but not its tools."""
    if chat.forwarded is not None and chat.forwarded.required:
        return all(deployment.runs_tools for deployment in model.deployments)
    return chat.capabilities <= model.capabilities


def without_tool_loop(options: Sequence[Eligibility]) -> list[Eligibility]:
    """The options of a turn whose tool loop may move to another model."""
    return [
        structs.replace(option, why_not=BUSY if option.wait_s else "") if option.why_not == TOOL_LOOP else option
        for option in options
    ]


def without_form(options: Sequence[Eligibility], models: Collection[str]) -> list[Eligibility]:
    """The options of a turn, also in a tool loop, that has no form at these models' providers."""
    return [
        structs.replace(option, why_not=NO_FORM) if option.model.name in models else option
        for option in without_tool_loop(options)
    ]


def without_room(options: Sequence[Eligibility], model: str, wait_s: int) -> list[Eligibility]:
    """The options after a model's last room was taken by another turn."""
    return [
        structs.replace(option, why_not=BUSY, wait_s=wait_s)
        if option.model.name == model and option.why_not not in EFFORT_REASONS
        else option
        for option in options
    ]


def refuse_when_none(options: Sequence[Eligibility], chat: ChatRequest, prompt_tokens: int) -> None:
    """Raise the error that explains why no model is eligible, if none is."""
    requested, mode = chat.model, chat.mode
    reasons = [option.why_not for option in options]
    if not all(reasons):
        return
    decisive = [reason for reason in reasons if reason not in (NOT_PINNED, TOOL_LOOP, *EFFORT_REASONS)]
    if BUSY in decisive:
        raise at_limits(min(option.wait_s for option in options if option.why_not == BUSY), "could answer")
    if UNHEALTHY in decisive:
        raise UpstreamError("every model that could answer is failing; try again soon", headers={"Retry-After": "5"})
    if decisive and all(reason == NOT_ALLOWED for reason in decisive):
        raise _unknown(requested)
    if TOO_SMALL in decisive:
        raise _overflow([option.model for option in options if option.why_not == TOO_SMALL], prompt_tokens)
    own = () if chat.forwarded is None else chat.forwarded.needs
    if chat.forwarded is not None and any(need in reason for need in own for reason in decisive):
        raise chat.forwarded.refusal()
    if chat.file_by_id is not None and any(PROVIDER_FILES in reason for reason in decisive):
        raise InvalidRequest(
            f"{chat.file_by_id}: files by id belong to the operator's account at the provider and are not served here; "
            "send file_data, or ask for a model whose operator sets supports_provider_files",
            param=chat.file_by_id,
        )
    needs = sorted({reason for reason in decisive if reason}) or [f"its mode is not {mode}"]
    raise InvalidRequest(
        f"model: no model can serve this request: {'; '.join(needs)}{_hint(chat, decisive)}", param="model"
    )


def _hint(chat: ChatRequest, reasons: Sequence[str]) -> str:
    """What an operator writes if a model has what the request needs after all."""
    lacking = [key for key, name in CAPABILITY_KEYS.items() if name in chat.capabilities]
    stated = [f"{key}: true" for key in lacking if any(CAPABILITY_KEYS[key] in reason for reason in reasons)]
    return f" (where one can, its operator writes model_info: {', '.join(stated)})" if stated else ""


def at_limits(wait_s: int, which: str) -> GatewayError:
    """The error while no deployment has room; `which` says what those could do for the turn."""
    return RateLimited(
        f"every deployment that {which} is at its limit of requests, tokens or parallel calls; try again in {wait_s} s",
        headers={"Retry-After": str(wait_s)},
    )


def _unknown(requested: str) -> GatewayError:
    """The same error for unknown names and for names that this key may not use."""
    shown = requested if len(requested) <= 128 and requested.isprintable() else "(a name that cannot be shown)"
    # Of the names, only these are every key's.
    hint = did_you_mean(requested[:128], (AUTO, *(f"{AUTO}@{preset}" for preset in PRESETS)), cutoff=0.75)
    return ModelNotFound(
        f'The model "{shown}" does not exist, or this key may not use it: GET /v1/models lists the models that it may '
        f'use, and "{AUTO}" lets the gateway choose' + (f"; {hint}" if hint else ""),
        param="model",
    )


def _overflow(models: Sequence[Model], prompt_tokens: int) -> GatewayError:
    """OpenAI's wording, which clients look for to compact their history."""
    widest = max(model.max_input_tokens for model in models)
    return ContextLengthExceeded(
        f"This model's maximum context length is {widest} tokens, and the messages come to {prompt_tokens} tokens; "
        f"shorten them by at least {prompt_tokens - widest + 1} tokens",
        param="messages",
        details={
            "max_input_tokens": widest, "prompt_tokens": prompt_tokens, "excess_tokens": prompt_tokens - widest + 1
        },
    )  # fmt: skip


def _candidates(chat: ChatRequest, catalog: Catalog) -> Iterator[tuple[Model, str]]:
    """The models, or the efforts in their place, each with the reason why its effort is not this turn's."""
    for model in catalog.of_mode(chat.mode):
        levels = [level.effort for level in model.efforts]
        if not levels:
            yield model, ""
        elif chat.effort is not None:
            asked = nearest(chat.effort, levels)
            yield from ((level, "" if level.effort == asked else OTHER_EFFORT) for level in model.efforts)
        elif all(takes_effort(deployment, chat) for deployment in model.deployments):
            yield from ((level, "") for level in model.efforts)
        else:
            yield from ((level, NO_EFFORT) for level in model.efforts)
            yield model, ""


def _why_not(
    chat: ChatRequest,
    requested: RequestedModel,
    model: Model,
    healthy: Sequence[Deployment],
    allow_lists: Sequence[frozenset[str] | None],
    bound_to: str | None,
    prompt_tokens: int,
) -> str:
    if any(allowed is not None and model.name not in allowed for allowed in allow_lists):
        return NOT_ALLOWED
    if requested.pinned is not None and model.name != requested.pinned:
        return NOT_PINNED
    missing = chat.capabilities - model.possible_capabilities
    if missing:
        return "lacks " + ", ".join(sorted(missing))
    # Each embedding input has the whole context; the provider reports inputs that are too long.
    if chat.mode == "chat" and prompt_tokens >= model.max_input_tokens:
        return TOO_SMALL
    if not healthy:
        return UNHEALTHY
    if bound_to is not None and requested.pinned is None and model.name != bound_to:
        return TOOL_LOOP
    return ""
