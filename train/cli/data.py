"""Commands that read or write external data: replay, rollout, export, import-logs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from datetime import date as calendar_date
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.wording import counted
from train.cli.options import (
    AsJson,
    Config,
    InvalidOption,
    Seed,
    Training,
    database_of,
    database_url,
    gateway_settings,
    now_ms,
    run_date,
    show,
    tenant_named,
    text_of,
    training_environment,
    training_settings,
)
from train.cli.progress import Bar


def replay(
    data: Annotated[list[Path], typer.Option("--data", help="Folder of graded answers; may be given several times.")],
    json_file: Annotated[Path, typer.Option("--json", help="File to write rows, summary and fronts to.")],
    preset: Annotated[str, typer.Option(help="quick (minutes) or full (most of an hour).")] = "quick",
    seed: Annotated[int, typer.Option(help="Random seed of the split, the sessions and the fits.")] = 0,
    models: Annotated[
        str, typer.Option(help="Use only these models, a,b,c (default: all; of many, those on the cost-quality front).")
    ] = "",
    policies: Annotated[str, typer.Option(help="Report only these policies, a,b,c.")] = "",
    turns: Annotated[str, typer.Option(help="Session lengths in turns, 4,8,..., or random.")] = "",
    phi: Annotated[
        str, typer.Option(help="Budgets, from 0 (the weakest model always) to 1 (the strongest always): .2,.5,...")
    ] = "",
    ordering: Annotated[
        str, typer.Option(help="Order of the prompts: iid, by-topic, easy-first, hard-first, late-burst.")
    ] = "",
    mode: Annotated[str, typer.Option(help="What happens when the budget is used up: cut, degrade.")] = "",
    base_context: Annotated[
        str, typer.Option(help="Prompt tokens before the first turn, in the cells about prompt caching.")
    ] = "",
    inputs: Annotated[
        str,
        typer.Option(
            help="What policies are told: live (as the gateway), plain (live, without the learned lengths of answers), "
            "richer (embeddings and groups). Several, a,b,c, play everything once for each."
        ),
    ] = "live",
    plot: Annotated[
        Path | None, typer.Option(help="Folder for plots of the fronts and of starvation, SVG and PNG.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write one self-contained page, with the plots of --plot.")
    ] = None,
) -> int:
    """Run composed sessions of graded answers with every policy, and write what each earned."""
    from train.replay.dataset import DataError
    from train.replay.grid import PRESETS, OptionError, known_inputs, known_policies, narrow
    from train.replay.resume_cache import ResumeCache
    from train.replay.run import Options, run

    if preset not in PRESETS:
        raise InvalidOption(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    try:
        grid = narrow(
            PRESETS[preset](),
            turns=_words(turns),
            phis=_words(phi),
            modes=_words(mode),
            orderings=_words(ordering),
            base_contexts=_words(base_context),
        )
        kept = ResumeCache(json_file.with_name(f"{json_file.name}.parts"))
        with Bar() as progress:
            options = Options(
                folders=tuple(data),
                grid=grid,
                preset=preset,
                models=_words(models),
                policies=known_policies(_words(policies)),
                seed=seed,
                inputs=known_inputs(_words(inputs)),
                workers=len(os.sched_getaffinity(0)),
                kept=kept.folder,
                progress=progress.show,
            )
            report = run(options)
    except (DataError, OptionError) as error:
        raise InvalidOption(str(error)) from error
    _write_replay(report, json_file, plot, html)
    kept.clear()
    return 0


def _write_replay(report: Mapping[str, Any], json_file: Path, plot: Path | None, html: Path | None) -> None:
    json_file.write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")
    print(f"{counted(len(report['rows']), 'row')} in {json_file}")
    _print_replay(report)
    plots = _replay_plots(report, plot) if plot is not None else []
    if html is not None:
        from train.replay.page import replay_page

        html.write_text(replay_page(report, plots), encoding="utf-8")
        print(f"page in {html}")


def _print_replay(report: Mapping[str, Any]) -> None:
    from train.replay import tree
    from train.replay.targets import lines

    for kind in report["meta"]["inputs"]:
        print(f"inputs: {kind}")
        for line in lines([x for x in report["summary"] if x["kind"] == "aim" and x["inputs"] == kind]):
            print(line)
    for line in tree.lines(report["tree"]):
        print(line)


def _replay_plots(report: Mapping[str, Any], folder: Path) -> list[Path]:
    from train.replay.plots import draw

    plots = draw(report["front"], folder)
    print(f"{len(plots)} plots in {folder}")
    return plots


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def rollout(
    tasks: Annotated[Path, typer.Option(help="JSONL of tasks; see docs/rollout.md.")],
    max_usd: Annotated[str, typer.Option(help="The most that it may cost; the ledger refuses anything beyond.")],
    config: Config = Path("gateway.yaml"),
    out: Annotated[Path, typer.Option(help="Folder of the journal and of the result.")] = Path("rollout"),
    depth: Annotated[int, typer.Option(min=1, max=64, help="Longest conversation, in turns.")] = 4,
    branches: Annotated[
        str, typer.Option(help='How many answers to continue from each state: a number, drawn at random, or "all".')
    ] = "1",
    models: Annotated[
        str | None, typer.Option(help="Models to play, comma-separated (default: every chat model).")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Model that grades answers for which a task has no check.")] = None,
    user: Annotated[str | None, typer.Option(help="Model that plays the user after a task's own turns.")] = None,
    gateway: Annotated[str | None, typer.Option(help="URL of a running gateway (default: start one).")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the data set, its `source` (default: the folder's name).")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Calls at the same time.")] = 8,
    max_tokens: Annotated[
        int, typer.Option(min=16, help="Longest answer in tokens, where a task sets no limit.")
    ] = 1024,
    check_seconds: Annotated[int, typer.Option(min=1, help="Processor time that one check may use, in seconds.")] = 5,
    check_megabytes: Annotated[int, typer.Option(min=64, help="Memory that one check may use, in MB.")] = 512,
    seed: Annotated[int, typer.Option(help="Random seed of the branches and of the order of the tasks.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Run graded multi-turn tasks through every model as counterfactual trees under a USD cap."""
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
        show(report, as_json)
    else:
        print("\n".join(describe(report)))
    return 0


def export(
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Folder or s3://... to write to; days that are final stay.")
    ],
    config: Config = Path("gateway.yaml"),
    since: Annotated[str | None, typer.Option(help="First day, YYYY-MM-DD, UTC (default: the log's first).")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant, by name or id.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Include the texts of tenants that allow storing them.")] = False,
    as_json: AsJson = False,
) -> int:
    """Write the decision log as Parquet files by day and table; resumes an earlier export."""
    from train.log.export import Export
    from train.log.export import export as write

    url = database_url(config)
    job = Export(
        database_url=url,
        folder=out,
        now_ms=now_ms(),
        since=None if since is None else calendar_date.fromisoformat(run_date(since, "--since")),
        tenant_id=None if tenant is None else tenant_named(url, tenant),
        with_text=text,
    )
    with Bar() as progress:
        done = write(job, progress.show)
    if as_json:
        print(json.dumps(done, indent=1, sort_keys=True))
        return 0
    for table, days in done["written"].items():
        print(f"{out}/{table}: {counted(sum(days.values()), 'row')} of {counted(len(days), 'day')} written")
    print(f"{counted(done['final_already'], 'file')} already final")
    return 0


def retain(config: Config = Path("gateway.yaml"), as_json: AsJson = False) -> int:
    """Archive the log and remove what is older than general_settings.retention keeps it."""
    from gateway.config.settings import RetentionSettings
    from train.log.retention import Retention
    from train.log.retention import retain as run

    settings = gateway_settings(config)
    if settings.general.retention == RetentionSettings():
        raise InvalidOption("general_settings.retention: expected decisions, archive or both; see docs/operating.md")
    with Bar() as progress:
        done = run(Retention(database_of(settings), settings.general.retention, now_ms()), progress.show)
    if as_json:
        print(json.dumps(done, indent=1, sort_keys=True))
        return 0
    for name, value in done.items():
        print(f"{name.replace('_', ' ')}: {_in_words(value)}")
    return 0


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return datetime.fromtimestamp(value / 1000, UTC).isoformat() if isinstance(value, int) else str(value)


def import_logs(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL transcripts, or LiteLLM spend logs (JSONL, JSON, CSV).")
    ],
    config: Config = Path("gateway.yaml"),
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Publish the policy to the shadow stage, where it serves no one.")
    ] = False,
    seed: Seed = None,
    training: Training = None,
    as_json: AsJson = False,
) -> int:
    """Learn a first policy from other programs' logs, and report what they cannot teach."""
    from gateway.catalog.build import load
    from gateway.config.reader import SettingsError
    from train.nightly.import_logs import Import, describe
    from train.nightly.import_logs import import_logs as run

    try:
        settings, catalog = load(config, training_environment())
    except SettingsError as error:
        raise InvalidOption("\n".join(error.problems)) from error
    url = database_of(settings)
    with Bar() as progress:
        job = Import(file, catalog, url, settings.policy.directory, now_ms(), shadow, text_of(settings))
        report = run(job, training_settings(training, seed), progress.show)
    print(json.dumps(report, indent=1, sort_keys=True) if as_json else "\n".join(describe(report)))
    return 0
