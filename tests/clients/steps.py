"""Shared by the scripts of Python clients: gateway, session, reports.

A script imports this from its own folder and runs in the environment of its client, without the rest of the repository:

    SEQROUTE_URL=http://localhost:4000 SEQROUTE_KEY=sk-... python tests/clients/use_openai.py

Each step prints one line of JSON, which `tests.clients.run` reads. A step answers the text that the client was given.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import Callable
from typing import Any

URL = os.environ.get("SEQROUTE_URL", "http://localhost:4000")
KEY = os.environ.get("SEQROUTE_KEY", "")
SESSION = {
    "X-Session-Id": os.environ.get("SEQROUTE_SESSION", "example"),
    "X-Session-Budget-USD": os.environ.get("SEQROUTE_BUDGET_USD", "0.05"),
}
"""The headers by which all requests of a script are one session with one budget."""

SKIPPED = frozenset(os.environ.get("SEQROUTE_SKIPPED", "").split(","))
"""Steps and APIs that are left out."""

HELLO = "What is the weather in Berlin?"
STORY = "Tell a long story."
"""The provider of `make clients` answers this at length, so that a budget is soon spent."""
MOST_STORIES = 60

Step = Callable[[], Any]
_RUNNER = asyncio.Runner()


def step(api: str, name: str) -> Callable[[Step], Step]:
    """Run the function below at once and report whether it answered; a coroutine is awaited."""

    def run(function: Step) -> Step:
        if not SKIPPED.isdisjoint((api, name)):
            return function
        try:
            said = _run(function)
            _report(api, name, bool(said), str(said))
        except Exception as error:  # noqa: BLE001 - any exception of a client is a finding to report
            _report(api, name, False, f"{type(error).__name__}: {error}")
        return function

    return run


def refused(api: str) -> Callable[[Step], Step]:
    """Take the turn below until the money ends; report what the client then shows."""

    def run(function: Step) -> Step:
        for _ in range(MOST_STORIES):
            try:
                _run(function)
            except Exception as error:  # noqa: BLE001 - any exception of a client is a finding to report
                _report(api, "refused", True, _shown(error))
                return function
        _report(api, "refused", False, f"the budget was not spent after {MOST_STORIES} turns")
        return function

    return run


def _run(function: Step) -> Any:
    result = function()
    return _RUNNER.run(result) if inspect.iscoroutine(result) else result


def _shown(error: BaseException) -> str:
    """An error as a traceback shows it: with what it came from."""
    cause = error.__cause__ or error.__context__
    return f"{type(error).__name__}: {error}" + (f" <- {_shown(cause)}" if cause is not None else "")


def _report(api: str, name: str, ok: bool, said: str) -> None:
    print(json.dumps({"api": api, "step": name, "ok": ok, "said": said}), flush=True)
