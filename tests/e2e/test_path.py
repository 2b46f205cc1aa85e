"""How many packages of the house one completion enters, from its first byte to its settled bill."""

from __future__ import annotations

import threading
from pathlib import Path
from types import FrameType

from tests.harness.gateway import config, serving
from tests.harness.scenario import turn
from tests.harness.upstream import FaultUpstream

ROOT = Path(__file__).parents[2]
MOST = 15


async def test_a_completion_enters_at_most_fifteen_packages(tmp_path: Path, sqlite_url: str) -> None:
    entered: set[str] = set()

    def record(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add(frame.f_code.co_filename)

    threading.setprofile(record)
    try:
        async with (
            FaultUpstream() as provider,
            serving(config(tmp_path, provider.url, database_url=sqlite_url)) as gateway,
            gateway.http() as http,
        ):
            assert (await turn(http, model="auto")).status_code == 200  # what is loaded or warmed once is past
            await gateway.settled()
            entered.clear()
            assert (await turn(http, model="auto")).status_code == 200
            await gateway.settled()
            packages = rooms_of(entered.copy())  # other threads go on to call functions
    finally:
        threading.setprofile(None)
    assert {"api", "accounts", "turn", "dialects", "routing", "providers", "ledger", "database", "policy"} <= packages
    assert len(packages) <= MOST, sorted(packages)


def rooms_of(files: set[str]) -> set[str]:
    """The packages of `gateway` and `policy` that these files belong to; single files on the lowest floor are none."""
    below = [Path(name).relative_to(ROOT).parts for name in files if Path(name).is_relative_to(ROOT)]
    found = {parts[1] for parts in below if parts[0] == "gateway" and len(parts) > 2}
    return found | ({"policy"} if any(parts[0] == "policy" for parts in below) else set())
