"""Settings of `gateway.yaml` as frozen values with units in their names.

`gateway/config/load.py` reads them. `docs/configuration.md` lists every key; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.config.model_entry import ModelEntry
from gateway.config.values import Secret
from gateway.money import NANOUSD_PER_USD

DEFAULT_DATABASE_URL = "sqlite:///seqroute.db"
PRESETS = ("cheap", "balanced", "best")
"""Names after `auto@`: points between cost and quality."""
STRATEGIES = (
    "simple-shuffle", "least-busy", "latency-based-routing", "usage-based-routing", "usage-based-routing-v2",
    "cost-based-routing",
)  # fmt: skip
"""LiteLLM's names of the ways to balance a group; the first is the default."""


LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Session budgets and limits; `id_headers` are tried in order before the built-in aliases."""

    default_budget_nanousd: int = NANOUSD_PER_USD
    max_budget_nanousd: int = 10 * NANOUSD_PER_USD
    idle_timeout_s: float = 1800.0
    id_headers: tuple[str, ...] = ()
    over_budget: str = "degrade"
    max_turns: int | None = None
    wrap_up: bool = False
    on_stall: str = "log"


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Judge of a sample of answers (gateway/turn/judge.py); an empty `rubric` is the default.

    `second_answers` is the share of turns that a second model answers for the judge (gateway/turn/second_answers.py).
    """

    model: str
    sample: float = 0.02
    budget_nanousd_per_day: int = NANOUSD_PER_USD
    rubric: str = ""
    second_answers: float = 0.0
    second_budget_nanousd_per_day: int = NANOUSD_PER_USD


TEXTS = ("hashed", "static", "onnx")


@dataclass(frozen=True, slots=True)
class TextSettings:
    """The text space of a policy: one of TEXTS, and the files of an ONNX encoder."""

    kind: str = TEXTS[0]
    model: Path | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Policy and exploration; `default_lambda` is the quality (0..1) that one dollar must buy.

    `lambda_presets` define `auto@cheap` and so on while a built-in rule is champion. `exploration_nanousd_per_day`
    limits the expected extra cost of exploration over all replicas. `exploration_quota` is the number of answers by
    each model to each kind of prompt that exploration tries to reach; 0: none.
    """

    directory: Path = Path("policies")
    mode: str = "on"
    canary_fraction: float = 0.1
    publish: str = "canary"
    auto_promote: bool = True
    canary_hours: float = 24.0
    exploration_floor: float = 0.02
    exploration_nanousd_per_day: int = 10 * NANOUSD_PER_USD
    exploration_quota: int = 20
    default_lambda: float = 1.0
    lambda_presets: Mapping[str, float] = field(default_factory=dict)
    decision_deadline_ms: float = 50.0
    judge: JudgeSettings | None = None
    text: TextSettings = field(default_factory=TextSettings)


RETRIED_ERRORS = (
    "AuthenticationErrorRetries",
    "RateLimitErrorRetries",
    "ServiceUnavailableErrorRetries",
    "InternalServerErrorRetries",
    "DefaultRetries",
)
"""LiteLLM's names of the errors after which a call is repeated here."""


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Retries, fallbacks and upstream health.

    `routing_strategy` chooses within a balanced group; by latency, all within `latency_buffer` of the lowest share.
    `deployment_parallel` limits the parallel calls of deployments without a limit of their own.

    The keys of fallbacks are names or aliases of models, or "*" for every other. `max_attempts` limits a turn's
    provider calls, retries and fallbacks together; None: three, or as many as `num_retries` needs. `retry_policy` has
    other numbers of retries for some of RETRIED_ERRORS.
    """

    num_retries: int = 2
    retry_policy: Mapping[str, int] = field(default_factory=dict)
    timeout_s: float = 600.0
    stream_timeout_s: float | None = None
    allowed_fails: int = 3
    cooldown_s: float = 30.0
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default_fallbacks: tuple[str, ...] = ()
    context_window_fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    content_policy_fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    max_attempts: int | None = None
    model_group_alias: Mapping[str, str] = field(default_factory=dict)
    hidden_aliases: frozenset[str] = frozenset()
    drop_params: bool = True
    lane: str = "auto"
    routing_strategy: str = STRATEGIES[0]
    latency_ttl_s: float = 3600.0
    latency_buffer: float = 0.0
    deployment_parallel: int | None = None


@dataclass(frozen=True, slots=True)
class RateQuota:
    """Most requests and tokens in a minute, and turns under way at once; None: no such limit."""

    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None

    def __bool__(self) -> bool:
        return self.rpm is not None or self.tpm is not None or self.parallel is not None

    def halved(self) -> RateQuota:
        """Half of each limit, rounded down."""
        return RateQuota(*(None if each is None else each // 2 for each in (self.rpm, self.tpm, self.parallel)))

    def within(self, default: RateQuota) -> RateQuota:
        """These limits, and `default`'s where there is none."""
        return RateQuota(
            default.rpm if self.rpm is None else self.rpm,
            default.tpm if self.tpm is None else self.tpm,
            default.parallel if self.parallel is None else self.parallel,
        )


NO_LIMITS = RateQuota()


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Target URL of budget notifications and the secret that signs them."""

    url: str
    secret: Secret


@dataclass(frozen=True, slots=True)
class JwtSettings:
    """Verification of an issuer's tokens; `jwks` is the URL or path of its published keys."""

    jwks: str
    issuer: str
    audience: str
    tenant_claim: str = "tenant"
    role_claim: str | None = None


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """Age to which decisions are kept (None: for good).

    `archive`: the folder or `s3://` URL where they are archived first; `archive_texts`: with the texts that tenants let
    the gateway store, without which days with such texts are not removed.
    """

    decisions_s: float | None = None
    archive: str | None = None
    archive_texts: bool = False


@dataclass(frozen=True, slots=True)
class GeneralSettings:
    """Admin key, database, webhooks, CORS origins, tokens, tracing and retention.

    `master_key` None: not configured (`gateway.config.master_key` then generates one). A SQLite URL's path is absolute.
    """

    master_key: Secret | None = None
    database_url: Secret = field(default_factory=lambda: Secret(DEFAULT_DATABASE_URL))
    webhooks: tuple[WebhookSettings, ...] = ()
    cors_origins: tuple[str, ...] = ()
    tenant_limits: RateQuota = NO_LIMITS
    key_limits: RateQuota = NO_LIMITS
    """Of every tenant and key that has no limits of its own."""
    jwt: JwtSettings | None = None
    retention: RetentionSettings = RetentionSettings()
    tracing: bool = False
    """Send OpenTelemetry spans to the endpoint of the OTEL_* variables."""
    log_format: str = LOG_FORMATS[0]


@dataclass(frozen=True, slots=True)
class TimingSettings:
    """Hold lease, sweep interval, drain time and longest upstream silence, in seconds."""

    hold_ttl_s: float = 120.0
    sweep_s: float = 10.0
    drain_s: float = 30.0
    upstream_idle_s: float = 60.0


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Limits on requests and concurrency; beyond them the answer is 4xx, 429 or 503."""

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
    """All settings of the files and the environment; `files` are the paths read, to be watched."""

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
