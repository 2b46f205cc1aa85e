"""Loading of `gateway.yaml` into settings, with every problem reported.

`load_settings(path, environ)` depends only on the files and the given environment. LiteLLM's blocks and keys are read
as its proxy reads them; `session_settings` and `policy_settings` are our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from gateway.config.load_router import check_references, finish_litellm_block, read_router
from gateway.config.master_key import problem_of_master_key
from gateway.config.model_entry import ModelEntry
from gateway.config.model_list import read_model_list
from gateway.config.reader import AssumedEnvironment, Findings, Located, Section, SettingsError
from gateway.config.settings import (
    DEFAULT_DATABASE_URL,
    LOG_FORMATS,
    PRESETS,
    TEXTS,
    GeneralSettings,
    JudgeSettings,
    JwtSettings,
    LimitSettings,
    PolicySettings,
    RateQuota,
    RetentionSettings,
    SessionSettings,
    Settings,
    TextSettings,
    TimingSettings,
    WebhookSettings,
)
from gateway.config.values import Secret
from gateway.config.yaml_file import read_document

ENVIRONMENT_OVERRIDES: Mapping[str, str] = {
    "SEQROUTE_HOLD_TTL_SECONDS": "hold_ttl_seconds",
    "SEQROUTE_SWEEP_SECONDS": "sweep_seconds",
    "SEQROUTE_DRAIN_SECONDS": "drain_seconds",
    "SEQROUTE_UPSTREAM_IDLE_SECONDS": "upstream_idle_seconds",
    "SEQROUTE_MASTER_KEY": "master_key",
    "SEQROUTE_DATABASE_URL": "database_url",
    "SEQROUTE_LOG_FORMAT": "log_format",
}
"""Environment variable -> key of `general_settings` that it overrides (SEQROUTE_CONFIG names the file)."""
MAX_RUBRIC_CHARS = 20_000
MIN_KEPT_S, MAX_KEPT_S = 7 * 86_400.0, 3_660 * 86_400.0
"""A week: training and the dashboard read that much, and days are archived for good two days after their start."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Settings as far as readable; usable only without `problems`."""

    settings: Settings
    problems: tuple[str, ...]


def load_settings(path: Path | str, environ: Mapping[str, str]) -> Settings:
    """Load the file at `path` and apply environment overrides.

    Raises SettingsError with one line for every problem.
    """
    draft = read_settings(path, environ)
    if draft.problems:
        raise SettingsError(draft.problems)
    return draft.settings


def read_settings(path: Path | str, environ: Mapping[str, str]) -> Draft:
    """Load like `load_settings`, but keep defaults for invalid values and return the problems."""
    file = Path(path).absolute()
    findings = Findings()
    document, files = read_document(file, findings, environ)
    unreadable = bool(findings.problems) and not document.entries
    models = () if unreadable else read_model_list(document)
    general_section = _with_overrides(document.section("general_settings"), environ)
    litellm = document.section("litellm_settings")
    json_logs = litellm.flag("json_logs", default=False) is True
    general = _read_general(general_section, file.parent, LOG_FORMATS[json_logs])
    timings, limits = _read_timings(general_section), _read_limits(general_section)
    finish_litellm_block(general_section, "general_settings")
    router = read_router(document.section("router_settings"), litellm)
    session = _read_session(document.section("session_settings"))
    policy = _read_policy(document.section("policy_settings"), file.parent)
    finish_litellm_block(document, "top_level", known=("include",))
    if models:
        check_references(router, models, document)
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


_NAMED_VARIABLES = re.compile(r"environment_variables\.")


def read_database_url(path: Path | str, environ: Mapping[str, str]) -> Secret:
    """Read only the database URL, for commands that run without the providers' keys.

    Raises SettingsError when the file cannot be read, or the URL is invalid or in an unset variable.
    """
    file = Path(path).absolute()
    findings = Findings()
    document, _ = read_document(file, findings, AssumedEnvironment(environ, _NAMED_VARIABLES))
    section = _with_overrides(document.section("general_settings"), environ)
    url = _checked_database_url(section, section.secret("database_url") or Secret(DEFAULT_DATABASE_URL), file.parent)
    if findings.problems:
        raise SettingsError(findings.problems)
    return url


def _with_overrides(section: Section, environ: Mapping[str, str]) -> Section:
    for variable, key in ENVIRONMENT_OVERRIDES.items():
        value = environ.get(variable)
        if value:
            section.entries[key] = Located(variable, value)
    return section


def _read_general(section: Section, folder: Path, log_format: str) -> GeneralSettings:
    master_key = section.secret("master_key")
    if master_key is not None:
        weakness = problem_of_master_key(master_key.reveal())
        if weakness is not None:
            section.problem("master_key", weakness)
            master_key = None
    keys = _read_quota(section.section("key_limits"))
    parallel = section.optional_integer("max_parallel_requests", maximum=10**12) or None
    url = section.secret("database_url") or Secret(DEFAULT_DATABASE_URL)
    checked_url = _checked_database_url(section, url, folder)
    return GeneralSettings(
        master_key,
        checked_url,
        _read_webhooks(section),
        _read_origins(section),
        tenant_limits=_read_quota(section.section("tenant_limits")),
        key_limits=keys.within(RateQuota(parallel=parallel)),
        jwt=_read_jwt(section, folder),
        tracing=_read_tracing(section),
        retention=_read_retention(section.section("retention"), folder),
        log_format=section.choice("log_format", log_format, LOG_FORMATS),
    )


def _read_tracing(general: Section) -> bool:
    wanted = general.flag("tracing", default=False) is True
    if wanted and (find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None):
        general.problem("tracing", 'needs OpenTelemetry: pip install "seqroute[otel]"')
    return wanted


def _read_retention(section: Section, folder: Path) -> RetentionSettings:
    """A local archive's path is relative to the configuration's folder."""
    kept_s = section.duration_s("decisions", None, minimum_s=MIN_KEPT_S, maximum_s=MAX_KEPT_S)
    archive = section.text("archive")
    texts = section.flag("archive_texts", default=False) is True
    section.finish()
    if archive is not None and not archive.startswith("s3://"):
        if "://" in archive:
            section.problem("archive", "expected a folder or s3://bucket/prefix")
        archive = str(folder / archive)
    return RetentionSettings(kept_s, archive, texts)


def _read_jwt(general: Section, folder: Path) -> JwtSettings | None:
    """Verification of tokens; a path is relative to the configuration's folder."""
    section = general.section("jwt")
    if not section.entries:
        return None
    jwks, issuer, audience = (section.text(key) or "" for key in ("jwks", "issuer", "audience"))
    tenant_claim, role_claim = section.text("tenant_claim") or "tenant", section.text("role_claim")
    section.finish()
    for key, value in (("jwks", jwks), ("issuer", issuer), ("audience", audience)):
        if not value:
            section.problem(key, "expected a string: without it tokens cannot be checked")
    if jwks and "://" not in jwks:
        jwks = str(folder / jwks)
        if not Path(jwks).is_file():
            section.problem("jwks", "expected an http(s) URL or an existing file")
    elif jwks and not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", jwks):
        section.problem("jwks", "expected http(s)://host[:port][/path]")
    return JwtSettings(jwks, issuer, audience, tenant_claim, role_claim)


def _read_quota(section: Section) -> RateQuota:
    quota = RateQuota(*(section.optional_integer(key, minimum=1, maximum=10**12) for key in ("rpm", "tpm", "parallel")))
    section.finish()
    return quota


def _read_webhooks(section: Section) -> tuple[WebhookSettings, ...]:
    """Webhook targets; only the operator can name them."""
    found: list[WebhookSettings] = []
    for located in section.items("webhooks"):
        target = section.nested(located)
        url, secret = target.secret("url"), target.secret("secret")
        target.finish()
        if url is None or not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", url.reveal()) or len(url.reveal()) > 512:
            target.problem("url", "expected http(s)://host[:port][/path]")
        elif secret is None or len(secret.reveal()) < 16:
            target.problem("secret", "expected a secret of at least 16 characters")
        elif url.reveal() in [made.url for made in found]:
            target.problem("url", "expected each URL once")
        else:
            found.append(WebhookSettings(url.reveal(), secret))
    return tuple(found)


def _read_origins(section: Section) -> tuple[str, ...]:
    """Allowed values of a browser's `Origin` header, or `*` for any."""
    origins = section.texts("cors_origins")
    for origin in origins:
        if origin != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@*]+", origin) is None:
            section.problem(
                "cors_origins",
                f'expected "*" or origins like https://chat.example.com, without a path, got "{origin[:64]}"',
            )
    return origins


def _checked_database_url(section: Section, url: Secret, folder: Path) -> Secret:
    """Check the URL; a SQLite path is relative to the configuration's folder, for every command alike."""
    text = url.reveal()
    where = section.path("database_url")
    if text.startswith("sqlite:///"):
        name = text.removeprefix("sqlite:///")
        if not name or name.startswith((":memory:", "?")) or name.endswith("/"):
            section.findings.problem(
                where, "expected sqlite:///FILE: an in-memory ledger would be lost with the process"
            )
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
    parallel = section.integer("global_max_parallel_requests", default.parallel_requests, minimum=1, maximum=10**6)
    return LimitSettings(
        body_bytes=section.integer("max_body_bytes", default.body_bytes, minimum=1024, maximum=2**30),
        header_bytes=section.integer("max_header_bytes", default.header_bytes, minimum=1024, maximum=2**20),
        json_depth=section.integer("max_json_depth", default.json_depth, minimum=8, maximum=500),
        choices=section.integer("max_choices", default.choices, minimum=1, maximum=128),
        stream_buffer_bytes=section.integer(
            "stream_buffer_bytes", default.stream_buffer_bytes, minimum=4096, maximum=2**26
        ),
        parallel_requests=parallel,
        tenant_parallel_requests=section.integer(
            "tenant_max_parallel_requests", max(1, parallel // 2), minimum=1, maximum=10**6
        ),
        admission_wait_s=section.number(
            "admission_queue_timeout_seconds", default.admission_wait_s, minimum=0.01, maximum=60.0
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
        wrap_up=section.flag("wrap_up", default.wrap_up) is True,
        on_stall=section.choice("on_stall", default.on_stall, ("log", "notify", "pause")),
    )
    section.finish()
    if session.default_budget_nanousd > session.max_budget_nanousd:
        section.problem("default_budget_usd", "expected at most max_budget_usd")
    for name in session.id_headers:
        if re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}", name) is None or name in ("authorization", "cookie", "host"):
            section.problem("id_headers", f'expected names of HTTP headers, got "{name[:64]}"')
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
        exploration_quota=section.integer("exploration_quota", default.exploration_quota, maximum=1_000_000),
        default_lambda=section.number("default_lambda", default.default_lambda, maximum=1e6),
        lambda_presets=_read_presets(section.section("lambda_presets")),
        decision_deadline_ms=section.number(
            "decision_deadline_ms", default.decision_deadline_ms, minimum=0.1, maximum=10_000.0
        ),
        judge=_read_judge(section.section("judge"), folder),
        text=_read_text(section, folder),
    )
    section.finish()
    return policy


def _read_text(section: Section, folder: Path) -> TextSettings:
    kind = section.choice("text", TEXTS[0], TEXTS)
    files: dict[str, Path | None] = {}
    for name in ("model", "tokenizer"):
        key = f"text_{name}"
        path = section.text(key)
        if kind == "onnx" and (path is None or not (folder / path).is_file()):
            section.problem(key, f"expected a file of the encoder, got {path or 'nothing'}")
        files[name] = folder / path if kind == "onnx" and path is not None else None
    return TextSettings(kind, **files)


def _read_presets(section: Section) -> dict[str, float]:
    """The presets that are set."""
    read = {name: section.number(name, 0.0, maximum=1e9) for name in PRESETS}
    section.finish()
    return {name: price for name, price in read.items() if section.has(name)}


def _read_judge(section: Section, folder: Path) -> JudgeSettings | None:
    """Settings of the judge; None without a model, which turns it off."""
    model, rubric = section.text("model"), section.text("rubric")
    text = ""
    if rubric is not None:
        try:
            text = (folder / rubric).read_text(encoding="utf-8")[:MAX_RUBRIC_CHARS].strip()
        except (OSError, UnicodeDecodeError) as error:
            section.problem("rubric", f"expected a readable text file, got {type(error).__name__} at {rubric}")
    default = JudgeSettings("")
    settings = JudgeSettings(
        model=model or "",
        sample=section.number("sample", default.sample, maximum=1.0),
        budget_nanousd_per_day=section.usd("budget_usd_per_day", default.budget_nanousd_per_day),
        rubric=text,
        second_answers=section.number("second_answers", default.second_answers, maximum=0.1),
        second_budget_nanousd_per_day=section.usd("second_answers_usd_per_day", default.second_budget_nanousd_per_day),
    )
    if model is None and any(section.names()):
        section.problem("model", "expected the model of model_list that judges")
    section.finish()
    return None if model is None else settings


def _check_judge(judge: JudgeSettings | None, models: tuple[ModelEntry, ...], document: Section) -> None:
    if judge is not None and judge.model not in {entry.model_name for entry in models}:
        section = document.section("policy_settings").section("judge")
        section.problem("model", f'expected a model of model_list, got "{judge.model}"')
