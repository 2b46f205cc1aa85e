"""Parameters of a request that do not reach the provider are named, whole and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.harness.scenario import playing, turn


async def test_what_was_left_out_of_a_request_is_named_in_the_answer(tmp_path: Path, sqlite_url: str) -> None:
    """In the header of a whole answer; in a stream's header, and in the object at its end."""
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        extras: Any = {"top_k": 5, "provider": {"order": ["a"]}, "unheard_of": 1, "service_tier": "priority"}
        whole = await turn(http, **extras)
        assert whole.headers["x-seqroute-dropped"] == "service_tier, provider, unheard_of"
        assert play.provider.received[-1].body["top_k"] == 5
        streamed = await turn(http, stream=True, **extras)
        assert streamed.headers["x-seqroute-dropped"] == "service_tier, provider, unheard_of"
        [told] = [line for line in streamed.text.splitlines() if line.startswith(": seqroute ")]
        assert json.loads(told.removeprefix(": seqroute "))["dropped"] == ["service_tier", "provider", "unheard_of"]
        assert "x-seqroute-dropped" not in (await turn(http, temperature=0.5)).headers
