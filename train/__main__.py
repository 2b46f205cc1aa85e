"""`seqroute-train`: from the decision log to a better policy. Commands import what they need when they run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from datetime import date as calendar_date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from train.bar import Bar
from train.errors import InputError

if TYPE_CHECKING:
    from gateway.settings import Settings
    from train.config import TrainConfig
    from train.nightly import Nightly

BAD_INPUT = 2
Config = Annotated[Path, typer.Option("--config", help="The gateway's gateway.yaml.")]
Training = Annotated[Path | None, typer.Option("--training", help="YAML with training settings; see docs/training.md.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the split and of the fit (default 0).")]
LogFolder = Annotated[
    Path | None, typer.Option("--log", metavar="DIR", help="Read this export instead of the database's own log.")
]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Use this replay folder instead of a gateway's log.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]


class CommandError(InputError):
    """Found by the command line itself."""


def nightly(
    config: Config = Path("gateway.yaml"),
    date: Annotated[str | None, typer.Option(help="Date of the run, YYYY-MM-DD (default: today, UTC).")] = None,
    seed: Seed = None,
    force: Annotated[bool, typer.Option("--force", help="Run although this date has run, or runs.")] = False,
    runs: Annotated[Path | None, typer.Option(help="Folder of step results (default: runs, by the config).")] = None,
    training: Training = None,
    log: LogFolder = None,
    as_json: AsJson = False,
) -> int:
    """Read the log, relabel, fit, evaluate off-policy, gate, and publish what passes. Made for cron."""
    settings, chosen = _settings(config), _training(training, seed)
    from train.nightly import Nightly, run

    with Bar() as progress:
        job = Nightly(
            database_url=settings.general.database_url.reveal(),
            policies=settings.policy,
            runs=runs or settings.path.parent / "runs",
            run_date=_date(date),
            now_ms=_now_ms,
            force=force,
            log=log,
            progress=progress.show,
        )
        report = run(job, chosen)
    _print(report, as_json)
    return 0


def fit(
    run: Annotated[Path, typer.Option(help="Folder to write the candidates and the step's result to.")],
    config: Config = Path("gateway.yaml"),
    seed: Seed = None,
    training: Training = None,
    log: LogFolder = None,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> int:
    """Fit and tune candidates on the training part of the log; nothing is published."""
    chosen = _training(training, seed, data)
    from train import steps

    with Bar() as progress:
        result = steps.fit(_step_job(config, run.parent, log, data, progress), chosen, run, data)
    _print(result, as_json)
    return 0


def evaluate(
    run: Annotated[Path, typer.Option(help="Folder that `fit` wrote.")],
    config: Config = Path("gateway.yaml"),
    seed: Seed = None,
    training: Training = None,
    log: LogFolder = None,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> int:
    """Evaluate the candidates of a `fit` on the untouched part of the log, and say what the gate would."""
    chosen = _training(training, seed, data)
    from train import steps

    with Bar() as progress:
        result = steps.evaluate(_step_job(config, run.parent, log, data, progress), chosen, run, data)
    _print(result, as_json)
    return 0


def replay(
    data: Annotated[list[Path], typer.Option("--data", help="Folder of graded answers; may be given several times.")],
    json_file: Annotated[Path, typer.Option("--json", help="File to write rows, summary and fronts to.")],
    preset: Annotated[str, typer.Option(help="quick (minutes) or full (hours).")] = "quick",
    seed: Annotated[int, typer.Option(help="Of the split, the sessions and the fits.")] = 0,
    models: Annotated[str, typer.Option(help="The catalogue, a,b,c (default: all, or the front when many).")] = "",
    policies: Annotated[str, typer.Option(help="Report these policies alone, a,b,c.")] = "",
    turns: Annotated[str, typer.Option(help="Turns of a session, 4,8,...; random is one of them.")] = "",
    phi: Annotated[str, typer.Option(help="Budgets between the weakest (0) and the strongest (1), .2,.5,...")] = "",
    ordering: Annotated[str, typer.Option(help="iid, by-topic, easy-first, hard-first, late-burst.")] = "",
    mode: Annotated[str, typer.Option(help="cut, degrade.")] = "",
    base_context: Annotated[str, typer.Option(help="Tokens before the first turn of the prompt-cache cells.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Folder for the fronts and starvation curves, SVG and PNG.")] = None,
) -> int:
    """Play composed sessions of graded answers with every policy, and write what each earned."""
    from train.replay.cells import PRESETS, OptionError, narrowed
    from train.replay.data import DataError
    from train.replay.run import Options, run

    if preset not in PRESETS:
        raise CommandError(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    try:
        grid = narrowed(
            PRESETS[preset](),
            turns=_words(turns),
            phis=_words(phi),
            modes=_words(mode),
            orderings=_words(ordering),
            base_contexts=_words(base_context),
        )
        with Bar() as progress:
            options = Options(
                folders=tuple(data),
                grid=grid,
                preset=preset,
                models=_words(models),
                policies=_words(policies),
                seed=seed,
                workers=len(os.sched_getaffinity(0)),
                progress=progress.show,
            )
            report = run(options)
    except (DataError, OptionError) as error:
        raise CommandError(str(error)) from error
    json_file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"{len(report['rows']):,} rows in {json_file}")
    if plot is not None:
        from train.replay.plots import draw

        print(f"{len(draw(report['front'], plot))} pictures in {plot}")
    return 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def export(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to; days that are final stay.")],
    config: Config = Path("gateway.yaml"),
    since: Annotated[str | None, typer.Option(help="First day, YYYY-MM-DD, UTC (default: the log's first).")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant, by name or id.")] = None,
    text: Annotated[bool, typer.Option("--text", help="With the texts that tenants let us store.")] = False,
    as_json: AsJson = False,
) -> int:
    """Write the decision log as Parquet, one file a day and table; go on where an earlier export stopped."""
    from train.export import Export
    from train.export import export as write

    url = _database_url(config)
    job = Export(
        database_url=url,
        folder=out,
        now_ms=_now_ms(),
        since=None if since is None else calendar_date.fromisoformat(_date(since, "--since")),
        tenant_id=None if tenant is None else _tenant(url, tenant),
        with_text=text,
    )
    with Bar() as progress:
        done = write(job, progress.show)
    if as_json:
        print(json.dumps(done, indent=1, sort_keys=True))
        return 0
    for table, days in done["written"].items():
        print(f"{out}/{table}: {sum(days.values()):,} rows of {len(days)} days written")
    print(f"{done['final_already']} files were final already")
    return 0


def frontier(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for frontier.svg, .png and .json.")],
    config: Config = Path("gateway.yaml"),
    tenant: Annotated[str | None, typer.Option(help="Only sessions of this tenant, by name or id.")] = None,
    run: Annotated[Path | None, typer.Option(help="Draw the candidates of this `fit` too.")] = None,
    quality: Annotated[float | None, typer.Option(help="Which budget does this quality per turn need?")] = None,
    sessions: Annotated[
        int | None, typer.Option(min=20, help="Sessions that are played at most (default 400; of a folder 60).")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here instead.")] = None,
    seed: Seed = None,
    training: Training = None,
    log: LogFolder = None,
    data: DataFolder = None,
) -> int:
    """Draw quality against cost over lambda and over budgets, with intervals, for the sessions of the log."""
    chosen = _training(training, seed, data)
    if data is not None and tenant is not None:
        raise CommandError("--tenant: a replay folder has no tenants; expected one of --tenant and --data")
    from train.frontier_run import Wanted, describe, frontier_of, write

    with Bar() as progress:
        job = _step_job(config, out, log, data, progress)
        tenant_id = None if tenant is None else _tenant(job.database_url, tenant)
        report = frontier_of(job, chosen, Wanted(tenant_id, run, sessions, quality, data))
    files = write(report, out, json_file)
    print("\n".join(describe(report)))
    print(f"written: {', '.join(str(path) for path in files)}")
    return 0


def rollout(
    tasks: Annotated[Path, typer.Option(help="JSONL of tasks; see docs/rollout.md.")],
    max_usd: Annotated[str, typer.Option(help="The most that it may cost; the ledger refuses what goes beyond.")],
    config: Config = Path("gateway.yaml"),
    out: Annotated[Path, typer.Option(help="Folder of the journal and of the result.")] = Path("rollout"),
    depth: Annotated[int, typer.Option(min=1, max=64, help="Turns of a conversation at most.")] = 4,
    branches: Annotated[str, typer.Option(help='Answers continued at every state: "all", or a number drawn.')] = "1",
    models: Annotated[str | None, typer.Option(help="Comma-separated; default: every chat model.")] = None,
    judge: Annotated[str | None, typer.Option(help="The model that grades what only a judge can.")] = None,
    user: Annotated[str | None, typer.Option(help="The model that plays the user beyond a task's own turns.")] = None,
    gateway: Annotated[str | None, typer.Option(help="URL of a running gateway; default: one is started.")] = None,
    name: Annotated[str | None, typer.Option(help="The `source` of the data (default: the folder's name).")] = None,
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Calls at a time.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=16, help="Of an answer, where the task says nothing.")] = 1024,
    check_seconds: Annotated[int, typer.Option(min=1, help="Processor time of one check.")] = 5,
    check_megabytes: Annotated[int, typer.Option(min=64, help="Memory of one check.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the branches and the order of the tasks.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Play graded multi-turn tasks through every model, as counterfactual trees, under a hard dollar cap."""
    from train.rollout.command import play
    from train.rollout.report import describe

    with Bar() as progress:
        report = play(
            tasks,
            config,
            out,
            max_usd=max_usd,
            gateway=gateway,
            source=name or out.resolve().name,
            parallel=parallel,
            check_seconds=check_seconds,
            check_megabytes=check_megabytes,
            progress=lambda done, total: progress.show("rollout", done, total),
            models=tuple(models.split(",")) if models else (),
            depth=depth,
            branches=branches,
            seed=seed,
            max_tokens=max_tokens,
            judge=judge,
            user=user,
        )
    if as_json:
        _print(report, as_json)
    else:
        print("\n".join(describe(report)))
    return 0


def import_logs(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL transcripts, or LiteLLM spend logs (JSONL, CSV).")
    ],
    config: Config = Path("gateway.yaml"),
    shadow: Annotated[bool, typer.Option("--shadow", help="Put the policy on trial; it never serves by this.")] = False,
    seed: Seed = None,
    training: Training = None,
    as_json: AsJson = False,
) -> int:
    """A policy before the first request: learn from other programs' logs what they can teach, and say what not."""
    from gateway.catalog import load
    from gateway.section import SettingsError
    from train.importing import Import, describe
    from train.importing import import_logs as run

    try:
        settings, catalog = load(config, os.environ)
    except SettingsError as error:
        raise CommandError("\n".join(error.problems)) from error
    url = settings.general.database_url.reveal()
    with Bar() as progress:
        job = Import(file, catalog, url, settings.policy.directory, _now_ms(), shadow)
        report = run(job, _training(training, seed), progress.show)
    print(json.dumps(report, indent=1, sort_keys=True) if as_json else "\n".join(describe(report)))
    return 0


def _step_job(config: Path, runs: Path, log: Path | None, data: Path | None, progress: Bar) -> Nightly:
    """For a step on its own. A replay folder needs no gateway."""
    from gateway.settings import PolicySettings
    from train.nightly import Nightly

    if data is not None and log is not None:
        raise CommandError("--log: expected one of --log and --data, found both")
    if data is not None:
        return Nightly("", PolicySettings(), runs, "", _now_ms, progress=progress.show)
    settings = _settings(config)
    url = settings.general.database_url.reveal()
    return Nightly(url, settings.policy, runs, "", _now_ms, log=log, progress=progress.show)


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="seqroute-train",
        help="From the decision log to a better policy.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
    )
    for command in (nightly, fit, evaluate, frontier, replay, rollout, export):
        app.command(command.__name__)(command)
    app.command("import-logs")(import_logs)
    return app


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; answer its exit status. What a user can mend is said in one line each on stderr."""
    try:
        status = build()(list(arguments) or ["--help"], prog_name="seqroute-train", standalone_mode=False)
    except InputError as error:
        return _fail(str(error))
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        return _fail(" ".join(error.format_message().split()))
    except KeyboardInterrupt:
        return 130
    return status if isinstance(status, int) else 0


def _settings(path: Path) -> Settings:
    from gateway.section import SettingsError
    from gateway.settings_file import load_settings

    try:
        return load_settings(path, os.environ)
    except SettingsError as error:
        raise CommandError("\n".join(error.problems)) from error


def _database_url(path: Path) -> str:
    """Only that: an export needs none of the providers' keys."""
    from gateway.section import SettingsError
    from gateway.settings_file import read_database_url

    try:
        return read_database_url(path, os.environ).reveal()
    except SettingsError as error:
        raise CommandError("\n".join(error.problems)) from error


def _training(path: Path | None, seed: int | None, data: Path | None = None) -> TrainConfig:
    """The settings of the file; without one the defaults, for a replay folder those of replay's quick preset."""
    import yaml

    from train.config import ConfigError, from_mapping

    if path is None and data is not None:
        from train.replay.cells import quick

        return replace(quick().training, seed=seed or 0)
    values: object = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise CommandError(f"{path}: cannot be read as YAML ({type(error).__name__})") from error
    if not isinstance(values, Mapping):
        raise CommandError(f"{path}: expected a mapping, found {type(values).__name__}")
    try:
        return from_mapping(values, seed)
    except ConfigError as error:
        raise CommandError(f"{path}: {error}") from error


def _date(text: str | None, option: str = "--date") -> str:
    if text is None:
        return datetime.now(UTC).date().isoformat()
    try:
        return calendar_date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise CommandError(f'{option}: expected YYYY-MM-DD, got "{text}"') from error


def _tenant(url: str, name: str) -> str:
    from gateway import tenants
    from gateway.db import transaction

    with transaction(url, read_only=True) as connection:
        found = tenants.find_tenant(connection, name) or tenants.find_tenant_by_name(connection, name)
    if found is None:
        raise CommandError(f'--tenant: expected a name or an id, found no tenant "{name}"')
    return found.tenant_id


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def _print(report: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=1, sort_keys=True))
        return
    from train.words import describe

    for line in describe(report):
        print(line)


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return BAD_INPUT


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
