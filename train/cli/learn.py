"""Commands that learn and evaluate policies: nightly, fit, evaluate, frontier, pretrain."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.pipes import unusable
from train.cli.options import (
    BAD_INPUT,
    BROKEN,
    AsJson,
    Config,
    DataFolder,
    InvalidOption,
    LogFolder,
    Seed,
    Training,
    database_errors,
    database_of,
    gateway_settings,
    now_ms,
    problem_of,
    run_date,
    show,
    tenant_named,
    text_of,
    training_settings,
)
from train.cli.progress import Bar, line_writer
from train.errors import InputError

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from train.config import TrainConfig
    from train.nightly.nightly import Nightly

_log = logging.getLogger("seqroute.train")


def nightly(
    config: Config = Path("gateway.yaml"),
    date: Annotated[str | None, typer.Option(help="Date of the run, YYYY-MM-DD (default: today, UTC).")] = None,
    seed: Seed = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run even if this date has run already, or is running.")
    ] = False,
    runs: Annotated[
        Path | None, typer.Option(help="Folder for the results of the steps (default: runs, beside the configuration).")
    ] = None,
    training: Training = None,
    log: LogFolder = None,
    as_json: AsJson = False,
) -> int:
    """Run the nightly job: read the log, fit, evaluate off-policy, gate, and publish. For cron."""
    settings, chosen = gateway_settings(config), training_settings(training, seed)
    version = text_of(settings).version
    from gateway.config.settings import RetentionSettings
    from train.nightly.nightly import Nightly, run

    with _told_as(settings.general.log_format), Bar(line_writer(settings.general.log_format)) as progress:
        job = Nightly(
            database_url=database_of(settings),
            policies=settings.policy,
            runs=runs or settings.path.parent / "runs",
            run_date=run_date(date),
            now_ms=now_ms,
            force=force,
            log=log,
            progress=progress.show,
            text_version=version,
        )
        report = run(job, chosen)
        status = 0
        if settings.general.retention != RetentionSettings() and not report["outcome"].startswith("already"):
            report["retention"], status = _retain(job, settings, progress)
            if status:
                _complain(settings, f"the log was not archived and thinned out: {report['retention']['problem']}")
    show(report, as_json)
    return status


def _retain(job: Nightly, settings: Settings, progress: Bar) -> tuple[dict[str, Any], int]:
    """Archive and shorten the log after a run; a failure is reported and publishes stay valid."""
    from train.log.retention import Retention, retain

    try:
        done = retain(Retention(job.database_url, settings.general.retention, job.now_ms()), progress.show)
    except InputError as error:
        problem = str(error)
    except database_errors() as error:
        problem = problem_of(error)
    else:
        return done, 0
    return {"problem": problem}, 1


def _complain(settings: Settings, problem: str) -> None:
    if settings.general.log_format == "text":
        print(f"seqroute-train: {problem}", file=sys.stderr)
    else:
        _log.error("%s", problem)


@contextmanager
def _told_as(log_format: str) -> Iterator[None]:
    """Log an error that ends a run as a JSON line if the log is JSON; `run_command` prints text."""
    if log_format == "text":
        yield
        return
    try:
        yield
    except InputError as error:
        problem, status = str(error), BAD_INPUT
    except database_errors() as error:  # evaluated only when there is one
        problem, status = problem_of(error), BROKEN
    except OSError as error:
        if error.filename is None:
            raise
        problem, status = unusable(error), BROKEN
    else:
        return
    _log.critical("%s", problem)
    raise typer.Exit(status)


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
    return _run_step("fit", run, config, training_settings(training, seed, data), log, data, as_json=as_json)


def evaluate(
    run: Annotated[Path, typer.Option(help="Folder written by `fit`.")],
    config: Config = Path("gateway.yaml"),
    seed: Seed = None,
    training: Training = None,
    log: LogFolder = None,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> int:
    """Evaluate the candidates of a `fit` on the held-out log, with the gate's verdict."""
    return _run_step("evaluate", run, config, training_settings(training, seed, data), log, data, as_json=as_json)


def _run_step(
    name: Literal["fit", "evaluate"],
    run: Path,
    config: Path,
    chosen: TrainConfig,
    log: str | None,
    data: Path | None,
    *,
    as_json: bool,
) -> int:
    from train.nightly import steps

    with Bar() as progress:
        step = steps.fit if name == "fit" else steps.evaluate
        result = step(_step_job(config, run.parent, log, data, progress), chosen, run, data)
    show(result, as_json)
    return 0


def frontier(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for frontier.svg, .png and .json.")],
    config: Config = Path("gateway.yaml"),
    tenant: Annotated[str | None, typer.Option(help="Only sessions of this tenant, by name or id.")] = None,
    run: Annotated[Path | None, typer.Option(help="Also draw the candidates in this folder of `fit`.")] = None,
    quality: Annotated[float | None, typer.Option(help="Say which budget reaches this quality per turn.")] = None,
    sessions: Annotated[
        int | None, typer.Option(min=20, help="Play at most this many sessions (default 400; with --data 60).")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the report (default: frontier.json in --out).")
    ] = None,
    seed: Seed = None,
    training: Training = None,
    log: LogFolder = None,
    data: DataFolder = None,
) -> int:
    """Plot quality against cost over lambda and budgets, with intervals, for the log's sessions."""
    chosen = training_settings(training, seed, data)
    if data is not None and tenant is not None:
        raise InvalidOption("--tenant: a replay folder has no tenants; expected one of --tenant and --data")
    from train.nightly.frontier import Wanted, describe, frontier_of, write

    with Bar() as progress:
        job = _step_job(config, out, log, data, progress)
        tenant_id = None if tenant is None else tenant_named(job.database_url, tenant)
        report = frontier_of(job, chosen, Wanted(tenant_id, run, sessions, quality, data))
    files = write(report, out, json_file)
    print("\n".join(describe(report)))
    print(f"written: {', '.join(str(path) for path in files)}")
    return 0


def pretrain(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder that the checkpoint's folder is written to.")
    ],
    seed: Annotated[int, typer.Option(help="Random seed of catalogues and training (the shipped checkpoint: 0).")] = 0,
    catalogues: Annotated[int | None, typer.Option(min=1, help="Random catalogues (default 500).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps (default 20,000).")] = None,
    as_json: AsJson = False,
) -> int:
    """Train the generic network of a fresh install on random catalogues, without any data."""
    from policy.checkpoint import layers_as_part, save
    from train.fit.pretrain import PretrainConfig, pretrain, recipe

    defaults = PretrainConfig()
    config = PretrainConfig(catalogues=catalogues or defaults.catalogues, steps=steps or defaults.steps)
    made = recipe(config.sizes, seed)
    if (out / made.policy_id).exists():
        raise InvalidOption(f"--out: {out / made.policy_id} exists already; choose another folder")
    with Bar() as progress:
        layers = pretrain(config, seed, progress.show)
    save(out / made.policy_id, made, {"network": layers_as_part(layers)})
    written = str(out / made.policy_id)
    print(json.dumps({"policy_id": made.policy_id, "folder": written}) if as_json else f"written: {written}")
    return 0


def _step_job(config: Path, runs: Path, log: str | None, data: Path | None, progress: Bar) -> Nightly:
    """Job for a single step. A replay folder needs no gateway."""
    from gateway.config.settings import PolicySettings
    from train.nightly.nightly import Nightly

    if data is not None and log is not None:
        raise InvalidOption("--log: expected one of --log and --data, found both")
    if data is not None:
        return Nightly("", PolicySettings(), runs, "", now_ms, progress=progress.show)
    settings = gateway_settings(config)
    url = database_of(settings) if log is None else settings.general.database_url.reveal()
    version = text_of(settings).version
    return Nightly(url, settings.policy, runs, "", now_ms, log=log, progress=progress.show, text_version=version)
