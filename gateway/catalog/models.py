"""The model catalogue: prices, capabilities, limits and deployments of every routable model.

`gateway.catalog.build` makes it from the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from typing import Any

from gateway.catalog.cache_hits import UNKNOWN, CacheTerms
from gateway.catalog.cost import PricesOf
from gateway.catalog.price_reading import DatedPrices
from gateway.catalog.prices import NO_SEARCH, Prices
from gateway.catalog.web_search import researches
from gateway.config.model_entry import WITHOUT_OUTPUT
from gateway.config.settings import RateQuota
from gateway.config.values import Secret


@dataclass(frozen=True, slots=True)
class Deployment:
    """One way to reach a model; `prices` are its own, the model's are at least as high.

    `request_defaults`, `allowed_params` and `dropped_params` are those of `gateway.config.model_entry.ModelParams`.
    """

    deployment_id: str
    litellm_model: str
    prices: Prices
    api_base: str | None
    api_key: Secret | None
    api_version: str | None
    organization: str | None
    timeout_s: float
    stream_timeout_s: float
    weight: float
    order: int
    limits: RateQuota
    """The provider's limits, each replica for its own calls."""
    extra_headers: Mapping[str, Secret]
    provider_params: Mapping[str, Secret]
    lane: str = "auto"
    request_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that the operator adds to every call, by OpenAI's and the provider's names."""
    allowed_params: frozenset[str] = frozenset()
    """Parameters that callers may send although the deployment is not known to accept them."""
    dropped_params: frozenset[str] = frozenset()
    """Parameters that are never sent to the deployment."""
    base_model: str | None = None
    """The model behind the provider's own deployment name, whose rules and prices apply."""
    unasked_tiers: frozenset[str] = frozenset()
    """Service tiers that a call without `service_tier` may be billed at: those priced in the file."""
    one_search_billed: bool = False
    """Whether all web searches of one call cost one fee."""
    prices_of: PricesOf = field(default=lambda model: None, repr=False, compare=False)
    """Prices of the provider's other models, for answers that several models contributed to."""
    tool_prices_usd: Mapping[str, Decimal] = field(default_factory=dict)
    """Stated fees of hosted tools, by LiteLLM's names."""
    api_stated: bool = False
    """Whether its provider's own dialect is certain: at OpenAI's address, or by the operator's word."""
    own_api_only: bool = False
    """Whether its provider answers in that dialect alone (gpt-5-codex, o3-pro)."""
    functions_in_own_api: bool = False
    """Whether it calls functions while it reasons in that dialect alone (gpt-5.4 and later)."""
    runs_tools: bool = False
    """Whether it is certain that its servers run the hosted tools of that dialect: at the provider's own address."""


@dataclass(frozen=True, slots=True)
class Model:
    """One name of the catalogue and its load-balanced deployments.

    `prices` bound every deployment's bill from above (they are equal when the deployments agree); limits and
    capabilities are what all deployments share. `quality_prior` is in 0..1.
    """

    name: str
    mode: str
    prices: Prices
    max_input_tokens: int
    max_output_tokens: int
    capabilities: frozenset[str]
    quality_prior: float
    deployments: tuple[Deployment, ...]
    longest_answer_tokens: int | None = None
    """The longest answer of a provider that is told no limit; None: unknown."""
    longest_prompt_tokens: int | None = None
    """The longest prompt that the price map says its providers take, the largest of the deployments'; None: unknown.

    A longer one is refused and not billed, whatever its count by another tokenizer may be.
    """
    unasked_tokens: int | None = None
    """The gateway's own limit for answers that no one limits, where `max_output_tokens` is only assumed."""
    default_max_tokens: int | None = None
    """The operator's limit for requests whose client names none, the smallest of the deployments'."""
    cache: CacheTerms = UNKNOWN
    """What the operator states of the provider's prompt cache."""
    effort: str = ""
    """The effort of reasoning of this candidate; empty for a model whose effort is not chosen here."""
    efforts: tuple[Model, ...] = ()
    """This model at each of the efforts that a policy may choose (gateway.catalog.efforts)."""
    possible_capabilities: frozenset[str] = frozenset()
    """`capabilities`, and what it may have besides because nothing says that it lacks it."""
    has_plain_prices: bool = field(init=False, repr=False, compare=False)
    """True if a call costs its tokens alone: no service tiers, no searches."""

    def __post_init__(self) -> None:
        tiers, searches = self.prices.service_tiers, self.prices.search_femtousd != NO_SEARCH
        plain = not (tiers or searches or any(researches(each.litellm_model, each.prices) for each in self.deployments))
        object.__setattr__(self, "has_plain_prices", plain)
        object.__setattr__(self, "possible_capabilities", self.capabilities | self.possible_capabilities)

    @property
    def own_api_only(self) -> bool:
        """True if its provider has no chat completions, only an API of its own."""
        return all(deployment.own_api_only for deployment in self.deployments)

    @property
    def in_own_api(self) -> bool:
        """True if requests may need its provider's own dialect without a hosted tool."""
        return all(each.own_api_only or each.functions_in_own_api for each in self.deployments)

    @property
    def action(self) -> str:
        """The name of this candidate among all that a policy chooses from."""
        return f"{self.name}#{self.effort}" if self.effort else self.name


@dataclass(frozen=True, slots=True)
class Catalog:
    """All routable models by name, their aliases, and the groups that allow-lists may name.

    `digest` is equal when prices, limits and names are; `hidden_aliases` are accepted but not listed.
    """

    models: Mapping[str, Model]
    aliases: Mapping[str, str]
    digest: str
    warnings: tuple[str, ...] = ()
    hidden_aliases: frozenset[str] = frozenset()
    access_groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The models of each group; no group has the name of a model or alias."""
    coming: tuple[tuple[str, DatedPrices], ...] = ()
    """Prices with a later date and their models, in order of time."""
    rebuilt: Callable[[], Catalog] | None = field(default=None, repr=False, compare=False)
    """Makes the catalogue as it is from the first of `coming` on."""

    def at(self, instant_ms: int) -> Catalog:
        """The catalogue with the prices that are in force at an instant."""
        catalog = self
        while catalog.coming and catalog.rebuilt and catalog.coming[0][1].valid_from_ms <= instant_ms:
            catalog = catalog.rebuilt()
        return catalog

    def resolve(self, name: str) -> Model | None:
        """The model that a catalogue name or an alias refers to."""
        return self.models.get(self.aliases.get(name, name))

    def resolve_all(self, names: frozenset[str] | None) -> frozenset[str] | None:
        """The models of an allow-list, aliases and groups resolved; None allows every model."""
        if names is None:
            return None
        meant = (self.access_groups.get(name) or (self.aliases.get(name, name),) for name in names)
        return frozenset(chain.from_iterable(meant))

    @property
    def names(self) -> frozenset[str]:
        """Names valid in an allow-list: models, aliases and groups."""
        return frozenset(chain(self.models, self.aliases, self.access_groups))

    @property
    def chat_models(self) -> tuple[Model, ...]:
        """The models for chat turns, in the order of the file."""
        return self.of_mode("chat")

    @property
    def served(self) -> tuple[Model, ...]:
        """Every model that a client can name: for chat, for embeddings and for moderation."""
        return (*self.chat_models, *(model for mode in WITHOUT_OUTPUT for model in self.of_mode(mode)))

    def of_mode(self, mode: str) -> tuple[Model, ...]:
        """The models of one mode, in the order of the file."""
        return tuple(model for model in self.models.values() if model.mode == mode)
