"""Attribution of a profile's time to issues."""

from __future__ import annotations

import marshal
from pathlib import Path

import pytest

from bench.issues import LIBRARIES, NOW, REST, us_of

STALL, CHAT = ("/x/gateway/turn/stall.py", 1, "stall_signals"), ("/x/gateway/dialects/request.py", 1, "chat_of")
GET, DRAW = ("~", 0, "<method 'get' of 'dict' objects>"), ("/lib/random.py", 1, "random")


def test_time_counts_for_the_feature_that_spends_it_or_calls_what_does(tmp_path: Path) -> None:
    # (calls, all calls, own seconds, seconds, by caller) of ten turns.
    profile = {
        CHAT: (10, 10, 0.1, 0.1, {}),
        STALL: (10, 10, 0.2, 0.3, {}),
        GET: (20, 20, 0.3, 0.3, {STALL: (10, 10, 0.1, 0.1), CHAT: (10, 10, 0.2, 0.2)}),
        DRAW: (10, 10, 0.4, 0.4, {GET: (10, 10, 0.4, 0.4)}),
        ("/x/gateway/app.py", 1, "assemble"): (1, 0, 9.0, 9.0, {}),
    }
    path = tmp_path / "now.prof"
    path.write_bytes(marshal.dumps(profile))
    found = us_of(path, NOW, 1000.0)
    assert found.pop("J: agent sessions") == pytest.approx(300.0)
    assert found.pop(REST) == pytest.approx(300.0)
    assert found.pop(LIBRARIES) == pytest.approx(400.0), "the start counts nowhere"
    assert not any(found.values())
