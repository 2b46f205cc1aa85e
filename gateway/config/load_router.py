"""Router settings (timeouts, retries, fallbacks, aliases) of both LiteLLM blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gateway.config import litellm_keys
from gateway.config.model_entry import LANES, ModelEntry
from gateway.config.reader import MAX_JSON_DEPTH, Located, Section, located_at
from gateway.config.settings import RETRIED_ERRORS, STRATEGIES, RouterSettings

_OTHER_STRATEGIES = ("priority", "provider-budget-routing")
"""LiteLLM's strategies that are not among ours."""

_REFUSED = "a request that was refused is not sent again as it is; it is ignored"
_NEVER_RETRIED = {
    "BadRequestErrorRetries": _REFUSED,
    "ContentPolicyViolationErrorRetries": _REFUSED,
    "NotFoundErrorRetries": _REFUSED,
    "TimeoutErrorRetries": "a call that may have been billed is not repeated; it is ignored",
}


def read_router(router: Section, litellm: Section) -> RouterSettings:
    """Read both blocks; `router_settings` overrides `litellm_settings`, as in LiteLLM."""
    default = RouterSettings()
    timeout_s = litellm.duration_s("request_timeout", default.timeout_s, minimum_s=0.1, maximum_s=86400.0)
    cooldown_s = litellm.duration_s("cooldown_time", default.cooldown_s, maximum_s=86400.0)
    aliases, hidden = _read_aliases(router)
    arguments = router.section("routing_strategy_args")
    settings = RouterSettings(
        retry_policy=_read_retry_policy(router),
        num_retries=router.integer(
            "num_retries", litellm.integer("num_retries", default.num_retries, maximum=10), maximum=10
        ),
        timeout_s=router.duration_s("timeout", timeout_s, minimum_s=0.1, maximum_s=86400.0) or default.timeout_s,
        stream_timeout_s=router.duration_s("stream_timeout", None, minimum_s=0.1, maximum_s=86400.0),
        allowed_fails=router.integer(
            "allowed_fails", litellm.integer("allowed_fails", default.allowed_fails, maximum=10**6), maximum=10**6
        ),
        cooldown_s=router.duration_s("cooldown_time", cooldown_s, maximum_s=86400.0) or 0.0,
        fallbacks=_read_fallbacks(litellm, "fallbacks") | _read_fallbacks(router, "fallbacks"),
        default_fallbacks=_listed_targets(router, "default_fallbacks") or _listed_targets(litellm, "default_fallbacks"),
        context_window_fallbacks=_read_fallbacks(litellm, "context_window_fallbacks")
        | _read_fallbacks(router, "context_window_fallbacks"),
        content_policy_fallbacks=_read_fallbacks(litellm, "content_policy_fallbacks")
        | _read_fallbacks(router, "content_policy_fallbacks"),
        max_attempts=router.optional_integer("max_attempts", minimum=1, maximum=20),
        model_group_alias=aliases,
        hidden_aliases=hidden,
        drop_params=litellm.flag("drop_params", default.drop_params) is True,
        lane=router.choice("lane", default.lane, LANES),
        routing_strategy=_read_strategy(router, default.routing_strategy),
        latency_ttl_s=arguments.duration_s("ttl", default.latency_ttl_s, minimum_s=1.0) or default.latency_ttl_s,
        latency_buffer=arguments.number("lowest_latency_buffer", default.latency_buffer),
        deployment_parallel=router.optional_integer("default_max_parallel_requests", minimum=1),
    )
    router.skip("default_litellm_params")  # read with each deployment
    for key in arguments.unread():
        arguments.ignore(key, "an argument of LiteLLM's strategies that is not supported here; it is ignored")
    for key in ("callbacks", "success_callback", "failure_callback"):
        guarding = [name for name in _names(litellm, key) if name in litellm_keys.GUARDING_CALLBACKS]
        if guarding:
            litellm.problem(key, f'cannot be ignored: "{guarding[0]}" refuses or masks requests')
            litellm.skip(key)
    finish_litellm_block(router, "router_settings", others_allowed=True, cutoff=0.7)
    finish_litellm_block(litellm, "litellm_settings", others_allowed=True)
    return settings


def _read_strategy(router: Section, default: str) -> str:
    key = "routing_strategy"
    located = router.entries.get(key)
    if located is not None and located.raw in _OTHER_STRATEGIES:
        router.ignore(key, f'"{located.raw}" is not supported here; "{default}" is used')
        return default
    return router.choice(key, default, STRATEGIES)


def finish_litellm_block(
    section: Section, block: str, *, known: Iterable[str] = (), others_allowed: bool = False, cutoff: float = 0.85
) -> None:
    """Report the unread keys of one of LiteLLM's blocks, and limits inside ignored ones."""
    ignored, protections = litellm_keys.IGNORED[block], litellm_keys.PROTECTIONS[block]
    for key in section.unread():
        located = section.entries[key]
        if key in ignored and key not in protections:
            for where, why in _limits_within(located):
                section.findings.problem(where, f"cannot be ignored: {why}; remove the key to run without it")
                section.skip(key)
        elif others_allowed and key not in protections and litellm_keys.sounds_like_a_limit(key):
            section.findings.problem(located.where, "unknown key that looks like a limit; remove it to run without it")
            section.skip(key)
    section.finish(ignored, protections=protections, known=known, others_allowed=others_allowed, cutoff=cutoff)


def _limits_within(located: Located, depth: int = 0) -> Iterator[tuple[str, str]]:
    """The paths of limits inside an ignored value, each with the consequence of ignoring it."""
    raw = located.raw
    if isinstance(raw, dict):
        inner = {str(name): located_at(value, f"{located.where}.{name}") for name, value in raw.items()}
    else:
        listed = enumerate(raw) if isinstance(raw, list) else ()
        inner = {f"[{number}]": located_at(value, f"{located.where}[{number}]") for number, value in listed}
    for name, value in inner.items():
        why = litellm_keys.limit_named(name)
        if why is not None and value.raw is not None and value.raw is not False and value.raw not in ("", [], {}):
            yield value.where, why
        elif why is None and depth < MAX_JSON_DEPTH:
            yield from _limits_within(value, depth + 1)


def _names(section: Section, key: str) -> list[str]:
    """The strings of an otherwise unread list, or a single string as a list."""
    located = section.entries.get(key)
    raw = None if located is None else located.raw
    return [item for item in (raw if isinstance(raw, list) else [raw]) if isinstance(item, str)]


def _read_fallbacks(section: Section, key: str) -> dict[str, tuple[str, ...]]:
    """Fallbacks in LiteLLM's forms: `[{a: [b, c]}]`, or names and `{model: b, ...}` for every model."""
    fallbacks: dict[str, tuple[str, ...]] = {}
    for located in section.items(key):
        if _is_target(located.raw):
            fallbacks["*"] = (*fallbacks.get("*", ()), *_targets(section, [located]))
            continue
        nested = section.nested(located)
        for name in nested.names():
            if name in fallbacks:
                nested.problem(name, f'"{name}" is listed twice')
            fallbacks[name] = _listed_targets(nested, name)
    return fallbacks


def _listed_targets(section: Section, key: str) -> tuple[str, ...]:
    located = section.entries.get(key)
    if located is not None and isinstance(located.raw, list) and any(isinstance(each, dict) for each in located.raw):
        return _targets(section, section.items(key))
    return section.texts(key)


def _is_target(raw: object) -> bool:
    """True for a fallback without the model that it is for."""
    return isinstance(raw, str) or (isinstance(raw, dict) and isinstance(raw.get("model"), str))


def _targets(section: Section, listed: Iterable[Located]) -> tuple[str, ...]:
    """The models of a list of fallbacks, each a name or `{model: name, ...}`."""
    found: list[str] = []
    for located in listed:
        if isinstance(located.raw, str):
            found.append(located.raw)
            continue
        nested = section.nested(located)
        target = nested.text("model")
        nested.require("model", "a model of model_list")
        for key in nested.unread():
            nested.ignore(key, "a fallback is sent the request as it is; it is ignored")
        found += [] if target is None else [target]
    return tuple(found)


def _read_retry_policy(section: Section) -> dict[str, int]:
    """LiteLLM's number of retries by the kind of error."""
    nested = section.section("retry_policy")
    stated = {name: nested.optional_integer(name, maximum=10) for name in RETRIED_ERRORS}
    for key in nested.unread():
        if key in _NEVER_RETRIED and nested.entries[key].raw in (None, 0):
            nested.skip(key)
        else:
            nested.ignore(key, _NEVER_RETRIED.get(key, "an unknown kind of error; it is ignored"))
    return {name: retries for name, retries in stated.items() if retries is not None}


def _read_aliases(section: Section) -> tuple[dict[str, str], frozenset[str]]:
    """All aliases (`alias: model` or `alias: {model: ..., hidden: ...}`) and the hidden ones."""
    nested = section.section("model_group_alias")
    aliases: dict[str, str] = {}
    hidden: set[str] = set()
    for alias in nested.names():
        located = nested.entries[alias]
        if isinstance(located.raw, dict):
            longer = nested.section(alias)
            target = longer.text("model")
            if longer.flag("hidden"):
                hidden.add(alias)
            longer.finish()
        else:
            target = nested.text(alias)
        if target is not None:
            aliases[alias] = target
    return aliases, frozenset(hidden)


def check_references(router: RouterSettings, models: tuple[ModelEntry, ...], document: Section) -> None:
    """Report aliases and fallbacks that name no model, and aliases that hide one."""
    names = {entry.model_name for entry in models}
    section, litellm = document.section("router_settings"), document.section("litellm_settings")
    for alias, target in router.model_group_alias.items():
        where = f"{section.where}.model_group_alias.{alias}"
        if target not in names:
            section.findings.problem(where, f'expected a model of model_list, got "{target}"')
        if alias in names or alias == "auto" or alias.startswith("auto@"):
            section.findings.problem(where, f'"{alias}" is already in use: choose another alias')
    known = names | router.model_group_alias.keys()
    for key, mapping in (
        ("fallbacks", router.fallbacks),
        ("context_window_fallbacks", router.context_window_fallbacks),
        ("content_policy_fallbacks", router.content_policy_fallbacks),
        ("default_fallbacks", {"*": router.default_fallbacks}),
    ):
        for source, targets in mapping.items():
            missing = [name for name in ((source,) if source != "*" else ()) + targets if name not in known]
            for name in missing:
                where = section.path(key) if section.has(key) or not litellm.has(key) else litellm.path(key)
                section.findings.problem(where, f'expected models of model_list, got "{name}"')
