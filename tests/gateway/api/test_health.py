"""Liveness, readiness and metrics of one worker."""

from __future__ import annotations

import orjson
import pytest
from starlette.requests import Request

from gateway.api.health import Health, Lifecycle
from gateway.metrics import Metrics

ASKED = Request({"type": "http", "method": "GET", "path": "/", "headers": []})


@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [
        (Lifecycle(started=True, ledger_up=True), 200, "ok"),
        (Lifecycle(), 503, "starting"),
        (Lifecycle(started=True), 503, "ledger_unavailable"),
        (Lifecycle(started=True, ledger_up=True, draining=True), 503, "draining"),
        (Lifecycle(draining=True), 503, "draining"),
    ],
)
async def test_readiness_says_why_not(state: Lifecycle, status: int, reason: str) -> None:
    health = Health(state, Metrics(), lambda: None)
    answer = await health.readyz(ASKED)
    assert (answer.status_code, orjson.loads(bytes(answer.body))) == (status, {"status": reason})
    assert (answer.headers.get("Retry-After") == "1") == (status == 503)
    assert (await health.livez(ASKED)).status_code == 200


async def test_metrics_are_prometheus_text_refreshed_when_asked_for() -> None:
    metrics = Metrics()
    metrics.turns.labels("small", "completed").inc()
    answer = await Health(Lifecycle(), metrics, lambda: metrics.live_holds.set(3)).metrics(ASKED)
    text = bytes(answer.body).decode()
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'seqroute_turns_total{model="small",status="completed"} 1.0' in text
    assert "seqroute_live_holds 3.0" in text


def test_no_label_takes_a_value_that_a_client_can_choose() -> None:
    labels = {label for collector in vars(Metrics()).values() for label in getattr(collector, "_labelnames", ())}
    assert labels <= {"model", "status", "code", "kind", "lane", "action", "outcome"}
