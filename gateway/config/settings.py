"""What `gateway.yaml` can say, as a frozen tree of values with units in their names.

`gateway/config/load.py` reads them. `docs/configuration.md` lists every key; a test holds the two in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gateway.config.model_list import ModelEntry
from gateway.config.reader import Secret
from gateway.money import NANOUSD_PER_USD

DEFAULT_DATABASE_URL = "sqlite:///seqroute.db"
PRESETS = ("cheap", "balanced", "best")
"""`auto@cheap` and so on: points between money and quality."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Budgets and bounds of sessions. `id_headers` are asked before the built-in aliases, in this order."""

    default_budget_nanousd: int = NANOUSD_PER_USD
    max_budget_nanousd: int = 10 * NANOUSD_PER_USD
    idle_timeout_s: float = 1800.0
    id_headers: tuple[str, ...] = ()
    over_budget: str = "degrade"
    max_turns: int | None = None


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """A model that grades a share of the answers (gateway/turn/judge.py). `rubric` "": the one that is shipped."""

    model: str
    sample: float = 0.02
    budget_nanousd_per_day: int = NANOUSD_PER_USD
    rubric: str = ""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Which policy decides, and how freely. `default_lambda` is quality (0..1 scale) one dollar must buy.

    `lambda_presets` are what `auto@cheap` and so on mean while a built-in rule is champion, as far as they are named.
    `exploration_nanousd_per_day` is what exploring may be expected to cost beyond the best choices, over all replicas.
    """

    directory: Path = Path("policies")
    mode: str = "on"
    canary_fraction: float = 0.1
    publish: str = "canary"
    auto_promote: bool = True
    canary_hours: float = 24.0
    exploration_floor: float = 0.02
    exploration_nanousd_per_day: int = 10 * NANOUSD_PER_USD
    default_lambda: float = 1.0
    lambda_presets: Mapping[str, float] = field(default_factory=dict)
    decision_deadline_ms: float = 50.0
    judge: JudgeSettings | None = None


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Retries, fallbacks and health of upstreams. Keys of the mappings are model names of the catalogue."""

    num_retries: int = 2
    timeout_s: float = 600.0
    stream_timeout_s: float | None = None
    allowed_fails: int = 3
    cooldown_s: float = 30.0
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default_fallbacks: tuple[str, ...] = ()
    context_window_fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    model_group_alias: Mapping[str, str] = field(default_factory=dict)
    hidden_aliases: frozenset[str] = frozenset()
    drop_params: bool = True
    lane: str = "auto"


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Where messages about budget thresholds go, and the secret they are signed with."""

    url: str
    secret: Secret


@dataclass(frozen=True, slots=True)
class GeneralSettings:
    """`master_key` None: none was configured (`gateway.config.master_key` then makes one). The URL's path is
    absolute."""

    master_key: Secret | None = None
    database_url: Secret = field(default_factory=lambda: Secret(DEFAULT_DATABASE_URL))
    webhooks: tuple[WebhookSettings, ...] = ()
    cors_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TimingSettings:
    """How long a hold lives without a sign of life, how often the sweeper runs, how long a stop and a silence last."""

    hold_ttl_s: float = 120.0
    sweep_s: float = 10.0
    drain_s: float = 30.0
    upstream_idle_s: float = 60.0


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What a client may send and how much work is taken at once; beyond it the answer is 4xx, 429 or 503."""

    body_bytes: int = 32 * 2**20
    header_bytes: int = 32 * 2**10
    json_depth: int = 64
    choices: int = 8
    stream_buffer_bytes: int = 256 * 2**10
    parallel_requests: int = 512
    tenant_parallel_requests: int = 256
    admission_wait_s: float = 3.0
    outage_cap_nanousd: int = NANOUSD_PER_USD


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the file and the environment say. `files` are the paths read, for watching them."""

    models: tuple[ModelEntry, ...]
    session: SessionSettings = SessionSettings()
    policy: PolicySettings = PolicySettings()
    router: RouterSettings = RouterSettings()
    general: GeneralSettings = field(default_factory=GeneralSettings)
    timings: TimingSettings = TimingSettings()
    limits: LimitSettings = LimitSettings()
    path: Path = Path("gateway.yaml")
    files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()


def with_master_key(settings: Settings, master_key: Secret) -> Settings:
    """The same settings with another admin key."""
    return replace(settings, general=replace(settings.general, master_key=master_key))
