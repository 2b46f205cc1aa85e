"""LiteLLM proxy configuration keys that the gateway does not support.

A LiteLLM file must load unchanged, so a name listed in `litellm_keys.txt` is only a warning. `PROTECTIONS` are the
exception: ignoring one of them would spend more or let more requests through than the file intends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path


def _read(text: str) -> Mapping[str, frozenset[str]]:
    blocks: dict[str, list[str]] = {}
    names: list[str] = []
    for line in text.splitlines():
        if line.startswith("["):
            names = blocks.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            names.extend(line.split())
    return {block: frozenset(listed) for block, listed in blocks.items()}


IGNORED: Mapping[str, frozenset[str]] = _read(Path(__file__).with_name("litellm_keys.txt").read_text(encoding="utf-8"))
"""Block -> names that only cause a warning; `request_parameters` are request defaults."""

REQUEST_PARAMETERS = IGNORED["request_parameters"]
"""Names that set defaults of a deployment's requests in `litellm_params`."""

_BUDGET = "a spending limit that is not enforced here; give tenants, keys or sessions a budget instead"
_LIMIT = "a limit that is not enforced here; use tpm and rpm, of deployments, tenants or keys"
_UNCHECKED = "requests would pass unchecked, because guardrails do not run here"
_OPEN = "requests that LiteLLM refuses would pass"
_MOCK = "the provider would be called, and paid, instead of the mock"
_BILL = "the ledger would not charge what LiteLLM charges"
PRICED_PARAMETERS: Mapping[str, str] = {
    name: f"{why}; clients ask for it in a request where it is supported"
    for names, why in (
        ("n best_of", "it multiplies what every request costs"),
        ("tools functions plugins web_search_options search_parameters", "tools of the provider are billed separately"),
        ("models route", "the provider could answer with another model at another price"),
        ("speed", "it changes the price of every token"),
        ("modalities audio prediction", "it changes what is billed"),
        ("enable_search", "searches are billed separately"),
    )
    for name in names.split()
}
"""Parameters refused as defaults because they change the price of every request."""

_TIER = "the hold would be at another tier's prices: write litellm_params.service_tier instead"
_TOOLS = "tools of the provider are billed separately"
_UNHELD: Mapping[str, str] = {
    name: why
    for names, why in (
        ("candidatecount numreturnsequences numgenerations usebeamsearch", "it multiplies what every request costs"),
        ("responsemodalities speechconfig", "it changes what is billed"),
        ("performanceconfig", "it changes the price of every token"),
        ("servicetier", _TIER),
        ("tools plugins websearchoptions searchparameters enablesearch", _TOOLS),
        ("googlesearch googlesearchretrieval enterprisewebsearch googlemaps urlcontext codeexecution", _TOOLS),
    )
    for name in names.split()
}
"""Providers' own names, without marks and capitals, of what would cost more than is held for; at any depth."""
_UNHELD_IN_BODY: Mapping[str, str] = {
    **{name.replace("_", ""): why for name, why in PRICED_PARAMETERS.items()},
    **dict.fromkeys(("model", "modelid", "fallbacks"), "the provider could answer with another model at another price"),
    **dict.fromkeys(
        "messages input prompt system systeminstruction contents instructions documents mcpservers".split(),
        "it would be added to the prompt after the cost of the prompt was reserved",
    ),
}
"""The same, where a provider's request has its own parts."""
_HELD: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("n", "bestof", "candidatecount", "numreturnsequences", "numgenerations"), (1, "1")),
    **dict.fromkeys(("modalities", "responsemodalities"), ("text",)),
    **dict.fromkeys(("speed", "performanceconfig", "servicetier"), ("default", "standard", "standard_only")),
}
"""Of such names, the values with which a request costs what is held."""
_UNHELD_HEADER = re.compile(r".*(service-?tier|performanceconfig|llm-(shared-)?request-type).*", re.IGNORECASE)
"""Headers of Bedrock and Vertex that choose a tier."""


def unheld(name: str, value: object, *, nested: bool) -> str | None:
    """The reason why a field of a request would cost more than is held; None: it would not."""
    folded = _folded(name)
    found = _UNHELD.get(folded) if nested else _UNHELD_IN_BODY.get(folded) or _UNHELD.get(folded)
    return None if found is None or costs_nothing(name, value) else found


def costs_nothing(name: str, value: object) -> bool:
    """True where a priced field asks for nothing, or for what every request is held for.

    An empty object asks: `web_search_options: {}` is a search with the provider's own settings.
    """
    if value is None or value is False or value == []:
        return True
    held = _HELD.get(_folded(name))
    return held is not None and all(each in held for each in _leaves(value))


def _folded(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value.lower() if isinstance(value, str) else value


def unheld_header(name: str) -> str | None:
    """The reason why a header would let a provider bill more than is held; None: it would not."""
    return _TIER if _UNHELD_HEADER.fullmatch(name) else None


PROTECTIONS: Mapping[str, Mapping[str, str]] = {
    "top_level": {"guardrails": _UNCHECKED, "policies": _UNCHECKED, "policy_attachments": _UNCHECKED},
    "litellm_params": {
        "guardrails": _UNCHECKED,
        "max_budget": _BUDGET,
        "budget_duration": _BUDGET,
        **dict.fromkeys(
            "itpm otpm rpd tpd tpm_limit rpm_limit default_api_key_tpm_limit default_api_key_rpm_limit".split(), _LIMIT
        ),
        **dict.fromkeys("mock_response mock_tool_calls mock_timeout".split(), _MOCK),
        **PRICED_PARAMETERS,
    },
    "model_info": {
        "blocked": "the model would be served; remove the entry, or the key",
        "team_id": "the model would be open to every tenant; use allow-lists of tenants (`--models`)",
        "access_windows": "the model would be served at every time of day",
        "cost_per_ptu_per_hour": _BILL,
    },
    "general_settings": {
        "allowed_ips": _OPEN,
        "allowed_routes": _OPEN,
        "enforced_params": _OPEN,
        "enforce_user_param": _OPEN,
    },
    "router_settings": {"provider_budget_config": _BUDGET, "guardrail_list": _UNCHECKED},
    "litellm_settings": {
        **dict.fromkeys(
            "max_budget budget_duration max_user_budget max_internal_user_budget max_end_user_budget"
            " max_end_user_budget_id default_max_internal_user_budget tag_budget_config".split(),
            _BUDGET,
        ),
        **dict.fromkeys(("guardrails", "guardrail_name_config_map", "pre_call_rules", "post_call_rules"), _UNCHECKED),
        "vertex_ai_safety_settings": "the provider's own thresholds would apply; use litellm_params.safety_settings",
        "banned_keywords_list": _OPEN,
        "blocked_user_list": _OPEN,
        "validate_end_user_id_in_db": _OPEN,
        "output_parse_pii": "personal data would reach the provider unmasked",
        "cost_margin_config": _BILL,
        "cost_discount_config": _BILL,
    },
}
"""Block -> key -> consequence of ignoring it; a key that is off (false, empty) is a warning."""

_CAP = re.compile(
    r"(\w+_)?max_budget(_in_team|_per_session)?|(\w+_)?(budget_limits?|member_budget)|budget_id"
    r"|(\w+_)?([rt]p[md]|[io]tpm)_limits?|max_parallel_requests|enforced_params"
)
"""Names of limits in the objects that LiteLLM hands to its users, teams, keys, agents and budgets."""
_PROTECTS = re.compile(r"budget|spend|guardrail|forbid|den(?:y|ied)", re.IGNORECASE)


def limit_named(name: str) -> str | None:
    """The consequence of ignoring a limit inside an ignored key; None for other names."""
    if _CAP.fullmatch(name) is None:
        return None
    return _OPEN if name == "enforced_params" else _BUDGET if "budget" in name else _LIMIT


def sounds_like_a_limit(name: str) -> bool:
    """True for an unknown name whose words say that it protects money or safety."""
    return _PROTECTS.search(name) is not None


GUARDING_CALLBACKS = frozenset(
    """
    azure_content_safety banned_keywords blocked_user_check detect_prompt_injection google_text_moderation
    hide_secrets lakera_prompt_injection llamaguard_moderations llmguard_moderations max_budget_limiter
    openai_moderations presidio
    """.split()
)
"""Names in `litellm_settings.callbacks` that refuse or mask requests, instead of only logging them."""
