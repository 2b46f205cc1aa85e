"""The whole benchmark on a small folder: complete, deterministic, and blind to what it must not see."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from policy.features import Horizon
from policy.network_policy import NetworkPolicy
from tests.train.replay.folders import MODELS, USD_OUT_PER_M, write_folder
from train.__main__ import run_command
from train.config import FitConfig, PlanConfig, QualityConfig, TrainConfig
from train.fit.seqroute_paper import PublishedConfig
from train.replay import grid as cells
from train.replay.catalogue import studies
from train.replay.dataset import read_folder
from train.replay.grid import Grid, narrow
from train.replay.ours import learn
from train.replay.predict import predict
from train.replay.richer import richer_bills, richer_vectors
from train.replay.run import Options, run
from train.replay.simulator import NO_CONTEXT
from train.replay.split import halves

OF_SOME_CELLS = {
    "ours-blind",
    "ours-ungated-list-price",
    "ours-network-list-price",
    "gateway-default-list-price",
    "ours-not-offered",
    "ours-trained",
}
POLICIES = set(cells.POLICIES) - OF_SOME_CELLS
KNOWING = {"dp-perfect", "knapsack"}
COLUMNS = {
    *("source", "models", "turns", "ordering", "phi", "mode", "base_context", "cached_price", "write_price", "policy"),
    *("lambda", "quality", "quality_lo", "quality_hi", "diff_vs_best_tuned", "diff_lo", "diff_hi"),
    *("cost_usd", "starved_rate", "bankrupt_rate", "switches", "strong_share"),
}


def small_grid() -> Grid:
    grid = narrow(cells.quick(), turns=("4",), phis=("0.35",), base_contexts=("8000",))
    training = TrainConfig(
        fit=FitConfig(warm_steps=0, steps=0, samples=64, residual_steps=20),
        quality=QualityConfig(landmarks=64),
        plan=PlanConfig(
            samples=24,
            turns=4,
            money_points=12,
            contexts_tokens=(0.0, 8000.0),
            lambdas=(0.15,),
            starved_penalties=(0.0, 1.0),
            cautious_penalties=(5.0,),
        ),
    )
    return replace(
        grid,
        training_sessions=15,
        test_sessions=15,
        resamples=20,
        log_sessions=18,
        gate_sessions=9,
        sweep_sessions=10,
        training=training,
        published=PublishedConfig(widths=(16, 8), steps=50),
    )


def report(folder: Path) -> dict[str, Any]:
    return run(Options((folder,), small_grid()))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def found(toy: Path) -> dict[str, Any]:
    return report(toy)


def test_every_policy_is_reported_in_every_cell_and_ordering(found: dict[str, Any]) -> None:
    by_cell: dict[tuple[Any, ...], set[str]] = {}
    for row in found["rows"]:
        assert row.keys() >= COLUMNS
        if row["new_model"] is None:
            key = tuple(row[name] for name in ("models", "mode", "base_context", "ordering"))
            by_cell.setdefault(key, set()).add(row["policy"])
    assert len(by_cell) == 2 * 3 * 6  # catalogue and pair; cut, degrade and cache; five orderings and all together
    assert all(policies >= POLICIES for policies in by_cell.values())
    assert {row["policy"] for row in found["rows"]} == POLICIES | OF_SOME_CELLS


def test_the_summary_has_cells_fronts_and_the_newcomer(found: dict[str, Any]) -> None:
    assert {line["kind"] for line in found["summary"]} == {"cells", "against", "forecast", "front", "newcomer", "aim"}
    assert {point["figure"] for point in found["front"]} == {"cost-quality", "quality-starvation"}
    shown = {point["policy"] for point in found["front"]}
    assert {"fixed", "tuned-lambda", "published", "pacing", "re-solving", "ours-ungated"} <= shown
    json.dumps(found, allow_nan=False)


def test_knowing_all_beforehand_is_never_worse(found: dict[str, Any]) -> None:
    """The knapsack's bills are rounded down: it is a bound for every policy on the same sessions."""
    best: dict[tuple[Any, ...], float] = {}
    rows = [row for row in found["rows"] if row["new_model"] is None]
    cell = ("models", "mode", "base_context", "ordering")
    for row in rows:
        if row["policy"] == "knapsack":
            best[tuple(row[name] for name in cell)] = row["quality"]
    assert all(row["quality"] <= best[tuple(row[name] for name in cell)] + 1e-9 for row in rows)


def test_the_same_seed_gives_the_same_output_and_grades_of_the_test_half_move_no_decision(
    toy: Path, found: dict[str, Any], tmp_path: Path
) -> None:
    """Shuffled test grades: the same money is spent on the same models by all that do not claim to know them."""
    shuffled = rewritten(toy, tmp_path, lambda held, generator: shuffle(held, "quality", generator))
    again = report(shuffled)
    conduct = ("cost_usd", "starved_rate", "switches", "strong_share", "training_quality", "numbers")
    differing = 0
    for one, other in zip(found["rows"], again["rows"], strict=True):
        if one["policy"] not in KNOWING:
            assert [one[name] for name in conduct] == [other[name] for name in conduct]
            differing += one["quality"] != other["quality"]
    assert differing > 0
    assert found["meta"]["learned"] == again["meta"]["learned"]


@pytest.mark.parametrize("content", ["text", "embedding", "none"])
def test_nothing_of_the_test_half_reaches_a_prediction(tmp_path: Path, content: str) -> None:
    def everything(held: dict[str, list[Any]], generator: np.random.Generator) -> None:
        shuffle(held, "quality", generator)
        held["cost_usd"] = [value * 3.0 for value in held["cost_usd"]]

    folder = write_folder(tmp_path / "toy", content=content)
    both = [predicted(folder), predicted(rewritten(folder, tmp_path / "other", everything))]
    for name in ("quality", "cost_quantiles_usd", "average", "average_cost_usd"):
        assert getattr(both[0], name).tolist() == getattr(both[1], name).tolist()


def test_the_command_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cells.PRESETS, "quick", small_grid)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: ())  # play here: test_resume_cache.py plays side by side
    out = tmp_path / "out.json"
    arguments = ["replay", "--data", str(write_folder(tmp_path / "toy", tasks=40)), "--json", str(out)]
    arguments += ["--models", "small,large", "--policies", "weakest,ours,ours-blind", "--ordering", "hard-first,iid"]
    arguments += ["--turns", "2,random,2", "--phi", ".2,.35", "--mode", "cut", "--base-context", "0,8000"]
    arguments += ["--html", str(tmp_path / "page.html"), "--plot", str(tmp_path / "plots")]
    assert run_command(arguments) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == len(list((tmp_path / "plots").glob("*.svg"))) > 0
    assert "Mean gain of our policy" in page
    written = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert {row["policy"] for row in written["rows"]} == {"weakest", "ours", "ours-blind"}
    assert {row["ordering"] for row in written["rows"]} == {"mixed", "hard-first", "iid"}
    assert {row["models"] for row in written["rows"]} == {"small,large"}
    whole = {(row["turns"], row["budget"], row["mode"], row["base_context"]) for row in written["rows"]}
    assert whole == {
        *((turns, "phi", "cut", 0) for turns in (2, "random")),
        *((2, "warm-mid", "cut", base) for base in (0, 8000)),
    }
    assert written["meta"]["seed"] == 0
    # Nothing else is kept of a whole run.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "page.html", "plots", "toy"]


def test_what_cannot_be_read_or_played_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.json")
    assert run_command(["replay", "--data", str(tmp_path / "nothing"), "--json", out]) == 2
    assert "prompts.parquet: not found" in capsys.readouterr().err
    start = ["replay", "--data", str(write_folder(tmp_path / "toy", tasks=20)), "--json", out]
    wrong = (("--mode", "cap"), ("--turns", "many"), ("--phi", "x"), ("--preset", "slow"), ("--policies", "mine"))
    for option, word in wrong:
        assert run_command([*start, option, word]) == 2
        assert f"{option}: expected" in capsys.readouterr().err
    assert run_command([*start, "--models", "small,huge"]) == 2
    assert "no model 'huge'; there are large, medium, small" in capsys.readouterr().err


def test_a_folder_of_one_free_model_and_prompts_without_text_can_be_played(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tasks=12, models=("small",), content="none", cost_usd=[0.0] * 12)
    found = report(folder)
    assert {row["policy"] for row in found["rows"]} >= POLICIES
    assert {row["strong_share"] for row in found["rows"] if row["policy"] == "ours"} == {1.0}
    json.dumps(found, allow_nan=False)


def rewritten(folder: Path, target: Path, change: Callable[[dict[str, list[Any]], np.random.Generator], None]) -> Path:
    """A copy whose outcomes on the test half are changed."""
    (graded,) = read_folder(folder)
    test = {graded.task_ids[graded.task[i]] for i in halves(graded, 0).test}
    target.mkdir(parents=True, exist_ok=True)
    for name in ("prompts", "models"):
        (target / f"{name}.parquet").write_bytes((folder / f"{name}.parquet").read_bytes())
    table = pq.read_table(folder / "outcomes.parquet")
    columns = table.to_pydict()
    at = [i for i, task in enumerate(columns["task_id"]) if task in test]
    held = {name: [values[i] for i in at] for name, values in columns.items()}
    change(held, np.random.default_rng(5))
    for name, values in columns.items():
        for i, value in zip(at, held[name], strict=True):
            values[i] = value
    pq.write_table(table.from_pydict(columns), target / "outcomes.parquet")
    return target


def shuffle(held: dict[str, list[Any]], column: str, generator: np.random.Generator) -> None:
    held[column] = [held[column][i] for i in generator.permutation(len(held[column]))]


def predicted(folder: Path) -> Any:
    (graded,) = read_folder(folder)
    split = halves(graded, 0)
    seen = richer_vectors(graded, split.training)
    return predict(graded, seen, richer_bills(graded, seen, split.training, 0), split.training, 0)


def test_every_row_of_ours_says_what_kind_of_policy_served(found: dict[str, Any]) -> None:
    served = {row["policy"]: row["served"] for row in found["rows"] if row["served"] is not None}
    assert served["ours-network"] == served["ours-pretrained"] == served["ours-calibrated"] == "network"
    assert served["ours-ungated"] == "planner"
    assert served["gateway-default"] == "rule:resolving"
    kinds = {row["served"].split(":")[0] for row in found["rows"] if row["policy"] == "ours"}
    assert kinds <= {"network", "planner", "heuristic"}


def test_a_fresh_install_plays_without_the_head_that_comes_with_a_nights_policy(tmp_path: Path) -> None:
    """With live inputs and with plain ones, which have no head, it is the same; what a night trained is not."""
    generator = np.random.default_rng(1)
    out = [int((300 if task % 2 else 20) * generator.uniform(0.8, 1.2)) for task in range(400) for _ in MODELS]
    bills = [tokens * USD_OUT_PER_M[MODELS[i % 3]] * 1e-6 for i, tokens in enumerate(out)]
    folder = write_folder(tmp_path, tasks=400, out_tok=out, cost_usd=bills)
    grid = replace(narrow(small_grid(), modes=("cut",)), contexts=(), test_sessions=60)
    policies = ("ours-pretrained", "gateway-default", "ours-ungated")
    models = ("small", "large")
    rows = run(Options((folder,), grid, models=models, inputs=("live", "plain"), policies=policies))["rows"]
    played = {
        (row["policy"], row["inputs"]): (row["quality"], row["cost_usd"], row["starved_rate"])
        for row in rows
        if row["new_model"] is None
    }
    for policy in policies[:2]:
        assert played[policy, "live"] == played[policy, "plain"]
    assert played["ours-ungated", "live"] != played["ours-ungated", "plain"]


def test_the_network_that_is_reported_is_the_one_that_the_gateway_would_serve(tmp_path: Path) -> None:
    (graded,) = read_folder(write_folder(tmp_path, tasks=24, models=("large", "small")))
    grid = replace(small_grid(), contexts=())
    networks = learn(next(studies(graded, grid, (), 0)), grid, 4).networks[NO_CONTEXT]
    served = networks.expecting(Horizon((0.0, 0.5))).at(3.0).serving
    assert isinstance(served, NetworkPolicy)
    assert (served.policy_id, served.horizon, served.starved_penalty) == ("replay-network-3", Horizon((0.0, 0.5)), 3.0)
    assert len(networks.rehearsals) == 3
