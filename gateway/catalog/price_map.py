"""Look-up of models in LiteLLM's price map by its own rules, without importing LiteLLM.

LiteLLM tries several spellings of a name in turn and takes the first entry whose provider matches: with and without
the provider's prefix, without Bedrock's routes and regions, without a date or a version, and so on. The order here is
the same; tests/gateway/catalog/test_price_map.py compares the two over the whole map.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import msgspec

_BEDROCK_ROUTES = ("bedrock/", "chat_completions/", "converse/", "invoke/", "openai/", "mantle/", "nova-2/", "nova/")
_BEDROCK_REGION_GROUPS = frozenset({"global", "us", "eu", "apac", "jp", "au", "us-gov"})
RESPONSES_ROUTE = "responses/"
"""Before a model's name: LiteLLM calls it at /v1/responses."""
_AWS_REGION = re.compile(r"(?:us-gov|us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-\d")
_THROUGHPUT = re.compile(r"(:\d+):(\d+k)$")
# Providers whose entries in the map carry a longer name that starts with theirs.
_FAMILIES = ("vertex_ai", "fireworks_ai")
_ANY_PROVIDER = frozenset({"litellm_proxy", "github", "nadir"})
_ALIASES: Mapping[str, str] = {"vertex_ai_beta": "vertex_ai", "cohere": "cohere_chat"}


class PriceMap:
    """The price map, with case-insensitive keys.

    An entry may be JSON that is not yet read: a gateway needs a few of the map's thousands.
    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries
        self._folded = {key.lower(): key for key in reversed(list(entries))}

    def find(self, model: str, provider: str | None = None) -> Mapping[str, Any]:
        """The entry for a deployment's `model`, or an empty mapping.

        `provider` is the deployment's `custom_llm_provider`, where one is configured.
        """
        if provider is None:
            # A name without a prefix, or with a prefix that names the model's maker rather than a provider.
            exact = self._entry(model)
            if exact is not None:
                return exact
            provider, separator, model = ("openai", "/", model) if model.startswith("ft:") else model.partition("/")
            if not separator:
                return {}
        else:
            model = model.removeprefix(f"{provider}/")
        model = model.removeprefix(RESPONSES_ROUTE)
        for alias in dict.fromkeys((provider, _ALIASES.get(provider, provider))):
            for name in _spellings(model, alias):
                entry = self._entry(name)
                if entry is not None and _fits(str(entry.get("litellm_provider") or ""), alias):
                    return entry
        return {}

    def kinds(self, model: str) -> frozenset[str]:
        """The modes of all entries for a model's plain name, of any provider, size or date."""
        plain = re.escape(model.lower().rpartition("/")[2])
        spelt = re.compile(rf"(?:.*/)?{plain}(?:-\d{{4}}-\d{{2}}-\d{{2}})?")
        found = [self._entry(key) or {} for folded, key in self._folded.items() if spelt.fullmatch(folded)]
        return frozenset(str(entry["mode"]) for entry in found if entry.get("mode"))

    def _entry(self, name: str) -> Mapping[str, Any] | None:
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries.get(self._folded.get(name.lower(), ""))
        if isinstance(entry, msgspec.Raw):
            entry = msgspec.json.Decoder(float_hook=Decimal).decode(entry)
        return entry if isinstance(entry, Mapping) else None


def _spellings(model: str, provider: str) -> Iterator[str]:
    """The names to try, most specific first."""
    plain = _without_route(model) if provider in ("bedrock", "bedrock_converse") else model
    if provider == "bedrock_mantle":
        head, _, rest = model.partition("/")
        plain = rest if rest and _AWS_REGION.fullmatch(head) else model
    if provider == "vertex_ai":
        yield from (f"vertex_ai/meta/{model}", f"vertex_ai/{model}@latest", f"{model}@latest")
    stripped = _stripped(plain, provider)
    yield from (f"{provider}/{model}", model, plain, f"{provider}/{plain}", f"{provider}/{stripped}", stripped)
    if provider == "fireworks_ai":
        yield f"fireworks_ai/{_fireworks_resource(model)}"
    yield f"{provider}/{provider}/{model}"


def _stripped(model: str, provider: str) -> str:
    """The name without the parts that do not change the price: region, version, fine-tune, date."""
    if provider in ("bedrock", "bedrock_converse"):
        return _bedrock_base(model)
    if provider in ("vertex_ai", "gemini", "databricks"):
        return re.sub(r"-\d+$", "", model)
    if "ft:" in model:
        return re.sub(r"(:[^:]*){3}$", "", model)
    return re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model)


def _without_route(model: str) -> str:
    for route in _BEDROCK_ROUTES:
        model = model.removeprefix(route)
    return model


def _bedrock_base(model: str) -> str:
    if "arn" in model.lower():
        model = model.rsplit("/", 1)[-1]
    model = _THROUGHPUT.sub(r"\1", model)
    group, dot, rest = model.partition(".")
    if dot and group in _BEDROCK_REGION_GROUPS:
        return rest
    region, slash, rest = model.partition("/")
    return rest if slash and _AWS_REGION.fullmatch(region) else model


def _fireworks_resource(model: str) -> str:
    if model.startswith("accounts/") or "#" in model:
        return model
    if model.startswith(("routers/", "models/")):
        return f"accounts/fireworks/{model}"
    return f"accounts/fireworks/models/{model}"


def is_entry_of(found: str, provider: str) -> bool:
    """True when an entry describes models of this very provider."""
    return any(_is_family(found, name) for name in (provider, _ALIASES.get(provider, provider)))


def _fits(found: str, provider: str) -> bool:
    """True when LiteLLM takes an entry for a model of the provider's: it is of its family, or nothing says whose."""
    return not found or provider in _ANY_PROVIDER or _is_family(found, provider)


def _is_family(found: str, provider: str) -> bool:
    if found == provider:
        return True
    if provider.startswith("bedrock"):
        return found.startswith("bedrock")
    if provider in _FAMILIES:
        return found.startswith(provider)
    return provider == "azure_ai" and found in ("azure", "openai")
