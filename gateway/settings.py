"""`gateway.yaml` as a frozen tree of values with units in their names, or every reason why it is none.

`load_settings(path, environ)` is pure in the file and the environment it is given. Blocks and keys that LiteLLM's
proxy reads are read the same way; `session_settings` and `policy_settings` are ours. `docs/configuration.md` lists
every key; a test holds the two in step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from gateway import litellm_keys
from gateway.configfile import read_document
from gateway.model_list import LANES, ModelEntry, ModelInfo, ModelParams, read_model_list
from gateway.money import NANOUSD_PER_USD
from gateway.section import Findings, Located, Secret, Section, SettingsError

__all__ = [
    "Draft", "GeneralSettings", "JudgeSettings", "LimitSettings", "ModelEntry", "ModelInfo", "ModelParams",
    "PolicySettings", "RouterSettings", "Secret", "SessionSettings", "Settings", "SettingsError", "TimingSettings",
    "load_settings", "read_database_url", "read_settings",
]  # fmt: skip

DEFAULT_DATABASE_URL = "sqlite:///seqroute.db"
ENVIRONMENT_OVERRIDES: Mapping[str, str] = {
    "SEQROUTE_HOLD_TTL_SECONDS": "hold_ttl_seconds",
    "SEQROUTE_SWEEP_SECONDS": "sweep_seconds",
    "SEQROUTE_DRAIN_SECONDS": "drain_seconds",
    "SEQROUTE_UPSTREAM_IDLE_SECONDS": "upstream_idle_seconds",
    "SEQROUTE_MASTER_KEY": "master_key",
    "SEQROUTE_DATABASE_URL": "database_url",
}
"""Environment variable -> the key of `general_settings` it replaces. (SEQROUTE_CONFIG names the file itself.)"""

ROUTER_KEYS_WITHOUT_EFFECT: Mapping[str, str] = {
    "fallbacks": "RouterSettings.fallbacks",
    "default_fallbacks": "RouterSettings.default_fallbacks",
    "context_window_fallbacks": "RouterSettings.context_window_fallbacks",
}
"""Keys that are checked and that nothing acts on yet: whoever writes one is told so. A test keeps the list true."""

MIN_MASTER_KEY_CHARS = 24
MAX_RUBRIC_CHARS = 20_000
_WELL_KNOWN = re.compile(
    r"sk-(?:1234\d*|test|master|secret|admin|password|litellm)?(?:[-_]?(?:master[-_]?)?key)?", re.IGNORECASE
)
_PLACEHOLDER = re.compile(
    r"change.?me|example|placeholder|your[-_]|replace[-_]?|x{6,}|0123456789|1234567890", re.IGNORECASE
)


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
    """A model that grades a share of the answers (gateway/judge.py). `rubric` "": the one that is shipped."""

    model: str
    sample: float = 0.02
    budget_nanousd_per_day: int = NANOUSD_PER_USD
    rubric: str = ""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Which policy decides, and how freely. `default_lambda` is quality (0..1 scale) one dollar must buy.

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
    drop_params: bool = True
    lane: str = "auto"


@dataclass(frozen=True, slots=True)
class GeneralSettings:
    """`master_key` None: none was configured (`gateway.master_key` then makes one). The URL's path is absolute."""

    master_key: Secret | None = None
    database_url: Secret = field(default_factory=lambda: Secret(DEFAULT_DATABASE_URL))


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

    body_bytes: int = 4 * 2**20
    header_bytes: int = 32 * 2**10
    json_depth: int = 64
    choices: int = 8
    stream_buffer_bytes: int = 256 * 2**10
    parallel_requests: int = 512
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


@dataclass(frozen=True, slots=True)
class Draft:
    """What could be read, with its problems: `settings` may only be used when there are none."""

    settings: Settings
    problems: tuple[str, ...]


def load_settings(path: Path | str, environ: Mapping[str, str]) -> Settings:
    """The settings of the file at `path`, environment overrides applied.

    Raises SettingsError with every problem found, one line each, when there is any.
    """
    draft = read_settings(path, environ)
    if draft.problems:
        raise SettingsError(draft.problems)
    return draft.settings


def read_settings(path: Path | str, environ: Mapping[str, str]) -> Draft:
    """As `load_settings`, but what is wrong is left at its default and returned beside the rest."""
    file = Path(path).absolute()
    findings = Findings()
    document, files = read_document(file, findings, environ)
    unreadable = bool(findings.problems) and not document.entries
    models = () if unreadable else read_model_list(document)
    general_section = _with_overrides(document.section("general_settings"), environ)
    general = _read_general(general_section, file.parent)
    timings, limits = _read_timings(general_section), _read_limits(general_section)
    general_section.finish(litellm_keys.GENERAL_SETTINGS)
    router = _read_router(document.section("router_settings"), document.section("litellm_settings"))
    session = _read_session(document.section("session_settings"))
    policy = _read_policy(document.section("policy_settings"), file.parent)
    document.finish(litellm_keys.TOP_LEVEL, known=("include",))
    if models:
        _check_references(router, models, document)
        _check_judge(policy.judge, models, document)
    return Draft(
        settings=Settings(
            models=models,
            session=session,
            policy=policy,
            router=router,
            general=general,
            timings=timings,
            limits=limits,
            path=file,
            files=files,
            warnings=tuple(dict.fromkeys(findings.warnings)),
        ),
        problems=tuple(dict.fromkeys(findings.problems)),
    )


def read_database_url(path: Path | str, environ: Mapping[str, str]) -> Secret:
    """Only the URL of the database: what an account needs, wherever the providers' keys are.

    Raises SettingsError when the file cannot be read or the URL is none.
    """
    file = Path(path).absolute()
    findings = Findings()
    document, _ = read_document(file, findings, environ)
    section = _with_overrides(document.section("general_settings"), environ)
    url = _checked_database_url(section, section.secret("database_url") or Secret(DEFAULT_DATABASE_URL), file.parent)
    if findings.problems:
        raise SettingsError(findings.problems)
    return url


def with_master_key(settings: Settings, master_key: Secret) -> Settings:
    """The same settings with another admin key."""
    return replace(settings, general=replace(settings.general, master_key=master_key))


def weakness_of_master_key(key: str) -> str | None:
    """Why this key must not guard money, in words without the key; None when nothing speaks against it."""
    if not key.startswith("sk-"):
        return 'expected a key that begins with "sk-"'
    if _WELL_KNOWN.fullmatch(key) or _PLACEHOLDER.search(key):
        return "expected a secret key, got a well-known or placeholder one"
    if len(key) < MIN_MASTER_KEY_CHARS:
        return f"expected at least {MIN_MASTER_KEY_CHARS} characters, got {len(key)}"
    if len(key) > 512 or not key.isascii() or not key.isprintable() or " " in key:
        return "expected at most 512 printable ASCII characters without spaces"
    if len(set(key[3:])) < 8:
        return "expected a random key, got fewer than 8 different characters"
    return None


def _with_overrides(section: Section, environ: Mapping[str, str]) -> Section:
    for variable, key in ENVIRONMENT_OVERRIDES.items():
        value = environ.get(variable)
        if value:
            section.entries[key] = Located(variable, value)
    return section


def _read_general(section: Section, folder: Path) -> GeneralSettings:
    master_key = section.secret("master_key")
    if master_key is not None:
        weakness = weakness_of_master_key(master_key.reveal())
        if weakness is not None:
            section.findings.problem(section.path("master_key"), weakness)
            master_key = None
    url = section.secret("database_url") or Secret(DEFAULT_DATABASE_URL)
    return GeneralSettings(master_key, _checked_database_url(section, url, folder))


def _checked_database_url(section: Section, url: Secret, folder: Path) -> Secret:
    """A SQLite file's path counts from the configuration's folder, so that every command meets the same file."""
    text = url.reveal()
    where = section.path("database_url")
    if text.startswith("sqlite:///"):
        name = text.removeprefix("sqlite:///")
        if not name or name.startswith((":memory:", "?")) or name.endswith("/"):
            section.findings.problem(where, "expected sqlite:///FILE: money in memory would be lost with the process")
            return Secret(DEFAULT_DATABASE_URL)
        return Secret(f"sqlite:///{(folder / name).as_posix()}")
    try:
        parts = urlsplit(text)
        good = (
            parts.scheme in ("postgres", "postgresql", "postgresql+psycopg")
            and bool(parts.path.strip("/"))
            and (parts.port or 1) > 0
        )
    except ValueError:
        good = False
    if not good:
        section.findings.problem(where, "expected sqlite:///FILE or postgresql://user:password@host/database")
        return Secret(DEFAULT_DATABASE_URL)
    return Secret("postgresql" + text[text.index("://") :])


def _read_timings(section: Section) -> TimingSettings:
    default = TimingSettings()
    return TimingSettings(
        hold_ttl_s=section.number("hold_ttl_seconds", default.hold_ttl_s, minimum=0.2, maximum=86400),
        sweep_s=section.number("sweep_seconds", default.sweep_s, minimum=0.05, maximum=3600),
        drain_s=section.number("drain_seconds", default.drain_s, maximum=3600),
        upstream_idle_s=section.number("upstream_idle_seconds", default.upstream_idle_s, minimum=0.1, maximum=3600),
    )


def _read_limits(section: Section) -> LimitSettings:
    default = LimitSettings()
    return LimitSettings(
        body_bytes=section.integer("max_body_bytes", default.body_bytes, minimum=1024, maximum=2**30),
        header_bytes=section.integer("max_header_bytes", default.header_bytes, minimum=1024, maximum=2**20),
        json_depth=section.integer("max_json_depth", default.json_depth, minimum=8, maximum=500),
        choices=section.integer("max_choices", default.choices, minimum=1, maximum=128),
        stream_buffer_bytes=section.integer(
            "stream_buffer_bytes", default.stream_buffer_bytes, minimum=4096, maximum=2**26
        ),
        parallel_requests=section.integer(
            "global_max_parallel_requests", default.parallel_requests, minimum=1, maximum=10**6
        ),
        outage_cap_nanousd=section.usd("outage_cap_usd", default.outage_cap_nanousd),
    )


def _read_session(section: Section) -> SessionSettings:
    default = SessionSettings()
    session = SessionSettings(
        default_budget_nanousd=section.usd("default_budget_usd", default.default_budget_nanousd),
        max_budget_nanousd=section.usd("max_budget_usd", default.max_budget_nanousd),
        idle_timeout_s=section.duration_s("idle_timeout", default.idle_timeout_s, minimum_s=1.0)
        or default.idle_timeout_s,
        id_headers=tuple(name.lower() for name in section.texts("id_headers")),
        over_budget=section.choice("over_budget", default.over_budget, ("degrade", "refuse")),
        max_turns=section.optional_integer("max_turns", minimum=1, maximum=10**6),
    )
    section.finish()
    if session.default_budget_nanousd > session.max_budget_nanousd:
        section.findings.problem(section.path("default_budget_usd"), "expected at most max_budget_usd")
    for name in session.id_headers:
        if re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}", name) is None or name in ("authorization", "cookie", "host"):
            section.findings.problem(section.path("id_headers"), f'expected names of HTTP headers, got "{name[:64]}"')
    return session


def _read_policy(section: Section, folder: Path) -> PolicySettings:
    default = PolicySettings()
    policy = PolicySettings(
        directory=folder / (section.text("directory") or default.directory),
        mode=section.choice("mode", default.mode, ("off", "shadow", "canary", "on")),
        canary_fraction=section.number("canary_fraction", default.canary_fraction, maximum=1.0),
        publish=section.choice("publish", default.publish, ("shadow", "canary", "champion")),
        auto_promote=section.flag("auto_promote", default.auto_promote) is not False,
        canary_hours=section.number("canary_hours", default.canary_hours, maximum=8760.0),
        exploration_floor=section.number("exploration_floor", default.exploration_floor, maximum=0.5),
        exploration_nanousd_per_day=section.usd("exploration_usd_per_day", default.exploration_nanousd_per_day),
        default_lambda=section.number("default_lambda", default.default_lambda, maximum=1e6),
        decision_deadline_ms=section.number(
            "decision_deadline_ms", default.decision_deadline_ms, minimum=0.1, maximum=10_000.0
        ),
        judge=_read_judge(section.section("judge"), folder),
    )
    section.finish()
    return policy


def _read_judge(section: Section, folder: Path) -> JudgeSettings | None:
    """None when no model is named: nothing is judged."""
    model, rubric = section.text("model"), section.text("rubric")
    text = ""
    if rubric is not None:
        try:
            text = (folder / rubric).read_text(encoding="utf-8")[:MAX_RUBRIC_CHARS].strip()
        except (OSError, UnicodeDecodeError) as error:
            section.findings.problem(
                section.path("rubric"), f"expected a readable text file, got {type(error).__name__} at {rubric}"
            )
    default = JudgeSettings("")
    settings = JudgeSettings(
        model=model or "",
        sample=section.number("sample", default.sample, maximum=1.0),
        budget_nanousd_per_day=section.usd("budget_usd_per_day", default.budget_nanousd_per_day),
        rubric=text,
    )
    if model is None and any(section.names()):
        section.findings.problem(section.path("model"), "expected the model of model_list that judges")
    section.finish()
    return None if model is None else settings


def _check_judge(judge: JudgeSettings | None, models: tuple[ModelEntry, ...], document: Section) -> None:
    if judge is not None and judge.model not in {entry.model_name for entry in models}:
        section = document.section("policy_settings").section("judge")
        section.findings.problem(section.path("model"), f'expected a model of model_list, got "{judge.model}"')


def _read_router(router: Section, litellm: Section) -> RouterSettings:
    """`router_settings` wins over what `litellm_settings` says of the same thing, as in LiteLLM."""
    default = RouterSettings()
    timeout_s = litellm.duration_s("request_timeout", default.timeout_s, minimum_s=0.1, maximum_s=86400.0)
    settings = RouterSettings(
        num_retries=router.integer(
            "num_retries", litellm.integer("num_retries", default.num_retries, maximum=10), maximum=10
        ),
        timeout_s=router.duration_s("timeout", timeout_s, minimum_s=0.1, maximum_s=86400.0) or default.timeout_s,
        stream_timeout_s=router.duration_s("stream_timeout", None, minimum_s=0.1, maximum_s=86400.0),
        allowed_fails=router.integer(
            "allowed_fails", litellm.integer("allowed_fails", default.allowed_fails, maximum=10**6), maximum=10**6
        ),
        cooldown_s=router.duration_s("cooldown_time", default.cooldown_s, maximum_s=86400.0) or 0.0,
        fallbacks=_read_fallbacks(litellm, "fallbacks") | _read_fallbacks(router, "fallbacks"),
        default_fallbacks=router.texts("default_fallbacks") or litellm.texts("default_fallbacks"),
        context_window_fallbacks=_read_fallbacks(litellm, "context_window_fallbacks")
        | _read_fallbacks(router, "context_window_fallbacks"),
        model_group_alias=_read_aliases(router),
        drop_params=litellm.flag("drop_params", default.drop_params) is True,
        lane=router.choice("lane", default.lane, LANES),
    )
    for section in (router, litellm):
        for key in ROUTER_KEYS_WITHOUT_EFFECT:
            if section.has(key):
                section.findings.warn(section.path(key), "is checked, but has no effect in this version")
    router.finish(litellm_keys.ROUTER_SETTINGS)
    litellm.finish(litellm_keys.LITELLM_SETTINGS)
    return settings


def _read_fallbacks(section: Section, key: str) -> dict[str, tuple[str, ...]]:
    """LiteLLM's form: a list of one-key mappings, `[{a: [b, c]}]`."""
    fallbacks: dict[str, tuple[str, ...]] = {}
    for located in section.items(key):
        nested = section.nested(located)
        for name in nested.names():
            if name in fallbacks:
                section.findings.problem(nested.path(name), f'"{name}" stands here twice')
            fallbacks[name] = nested.texts(name)
    return fallbacks


def _read_aliases(section: Section) -> dict[str, str]:
    """`alias: model`, or LiteLLM's longer form `alias: {model: ..., hidden: ...}`."""
    nested = section.section("model_group_alias")
    aliases: dict[str, str] = {}
    for alias in nested.names():
        located = nested.entries[alias]
        if isinstance(located.raw, dict):
            longer = nested.section(alias)
            target = longer.text("model")
            longer.flag("hidden")
            longer.finish()
        else:
            target = nested.text(alias)
        if target is not None:
            aliases[alias] = target
    return aliases


def _check_references(router: RouterSettings, models: tuple[ModelEntry, ...], document: Section) -> None:
    names = {entry.model_name for entry in models}
    section = document.section("router_settings")
    for alias, target in router.model_group_alias.items():
        where = f"{section.where}.model_group_alias.{alias}"
        if target not in names:
            section.findings.problem(where, f'expected a model of model_list, got "{target}"')
        if alias in names or alias == "auto" or alias.startswith("auto@"):
            section.findings.problem(where, f'"{alias}" already means something: choose another alias')
    known = names | router.model_group_alias.keys()
    for key, mapping in (
        ("fallbacks", router.fallbacks),
        ("context_window_fallbacks", router.context_window_fallbacks),
        ("default_fallbacks", {"*": router.default_fallbacks}),
    ):
        for source, targets in mapping.items():
            missing = [name for name in ((source,) if source != "*" else ()) + targets if name not in known]
            for name in missing:
                section.findings.problem(section.path(key), f'expected models of model_list, got "{name}"')
