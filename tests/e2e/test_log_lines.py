"""The log of real gateways: every line one JSON object, a turn's lines with its ids, and never a secret or a prompt."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.logs import JsonFormatter
from gateway.turn.turn import Turns
from tests.harness.clients import make_tenant
from tests.harness.gateway import config, serving
from tests.harness.migrated import migrate
from tests.harness.processes import Fleet, ForkServer, clean_environ
from tests.harness.scenario import turn
from tests.harness.scripted import Line, ScriptedProvider

KEY = "sk-Zt7qWc41LmVx9uRkPb2nHs8d"
PROMPT = "my knee hurts since Tuesday"
SAID = f"no quota for Bearer canary-token-77aa of sk-provider-canary about {PROMPT}"
FAILS = Line(429, {"error": {"message": SAID, "type": "rate_limit_error", "code": "rate_limit_exceeded"}})


def objects(text: str) -> list[dict[str, Any]]:
    """Every line, which has to be an object."""
    return [json.loads(line) for line in text.splitlines()]


async def ask(url: str, key: str, session: str, request_id: str | None = None) -> httpx.Response:
    named = {"X-Session-Id": session} | ({} if request_id is None else {"X-Request-Id": request_id})
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"} | named) as http:
        return await turn(http, messages=[{"role": "user", "content": PROMPT}])


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_each_line_of_a_failed_attempt_names_its_turn_and_no_line_has_a_secret(
    tmp_path: Path, sqlite_url: str, nursery: ForkServer, log_format: str
) -> None:
    async with ScriptedProvider([FAILS, Line(), FAILS, Line()]) as provider:
        general = {"master_key": KEY, "log_format": log_format}
        path = config(tmp_path, provider.url, database_url=sqlite_url, general=general, router={"num_retries": 1})
        async with Fleet(nursery, path) as fleet:
            replica = await fleet.start(options=("--log-level", "debug"))
            tenant_id, key = await make_tenant(replica.url, KEY, "acme")
            answers = [await ask(replica.url, key, "s-1", "proxy-7f3a"), await ask(replica.url, key, "s-2")]
            assert [answer.status_code for answer in answers] == [200, 200]
            replica.terminate()
            assert await replica.ended() == 0
            written = replica.log_text()
    for secret in (KEY, key, "sk-provider-canary", "canary-token-77aa", PROMPT, "no quota"):
        assert secret not in written
    requests = [answer.headers["x-request-id"] for answer in answers]
    assert requests[0] == "proxy-7f3a"
    assert re.fullmatch(r"req_[0-9a-f]{16}_\d+", requests[1])
    expected = [
        {
            "request_id": request_id,
            "tenant_id": tenant_id,
            "session_id": session_id,
            "decision_id": answer.headers["x-seqroute-decision-id"],
        }
        for request_id, session_id, answer in zip(requests, ("s-1", "s-2"), answers, strict=True)
    ]
    if log_format == "text":
        failed = [line for line in written.splitlines() if "attempt failed" in line]
        told = [" ".join(f"{name}={value}" for name, value in ids.items()) for ids in expected]
        assert [line.partition(" [")[2] for line in failed] == [f"{each}]" for each in told]
        return
    lines = objects(written)
    failed_lines = [line for line in lines if line["message"].startswith("attempt failed")]
    assert [{name: line[name] for name in expected[0]} for line in failed_lines] == expected
    assert {line["level"] for line in failed_lines} == {"warning"}
    assert {"seqroute.serve", "seqroute.app", "uvicorn"} <= {line["logger"] for line in lines}
    ready = next(line for line in lines if line["message"].startswith("ready: "))
    assert "request_id" not in ready


async def test_two_workers_write_objects_too_each_with_its_process(
    tmp_path: Path, postgres_url: str, nursery: ForkServer
) -> None:
    async with ScriptedProvider([FAILS]) as provider:
        path = config(tmp_path, provider.url, database_url=postgres_url, general={"master_key": KEY})
        async with Fleet(nursery, path, environ={"SEQROUTE_LOG_FORMAT": "json"}) as fleet:
            replica = await fleet.start(workers=2, options=("--log-level", "info"))
            workers = replica.workers()
            assert (await ask(replica.url, KEY, "s-1")).status_code == 429
            replica.terminate()
            assert await replica.ended() == 0
            lines = objects(replica.log_text())
    assert {line["process"] for line in lines if line["message"].startswith("ready: ")} == set(workers)
    [failed] = [line for line in lines if line["message"].startswith("attempt failed")]
    assert failed["process"] in workers
    assert failed["session_id"] == "s-1"


@contextmanager
def heard(name: str) -> Iterator[io.StringIO]:
    """What a logger writes, as JSON."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logging.getLogger(name).addHandler(handler)
    try:
        yield written
    finally:
        logging.getLogger(name).removeHandler(handler)


async def test_the_traceback_of_a_bug_is_found_by_the_id_that_the_client_was_given(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Turns, *_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Turns, "serve", broken)
    async with ScriptedProvider([Line()]) as provider:
        path = config(tmp_path, provider.url, database_url=sqlite_url)
        async with serving(path) as gateway, gateway.http() as http:
            with heard("uvicorn.error") as log:
                answer = await turn(http)
                other = await http.post("/v1/messages", json={"model": "small", "messages": [], "max_tokens": 5})
                unknown = await http.post("/v1/chat/completions", headers={"Authorization": "Bearer sk-nobody"})
                async with asyncio.timeout(30):  # the line follows the answer
                    while log.getvalue().count('"stack"') < 3:  # noqa: ASYNC110 - another thread writes it
                        await asyncio.sleep(0.01)
    failed = (answer, other, unknown)
    assert [each.status_code for each in failed] == [500, 500, 500]
    crashes = [line for line in objects(log.getvalue()) if "stack" in line]
    assert {line["request_id"] for line in crashes} == {each.headers["x-request-id"] for each in failed}
    assert all("RuntimeError: a bug" in line["stack"] for line in crashes)
    assert unknown.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("way", ["option", "variable", "litellm_settings", "json_logs", "log_format"])
def test_a_start_that_fails_is_an_object_too(tmp_path: Path, way: str) -> None:
    path = tmp_path / "gateway.yaml"
    told = "litellm_settings: {json_logs: true}\n" if way == "litellm_settings" else ""
    path.write_text(f"model_list: [{{model_name: a, litellm_params: {{model: openai/gpt-4o-mini}}}}]\n{told}")
    if way != "litellm_settings":
        named = {
            "json_logs": "litellm_settings: {json_logs: true}",
            "log_format": "general_settings: {log_format: json}",
        }
        path.write_text(f"model_list: 5\nsession_settings: {{max_turns: 0}}\n{named.get(way, '')}\n")
    options = ["--log-format", "json"] if way == "option" else []
    variable = {"SEQROUTE_LOG_FORMAT": "json"} if way == "variable" else {}
    workers = ["--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(path), "--port", "0", *workers, *options],
        env=clean_environ(variable), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    lines = objects(done.stderr)
    assert {line["level"] for line in lines} == {"critical"}
    where = ["--workers"] if way == "litellm_settings" else ["model_list", "session_settings.max_turns"]
    assert all(any(name in line["message"] for line in lines) for name in where), done.stderr


def test_warnings_and_exceptions_that_nobody_catches_are_objects_too() -> None:
    script = (
        "import logging.config, threading, warnings\n"
        "from gateway.logs import logging_config\n"
        "logging.config.dictConfig(logging_config('info', 'json'))\n"
        "warnings.warn('old', DeprecationWarning)\n"
        "class Bad:\n    def __del__(self): raise ValueError('in a destructor')\n"
        "Bad()\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()\n"
        "raise LookupError('at the end')\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    warned, destroyed, threaded, ended = objects(done.stderr)
    assert "DeprecationWarning: old" in warned["message"]
    assert [line["stack"].splitlines()[-1] for line in (destroyed, threaded, ended)] == [
        "ValueError: in a destructor", "ZeroDivisionError: division by zero", "LookupError: at the end",
    ]  # fmt: skip


@pytest.mark.parametrize("migrated", [True, False])
def test_a_night_writes_objects_where_the_gateway_does_and_its_result_to_the_other_stream(
    tmp_path: Path, migrated: bool
) -> None:
    path = tmp_path / "gateway.yaml"
    database = tmp_path / "seqroute.db"
    path.write_text(
        "model_list: [{model_name: a, litellm_params: {model: openai/gpt-4o-mini, api_key: sk-provider-canary}}]\n"
        f"general_settings: {{log_format: json, database_url: 'sqlite:///{database}'}}\n"
    )
    if migrated:
        migrate(f"sqlite:///{database}")
    done = subprocess.run(
        [sys.executable, "-m", "train", "nightly", "--config", str(path), "--json"],
        env=clean_environ({}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = objects(done.stderr)
    assert "sk-provider-canary" not in done.stderr
    assert {line["logger"] for line in lines} == {"seqroute.train"}
    if migrated:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["outcome"]
        assert lines[0]["message"].endswith(" ...")
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert lines[-1]["level"] == "critical"
