"""Other programs' logs: what is read, what is learned, what is said not to be, and that nothing is promoted."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.catalog.answer_length import OutputForecast
from gateway.database.database import transaction
from gateway.policies.registry import list_policies, wanted_policies
from policy.checkpoint import load
from tests.harness.models import catalog, model, prices
from tests.train.small import TINY
from train.config import FitConfig
from train.errors import InputError
from train.log.transcripts import LoggedTurn, read_transcripts, read_turn
from train.nightly.import_logs import (
    Import,
    bill_usd,
    by_session,
    compose_episodes,
    describe,
    find_model,
    import_logs,
    model_report,
)

SMALL = model("small", prices(1.0, 2.0), quality_prior=0.6)
BIG = model("big", prices(10.0, 20.0), quality_prior=0.9)
CATALOG = catalog(SMALL, BIG)


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def record(name: str = "small", *texts: str, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 100, "completion_tokens": 50}
    return {"messages": said(*(texts or ("hi",))), "model": name, "usage": usage} | more


def turn(**changes: Any) -> LoggedTurn:
    found = read_turn(record(), 0.0)
    assert isinstance(found, LoggedTurn)
    return replace(found, **changes)


def test_a_transcript_is_read_with_its_usage_score_and_opening() -> None:
    found = read_turn(record("small", "one", "answer", "two", score=0.5, cost_usd="0.002"), 3.0)
    assert isinstance(found, LoggedTurn)
    assert (found.prompt_tokens, found.output_tokens, found.score, found.cost_usd) == (100, 50, 0.5, 0.002)
    assert (found.user_texts, found.history_chars, found.moment) == (("one", "two"), 9, 3.0)
    same = read_turn(record("big", "one"), 4.0)
    assert isinstance(same, LoggedTurn)
    assert found.session == same.session
    assert turn().session != same.session


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"usage": {}}, "no usage"),
        ({"usage": {"prompt_tokens": 5, "completion_tokens": "NaN"}}, "no usage"),
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 0}}, "no usage"),
        ({"model": ""}, "no model"),
        ({"spend": 1, "status": "failure"}, "failed"),
        ({"spend": 1, "cache_hit": "True"}, "answered from a cache"),
        ({"call_type": "aembedding"}, "not a chat call"),
    ],
)
def test_what_is_no_turn_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    assert read_turn(record() | changes, 0.0) == reason


def test_spend_logs_are_read_from_csv_in_the_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "spend.csv"
    columns = {"call_type": "acompletion", "status": "success", "cache_hit": "False", "prompt_tokens": "100"}
    lines: list[dict[str, str]] = [
        columns | {"model": "openai/x", "model_group": "big", "completion_tokens": "7", "spend": "0.5",
                   "startTime": "2026-11-02T10:00:00Z", "session_id": "s", "messages": "{}"},
        columns | {"model": "small", "model_group": "", "completion_tokens": "9", "spend": "0.25",
                   "startTime": "2026-11-01T10:00:00+00:00", "session_id": "s", "messages": json.dumps(said("hello"))},
    ]  # fmt: skip
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    turns, left_out = read_transcripts(file)
    assert not left_out
    [session], foreign = by_session(turns, CATALOG)
    assert not foreign
    assert [(m.name, t.output_tokens, t.cost_usd, t.user_texts) for m, t in session] == [
        ("small", 9, 0.25, ("hello",)), ("big", 7, 0.5, ()),
    ]  # fmt: skip


def test_a_line_that_is_no_object_is_counted_and_a_file_that_is_no_text_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text("[1]\n{broken\n\n" + json.dumps(record()) + "\n")
    turns, left_out = read_transcripts(file)
    assert (len(turns), dict(left_out)) == (1, {"no JSON object": 2})
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(record()).encode() + b"\n")  # as Windows writes UTF-8
    turns, left_out = read_transcripts(file)
    assert (len(turns), dict(left_out)) == (1, {})
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="expected JSONL or CSV in UTF-8"):
        read_transcripts(file)
    with pytest.raises(InputError, match="no such file"):
        read_transcripts(tmp_path / "none")


@pytest.mark.parametrize("wrapped", [[record(), 3, record()], {"data": [record(), 3, record()], "total": 3}])
def test_a_list_of_records_is_read_as_their_lines_are(tmp_path: Path, wrapped: Any) -> None:
    file = tmp_path / "log.json"  # as LiteLLM's /spend/logs answers
    for indent in (1, None):
        file.write_text("\n" + json.dumps(wrapped, indent=indent))
        turns, left_out = read_transcripts(file)
        assert (len(turns), dict(left_out)) == (2, {"no JSON object": 1})


def test_each_line_may_be_a_page_of_records(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps({"data": [record(), 3, record()], "page": page}) + "\n" for page in (1, 2)))
    turns, left_out = read_transcripts(file)
    assert (len(turns), dict(left_out)) == (4, {"no JSON object": 2})


def test_lines_named_json_are_never_read_as_one_document(tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    file.write_text(json.dumps(record() | {"data": [1, 2]}) + "\n")  # a record with such a field
    turns, left_out = read_transcripts(file)
    assert (len(turns), dict(left_out)) == (1, {})
    file.write_text(json.dumps(record()) + "\n" + json.dumps(record()) + "\n")
    file_turns, left_out = read_transcripts(file)
    assert (len(file_turns), dict(left_out)) == (2, {})


def test_a_line_of_many_brackets_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text("[" * 100_000 + "\n" + json.dumps(record()) + "\n")
    turns, left_out = read_transcripts(file)
    assert (len(turns), dict(left_out)) == (1, {"no JSON object": 1})


def test_a_model_is_found_by_its_name_or_by_what_a_deployment_calls_it() -> None:
    upstream = SMALL.deployments[0].litellm_model
    assert (
        find_model("small", CATALOG)
        == find_model(upstream, CATALOG)
        == find_model(upstream.rpartition("/")[2], CATALOG)
    )
    assert find_model("unknown", CATALOG) is None
    _, foreign = by_session([turn(names=("unknown", "else"))], CATALOG)
    assert dict(foreign) == {"unknown: not in the catalogue": 1}


def test_bills_and_priors_by_hand() -> None:
    unpriced = turn()  # 100 tokens in at 1 and 50 out at 2 thousandths of a millionth
    by_prices = (100 * 1.0 + 50 * 2.0) * 1e-6
    assert bill_usd(SMALL, unpriced) == pytest.approx(by_prices)
    logged = [turn(score=1.0, cost_usd=2 * by_prices), turn(score=0.5), turn()]
    found = model_report(SMALL, logged, OutputForecast(), prior_strength=4.0)
    assert found["quality_prior"] == pytest.approx((4 * 0.6 + 1.5) / 6)
    assert (found["turns"], found["graded_turns"], found["bill_ratio"]) == (3, 2, pytest.approx(2.0))
    assert found["cost_usd"] == pytest.approx(4 * by_prices)


def test_turns_are_composed_as_the_gateway_would_have_seen_them() -> None:
    session = [(SMALL, turn(score=0.25)), (BIG, turn(user_texts=("and then?",)))]
    episodes = compose_episodes([session], CATALOG, OutputForecast())
    assert episodes.models == ("big", "small")
    assert episodes.action[0].tolist() == [1, 0]
    assert episodes.reward[0, 0] == 0.25
    assert np.isnan(episodes.reward[0, 1])
    assert episodes.prior_quality[0, 0].tolist() == pytest.approx([0.9, 0.6])
    ratio = episodes.cost_quantiles_usd[0, :, 0] / episodes.cost_quantiles_usd[0, :, 1]
    assert ratio == pytest.approx(10.0, rel=1e-5)


def a_file(folder: Path, sessions: int, scored: bool) -> Path:
    """Two turns a session: sums are beyond the small model, capitals are not."""
    file = folder / "log.jsonl"
    lines = []
    for i in range(sessions):
        name = ("small", "big")[i % 2]
        first = f"What is the capital of country {i}?"
        second = f"Solve step by step: {i} * {i + 7} = ?"
        for texts, score in (((first,), 1.0), ((first, "It is X.", second), float(name == "big"))):
            lines.append(record(name, *texts, **({"score": score} if scored else {})))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_with_scores_a_policy_goes_on_trial_and_nothing_is_promoted(tmp_path: Path, sqlite_url: str) -> None:
    config = replace(TINY, fit=FitConfig(warm_steps=0, steps=0, samples=64, residual_steps=20))
    job = Import(a_file(tmp_path, 30, True), CATALOG, sqlite_url, tmp_path / "policies", 1, shadow=True)
    report = import_logs(job, config)
    assert (report["turns"], report["sessions"], report["graded_turns"]) == (60, 30, 60)
    assert report["models"]["big"]["quality_prior"] > 0.95 > 0.6 > report["models"]["small"]["quality_prior"] > 0.5
    assert report["quality_model"]["out_of_fold_error"] < report["quality_model"]["error_of_means"]
    with transaction(sqlite_url, read_only=True) as connection:
        wanted = wanted_policies(connection)
        stages = [record.stage for record in list_policies(connection)]
    assert wanted.champion is None
    assert stages == ["shadow"]
    assert wanted.shadow is not None
    loaded = load(tmp_path / "policies" / wanted.shadow.policy_id, sha256=wanted.shadow.sha256)
    assert loaded.recipe.rule == "network"
    assert loaded.recipe.average_quality["big"] > 0.95
    assert any("no propensities" in line for line in describe(report))


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("log.jsonl", "", "no records"),
        ("log.json", "[]", "no records"),
        ("log.csv", "model,spend\n", "no records"),
        ("log.jsonl", "hello\n", "1 record, none usable (no JSON object: 1)"),
        ("log.jsonl", json.dumps(record("")) + "\n", "1 record, none usable (no model: 1)"),
        ("log.jsonl", json.dumps(record("other")) + "\n", "1 record, none usable (other: not in the catalogue: 1)"),
    ],
)
def test_a_file_without_a_turn_is_refused_with_what_it_holds(
    tmp_path: Path, sqlite_url: str, name: str, text: str, found: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError) as refused:
        import_logs(Import(file, CATALOG, sqlite_url, tmp_path / "policies", 1), TINY)
    assert str(refused.value) == (
        f"{file}: expected turns of models of the catalogue, found {found}; give each record "
        "`model`, a name or alias of the configuration, and `usage` with prompt_tokens and completion_tokens"
    )


def test_without_scores_only_lengths_and_costs_are_learned_and_it_says_so(tmp_path: Path, sqlite_url: str) -> None:
    job = Import(a_file(tmp_path, 4, False), CATALOG, sqlite_url, tmp_path / "policies", 1, shadow=True)
    report = import_logs(job, TINY)
    assert report["policy"] is None
    assert report["horizon"] == {"mean_turns": 2.0}
    lines = describe(report)
    assert "not learned: quality by turn: 0 graded turns with a known model, at least 40 are needed" in lines
    assert any(line.startswith("small: 4 turns") and line.endswith("no score") for line in lines)
    assert not (tmp_path / "policies").exists()
