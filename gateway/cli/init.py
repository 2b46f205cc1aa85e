"""The command init: writes a working gateway.yaml from three answers.

The models of a provider are three of its price list, from cheap to strong, so that a budget has something to plan; the
file is checked like in check-config before it is kept.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import DEFAULT_CONFIG, CommandError, JsonOption
from gateway.money import MoneyError, nanousd_from_usd, usd_string

FILE = """\
# Written by `seqroute init`. Every key is explained in docs/configuration.md; `seqroute check-config` checks a change.

model_list:
{models}
general_settings:
  # master_key: os.environ/SEQROUTE_MASTER_KEY   # without one, the first start writes a key beside the database
  database_url: {database}

session_settings:
  default_budget_usd: {budget}     # a session that names no budget of its own
  max_budget_usd: {ceiling}         # the largest a client may ask for with X-Session-Budget-USD

policy_settings:
  directory: policies            # where the trainer publishes and the gateway looks
  default_lambda: 1.0            # quality (0..1) that one dollar must buy; 0 = quality only
"""
MODEL = """\
  - model_name: {name}
    litellm_params: {{model: {model}, api_key: os.environ/{variable}}}
    model_info: {{quality_prior: {prior}}}   # 0..1: what you believe before anything is learned
"""
PRIORS = (0.65, 0.75, 0.85)


@dataclass(frozen=True, slots=True)
class ProviderChoice:
    """A provider's models from cheap to strong, as LiteLLM names them, and its key's variable."""

    variable: str
    models: tuple[str, str, str]


PROVIDERS: Mapping[str, ProviderChoice] = {
    "openai": ProviderChoice("OPENAI_API_KEY", ("openai/gpt-5.4-nano", "openai/gpt-5.4-mini", "openai/gpt-5.4")),
    "anthropic": ProviderChoice(
        "ANTHROPIC_API_KEY",
        ("anthropic/claude-haiku-5-5", "anthropic/claude-sonnet-5-5", "anthropic/claude-opus-5-5"),
    ),
    "gemini": ProviderChoice(
        "GEMINI_API_KEY", ("gemini/gemini-3.5-flash-lite", "gemini/gemini-3.8-flash", "gemini/gemini-pro-latest")
    ),
    "mistral": ProviderChoice(
        "MISTRAL_API_KEY",
        ("mistral/mistral-small-latest", "mistral/mistral-large-latest", "mistral/mistral-medium-latest"),
    ),
    "openrouter": ProviderChoice(
        "OPENROUTER_API_KEY",
        ("openrouter/openai/gpt-5-nano", "openrouter/openai/gpt-5-mini", "openrouter/anthropic/claude-sonnet-4.6"),
    ),
}


def init(
    out: Annotated[Path, typer.Option(help="The file to write.")] = DEFAULT_CONFIG,
    provider: Annotated[str | None, typer.Option(help=f"{', '.join(PROVIDERS)}; several joined by commas.")] = None,
    budget_usd: Annotated[str | None, typer.Option(help="Budget of a session that names none, in USD.")] = None,
    database: Annotated[str | None, typer.Option(help="sqlite, a SQLite file, or a postgresql:// URL.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a gateway.yaml from three answers; asks for those that no option gives."""
    if out.exists() and not force:
        raise CommandError(f"{out}: the file exists already: choose another with --out, or use --force")
    given = provider if provider is not None else _ask("--provider", f"Provider ({', '.join(PROVIDERS)})", "openai")
    choices = read_providers(given)
    asked = budget_usd if budget_usd is not None else _ask("--budget-usd", "Budget of a session in USD", "1.00")
    budget_nanousd = read_budget(asked)
    question = "Database (sqlite, a SQLite file, or a postgresql:// URL)"
    where = database if database is not None else _ask("--database", question, "sqlite")
    text = render(choices, budget_nanousd, read_database(where, out.parent))
    _check(text, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    missing = sorted({choice.variable for choice in choices} - os.environ.keys())
    commands = [f"seqroute migrate --config {out}"] if where.startswith("postgres") else []
    commands.append(f"seqroute serve --config {out}")
    if as_json:
        print(json.dumps({"file": str(out), "set_variables": missing, "run": commands}, indent=2))
        return
    print(f"{out} written. Next:")
    for line in [*(f"export {variable}=..." for variable in missing), *commands]:
        print(f"  {line}")


def _ask(option: str, question: str, default: str) -> str:
    """The answer; the question goes to standard error, which leaves standard output to the result."""
    try:
        answer: str = typer.prompt(question, default=default, err=True)
    except typer.Abort:
        if sys.stdin is not None and sys.stdin.isatty():
            raise
        print(file=sys.stderr)
        raise CommandError(f"{option}: expected this option or an answer, got the end of the input") from None
    return answer


def read_providers(text: str) -> list[ProviderChoice]:
    """Read names of PROVIDERS joined by commas. Raises CommandError for others."""
    names = list(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown or not names:
        raise CommandError(
            f'--provider: expected some of {", ".join(PROVIDERS)}, got "{text[:80]}"; write others by hand '
            "(docs/providers.md) or convert a LiteLLM configuration with `seqroute import-litellm`"
        )
    return [PROVIDERS[name] for name in names]


def read_budget(text: str) -> int:
    """Read a positive amount of USD in nano-USD. Raises CommandError."""
    try:
        nanousd = nanousd_from_usd(text)
    except MoneyError as error:
        raise CommandError(f"--budget-usd: {error}") from error
    if nanousd == 0:
        raise CommandError(f'--budget-usd: expected at least 0.000000001, got "{text[:40]}"')
    return nanousd


def read_database(text: str, folder: Path) -> str:
    """The database URL of a configuration in `folder`, for "sqlite", a file's path, or a URL.

    A word alone, such as "postgres", is no path: it stays, and is refused like a wrong URL.
    """
    if text == "sqlite":
        return "sqlite:///seqroute.db"
    path = Path(text)
    if "://" in text or text.endswith("/") or not (path.suffix or len(path.parts) > 1):
        return text
    return f"sqlite:///{text if path.is_absolute() else Path(os.path.relpath(path, folder)).as_posix()}"


def render(choices: Sequence[ProviderChoice], budget_nanousd: int, database_url: str) -> str:
    """The text of a configuration."""
    models = [
        MODEL.format(name=model.rsplit("/", 1)[1], model=model, variable=choice.variable, prior=prior)
        for choice in choices
        for model, prior in zip(choice.models, PRIORS, strict=True)
    ]
    return FILE.format(
        models="".join(models),
        database=database_url,
        budget=usd_string(budget_nanousd),
        ceiling=usd_string(10 * budget_nanousd),
    )


def _check(text: str, out: Path) -> None:
    """Raise CommandError with the problems that check-config would find once the variables are set."""
    from gateway.catalog.build import draft
    from gateway.config.reader import AssumedEnvironment

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / out.name
        path.write_text(text, encoding="utf-8")
        problems = draft(path, AssumedEnvironment()).problems
    if problems:
        raise CommandError(*problems)
