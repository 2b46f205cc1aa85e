"""Examples of the README and the manual, run as they are printed, against a running gateway."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.harness.scenario import Play, playing

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def play(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Play]:
    folder = tmp_path_factory.mktemp("examples")
    async with playing(folder, f"sqlite:///{folder / 'gateway.db'}") as found:
        yield found


def example(page: str, language: str, beginning: str) -> str:
    """The one code block of a page that has these words."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    [found] = [block for block in blocks if beginning in block]
    return str(found)


async def printed(*command: str, **environment: str) -> str:
    """What a command prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    said, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return said.decode()


async def test_the_readme_makes_a_tenant_and_a_key_and_its_program_gets_an_answer(play: Play) -> None:
    readme = (ROOT / "README.md").read_text()
    made = ""
    for arguments in re.findall(r"^ {4}\.venv/bin/seqroute ((?:tenants|keys) [^#\n]+)", readme, re.M):
        made = await printed(sys.executable, "-m", "gateway", *arguments.split(), "--config", str(play.path))
    program = example("README.md", "python", "from openai import OpenAI")
    program = program.replace("http://localhost:4000", play.gateway.url).replace("sk-...", json.loads(made)["key"])
    answer, _, model = (await printed(sys.executable, "-c", program)).strip().rpartition(" ")
    assert answer
    assert model in ("small", "big")


async def test_the_call_by_curl_is_answered_with_its_session_and_what_is_left(play: Play) -> None:
    _, key = await play.gateway.tenant("by-curl")
    call = example("docs/clients.md", "sh", "curl -i").replace("http://localhost:4000", play.gateway.url)
    said = await printed("sh", "-c", call.replace("sk-...", key))
    head, _, body = said.partition("\r\n\r\n")
    assert "200 OK" in head
    assert "x-seqroute-session-id: chat-42" in head
    assert "x-seqroute-session-remaining-usd: 0.24" in head
    assert json.loads(body)["choices"][0]["message"]["content"]


async def test_the_calls_by_curl_of_the_reference_route_read_raise_and_grade(play: Play) -> None:
    _, key = await play.gateway.tenant("by-reference")
    async with play.gateway.http(key) as http:
        body = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}
        assert (await http.post("/v1/chat/completions", json=body, headers={"X-Session-Id": "chat-42"})).is_success
    calls = example("docs/http.md", "sh", "ask() {").replace("http://localhost:4000", play.gateway.url)
    said = await printed("sh", "-c", re.sub(r"^(ask .*?)( +#.*)?$", r"\1; echo", calls, flags=re.M), KEY=key)
    routed, before, raised, graded = (json.loads(line) for line in said.splitlines() if line)
    assert routed["model"] in ("small", "big")
    assert (before["session_id"], before["budget_usd"]) == ("chat-42", "1")
    assert raised["budget_usd"] == "4"
    assert "error" not in graded
