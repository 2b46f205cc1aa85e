"""Look-up of models in LiteLLM's price map by its own rules, without importing LiteLLM.

LiteLLM tries several spellings of a name in turn and takes the first entry whose provider matches: with and without
the provider's prefix, without Bedrock's routes and regions, without a date or a version, and so on. The order here is
the same; tests/gateway/catalog/test_price_map.py compares the two over the whole map.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from gateway.catalog.addresses import AWS_REGION

_BEDROCK_ROUTES = ("bedrock/", "chat_completions/", "converse/", "invoke/", "openai/", "mantle/", "nova-2/", "nova/")
_BEDROCK_REGION_GROUPS = frozenset({"global", "us", "eu", "apac", "jp", "au", "us-gov"})
RESPONSES_ROUTE = "responses/"
"""Before a model's name: LiteLLM calls it at /v1/responses."""
_AWS_REGION = re.compile(AWS_REGION)
_THROUGHPUT = re.compile(r"(:\d+):(\d+k)$")
# Providers whose entries in the map carry a longer name that starts with theirs.
_FAMILIES = ("vertex_ai", "fireworks_ai")
_ANY_PROVIDER = frozenset({"litellm_proxy", "github", "nadir"})
_ALIASES: Mapping[str, str] = {"vertex_ai_beta": "vertex_ai", "cohere": "cohere_chat"}
_DATABRICKS_NAMES: Mapping[str, str] = {
    "dbrx-instruct": "databricks-dbrx-instruct",
    "meta-llama-3.1-70b-instruct": "databricks-meta-llama-3-1-70b-instruct",
    "meta-llama-3.1-405b-instruct": "databricks-meta-llama-3-1-405b-instruct",
    "mixtral-8x7b-instruct-v0.1": "databricks-mixtral-8x7b-instruct",
    "bge-large-en": "databricks-bge-large-en",
    "gte-large-en": "databricks-gte-large-en",
    "llama-2-70b-chat": "databricks-llama-2-70b-chat",
}
"""Beginnings of older names of Databricks' endpoints, and the map's name."""
_SIZE, _SMALL_SIZE, _EXPERTS = re.compile(r"(\d+)b"), re.compile(r"(\d+)m"), re.compile(r"(\d+)x(\d+)b")
"""Billions and millions of parameters, and a number of experts with billions each, in a lower-case name."""
_TOGETHER = (
    (4, "up-to-4b"), (8, "4.1b-8b"), (21, "8.1b-21b"), (41, "21.1b-41b"), (80, "41.1b-80b"), (110, "81.1b-110b"),
)  # fmt: skip
_TOGETHER_EMBEDDINGS = ((150, "embedding-up-to-150m"), (350, "embedding-151m-to-350m"))
_FIREWORKS_EXPERTS = ((56, "moe-up-to-56b"), (176, "56b-to-176b"))
_FIREWORKS = ((4, "up-to-4b"), (16, "4.1b-to-16b"), (math.inf, "above-16b"))
"""The largest size of each class of prices, and the rest of its name in the map."""


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

    def find_size(self, model: str, provider: str, mode: str) -> tuple[str, Mapping[str, Any]]:
        """The class of a model's size and its entry; else empty.

        Only the entry's prices are the model's: it has no limits and capabilities of its own.
        """
        name = _size_class(model.removeprefix(f"{provider}/").lower(), provider, mode)
        return name, self._entry(name) or {}

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
    if provider == "databricks":
        yield from (f"databricks/{name}" for start, name in _DATABRICKS_NAMES.items() if model.startswith(start))
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
    region, slash, rest = model.partition("/")
    if slash and _AWS_REGION.fullmatch(region):
        return f"{region}/{_without_route(rest)}"
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


def _size_class(model: str, provider: str, mode: str) -> str:
    """The map's name of the prices for all models of a size, for providers that have them; "" without one."""
    if provider == "together_ai" and mode == "embedding":
        return _within("together-ai-", _SMALL_SIZE.search(model), _TOGETHER_EMBEDDINGS)
    if provider == "together_ai":
        return _within("together-ai-", _SIZE.search(model), _TOGETHER)
    if provider == "fireworks_ai" and mode != "embedding":
        experts = _within("fireworks-ai-", _EXPERTS.search(model), _FIREWORKS_EXPERTS)
        return experts or _within("fireworks-ai-", _SIZE.search(model), _FIREWORKS)
    return ""


def _within(prefix: str, sizes: re.Match[str] | None, classes: Sequence[tuple[float, str]]) -> str:
    """The first class that is large enough for the product of the sizes."""
    if sizes is None:
        return ""
    size = math.prod(map(int, sizes.groups()))
    return next((prefix + name for largest, name in classes if size <= largest), "")


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
