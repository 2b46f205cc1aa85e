"""Spans of a served gateway, at a real OTLP endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.harness.gateway import config, serving
from tests.harness.receiver import receiving
from tests.harness.scenario import turn
from tests.harness.scripted import Line, ScriptedProvider

SECRET_WORD = "plover"
TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@asynccontextmanager
async def collecting(spans: list[Span]) -> AsyncIterator[str]:
    async def take(request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest.FromString(await request.read())
        spans.extend(span for group in sent.resource_spans for scope in group.scope_spans for span in scope.spans)
        return web.Response(body=b"", content_type="application/x-protobuf")

    async with receiving("POST", "/v1/traces", take) as url:
        yield url


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


@pytest.mark.parametrize(("opt_in", "conventional"), [("gen_ai_latest_experimental", True), ("", False)])
async def test_a_turn_and_its_attempts_are_spans_in_the_clients_trace(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, opt_in: str, conventional: bool
) -> None:
    spans: list[Span] = []
    script = [Line(503, {"error": {"message": "down"}}), Line()]
    async with ScriptedProvider(script) as provider, collecting(spans) as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", opt_in)
        path = config(
            tmp_path, provider.url, database_url=sqlite_url, general={"tracing": True}, router={"num_retries": 1}
        )
        async with serving(path) as gateway, gateway.http() as http:
            http.headers["traceparent"] = f"00-{TRACE}-{CLIENT_SPAN}-01"
            answer = await turn(http, messages=[{"role": "user", "content": SECRET_WORD}])
            assert answer.status_code == 200
            await gateway.settled()
    [whole] = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    calls = [span for span in spans if span.kind == Span.SPAN_KIND_CLIENT]
    attempts = sorted(calls, key=lambda span: span.start_time_unix_nano)
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, CLIENT_SPAN)
    assert [span.parent_span_id for span in attempts] == [whole.span_id] * 2
    assert [attributes(span).get("error.type") for span in attempts] == ["503", None]
    for span in attempts:
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano
    told = attributes(whole)
    assert told["seqroute.decision_id"] == answer.headers["x-seqroute-decision-id"]
    assert told["seqroute.status"] == "completed"
    assert told["seqroute.cost_nanousd"] > 0
    assert ("gen_ai.usage.input_tokens" in told) is conventional
    for secret in (SECRET_WORD, "sk-provider-canary", gateway.master_key):
        assert secret not in str(spans)


async def test_a_malformed_traceparent_and_an_endpoint_that_is_away_cost_a_turn_nothing(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with ScriptedProvider([Line()]) as provider:
        path = config(tmp_path, provider.url, database_url=sqlite_url, general={"tracing": True})
        async with serving(path) as gateway, gateway.http() as http:
            http.headers["traceparent"] = "00-zz-1"
            assert (await turn(http)).status_code == 200
            await gateway.settled()
            await gateway.audit()
