"""Another text space: served, logged, trained in, published and served again; and what does not fit stops the start."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config.settings import TextSettings
from gateway.database.tables import decisions
from gateway.routing.text_space import text_space
from policy.facts import unpack
from policy.reload import PRETRAINED
from policy.text import space_number
from tests.harness.gateway import config, serving
from tests.harness.processes import clean_environ
from tests.harness.scenario import Play, playing, session, turn
from tests.harness.upstream import FaultUpstream

TRAINING = """
fit: {warm_steps: 0, steps: 0, samples: 16, residual_steps: 20}
plan: {samples: 16, turns: 4, money_points: 12, contexts_tokens: [0, 2000], starved_penalties: [0, 0.3]}
ope: {bootstrap: 100, tuning_sessions: 3}
gate: {min_sessions: 1, confidence: 0.01, min_ess: 1, min_ess_fraction: 0, min_gain: -1, min_overlap: 0}
"""
SYSTEM = {"role": "system", "content": "You are a poet."}


async def play_sessions(play: Play, count: int) -> None:
    """Sessions of two graded turns."""
    async with play.gateway.http() as http:
        for number in range(count):
            for words in ("write a poem about rain", "and now about the sum of 3 and 4"):
                messages = [SYSTEM, {"role": "user", "content": f"{words} {number}"}]
                answer = await turn(http, "auto", messages, headers=session(f"s{number}"))
                body = {"decision_id": answer.headers["x-seqroute-decision-id"], "score": float(number % 2)}
                assert (await http.post("/v1/feedback", json=body)).status_code == 200


def night(path: Path) -> dict[str, object]:
    """`seqroute-train nightly` with the gateway's own configuration."""
    training = path.with_name("training.yaml")
    training.write_text(TRAINING)
    done = subprocess.run(
        [sys.executable, "-m", "train", "nightly", "--config", str(path), "--training", str(training), "--json"],
        env=clean_environ({}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


async def test_static_text_is_served_logged_trained_and_what_is_published_serves(
    tmp_path: Path, sqlite_url: str
) -> None:
    settings = {"text": "static", "publish": "champion", "exploration_floor": 0.2}
    async with playing(tmp_path, sqlite_url, policy=settings) as play:
        await play_sessions(play, 40)
        space = text_space(TextSettings("static"))
        seen = [unpack(row["features"], row["candidate_features"]) for row in play.rows(decisions)]
        assert {facts.text_space for facts in seen} == {space_number(space.version)}
        assert len({facts.route for facts in seen}) == 1
        assert all(facts.route for facts in seen)
        assert "poet" not in str([row["candidates"] for row in play.rows(decisions)])
        report = await asyncio.to_thread(night, play.path)
        assert report["outcome"] == "promote", report["reasons"]
        manifest = json.loads((tmp_path / "policies" / str(report["candidate"]) / "manifest.json").read_text())
        assert manifest["text_version"] == space.version
        async with play.gateway.http() as http, asyncio.timeout(120):
            while (await turn(http, "auto")).headers["x-seqroute-policy"] != report["candidate"]:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    # With another text the policy is named and does not serve, and the shipped network does.
    (tmp_path / "hashed").mkdir()
    async with FaultUpstream() as provider:
        folder = str(tmp_path / "policies")
        path = config(tmp_path / "hashed", provider.url, database_url=sqlite_url, policy={"directory": folder})
        async with serving(path) as gateway, gateway.http() as http:
            assert (await turn(http, "auto")).headers["x-seqroute-policy"] == PRETRAINED
            (problem,) = gateway.parts.services.policies.problems
            assert f'it reads "{space.version}", and policy_settings.text makes "hashed-ngrams-1"' in problem


@pytest.mark.parametrize(
    "command", [["gateway", "serve", "--port", "0"], ["gateway", "check-config"], ["train", "nightly"]]
)
def test_an_encoder_that_does_not_fit_stops_the_start_in_one_line(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "e.onnx").write_bytes(b"no model")
    (tmp_path / "t.json").write_text("{}")
    text = {"text": "onnx", "text_model": "e.onnx", "text_tokenizer": "t.json"}
    path = config(tmp_path, "http://127.0.0.1:9", policy=text)
    done = subprocess.run(
        [sys.executable, "-m", *command, "--config", str(path)],
        env=clean_environ({}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "policy_settings.text_tokenizer: expected a tokenizer.json, got Exception" in line
