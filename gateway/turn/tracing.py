"""OpenTelemetry spans: one for a turn, and below it one for each of its attempts.

The spans are made when the turn has ended, from the times that its attempts carry, so the request path knows nothing
of tracing. Names follow https://opentelemetry.io/docs/specs/semconv/gen-ai/, and are sent only if
OTEL_SEMCONV_STABILITY_OPT_IN asks for them; money and policy stand under `seqroute.`. Prompts and answers are never
recorded. The exporter is configured by the standard OTEL_* variables of the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.catalog.cost import Settlement
from gateway.turn.context import Attempt

OPT_IN = "gen_ai_latest_experimental"
NANOSECONDS = 1_000_000
"""In a millisecond."""


class TurnTracing:
    """Makes the spans of ended turns."""

    def __init__(self, processor: SpanProcessor, *, version: str, conventions: bool) -> None:
        """`conventions`: send the attributes `gen_ai.*` too."""
        resource = Resource.create({"service.name": "seqroute", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("seqroute", version)
        self._conventions = conventions

    def turn_ended(self, attempt: Attempt, columns: Mapping[str, Any], bill: Settlement | None) -> None:
        """Make a turn's spans from its last attempt and the columns that complete its decision."""
        context, end_ms = attempt.context, int(columns["completed_at_ms"])
        turn = self._tracer.start_span(
            f"{_operation(attempt)} {context.chat.model}",
            _parent(context.asked.traceparent),
            SpanKind.SERVER,
            self._turn_attributes(attempt, columns, bill),
            start_time=context.started_ms * NANOSECONDS,
        )
        below = set_span_in_context(turn, Context())
        for failure in attempt.failures:
            self._attempt(
                below, attempt, failure.model, failure.deployment, failure.started_ms, failure.ended_ms,
                failure.code or str(failure.status or failure.reason),
            )  # fmt: skip
        error = columns.get("error_code")
        if bill is not None and attempt.sent_ms and not _is_told(attempt):
            deployment_id = attempt.deployment.deployment_id
            self._attempt(below, attempt, attempt.model, deployment_id, attempt.sent_ms, end_ms, error)
        if error is not None:
            turn.set_status(Status(StatusCode.ERROR, error))
        turn.end(end_ms * NANOSECONDS)

    def _attempt(
        self,
        below: Context,
        attempt: Attempt,
        model: str,
        deployment: str,
        start_ms: int,
        end_ms: int,
        error: str | None,
    ) -> None:
        attributes = {"seqroute.model": model, "seqroute.deployment": deployment}
        if self._conventions:
            attributes |= {"gen_ai.operation.name": _operation(attempt), "gen_ai.request.model": model}
        if error is not None:
            attributes["error.type"] = error
        start_ms = start_ms or attempt.context.started_ms
        span = self._tracer.start_span(
            f"{_operation(attempt)} {model}", below, SpanKind.CLIENT, attributes, start_time=start_ms * NANOSECONDS
        )
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(max(start_ms, end_ms) * NANOSECONDS)

    def _turn_attributes(
        self, attempt: Attempt, columns: Mapping[str, Any], bill: Settlement | None
    ) -> dict[str, str | int | float | list[str]]:
        context, decision = attempt.context, attempt.choice.routed.decision
        found: dict[str, Any] = {
            "seqroute.decision_id": attempt.decision_id,
            "seqroute.session_id": context.session_id,
            "seqroute.tenant_id": context.caller.tenant_id,
            "seqroute.model": attempt.model,
            **({} if attempt.effort is None else {"seqroute.effort": attempt.effort}),
            "seqroute.policy_id": decision.policy_id,
            "seqroute.reason": decision.reason,
            "seqroute.propensity": float(decision.propensity),
            "seqroute.status": columns["status"],
            "seqroute.reserved_nanousd": attempt.choice.estimate.hold_nanousd,
            "seqroute.session_remaining_nanousd": attempt.session.available_nanousd,
        }
        if bill is not None:
            found |= {"seqroute.cost_nanousd": bill.amount_nanousd, "seqroute.usage_source": bill.usage_source}
        if columns.get("error_code") is not None:
            found["error.type"] = columns["error_code"]
        return found | self._conventional(attempt, columns, bill) if self._conventions else found

    def _conventional(
        self, attempt: Attempt, columns: Mapping[str, Any], bill: Settlement | None
    ) -> dict[str, str | int | list[str]]:
        found: dict[str, str | int | list[str]] = {
            "gen_ai.operation.name": _operation(attempt),
            "gen_ai.provider.name": attempt.deployment.litellm_model.partition("/")[0],
            "gen_ai.conversation.id": attempt.context.session_id,
            "gen_ai.request.model": attempt.context.chat.model,
            "gen_ai.response.model": attempt.model,
        }
        if bill is not None:
            found |= {
                "gen_ai.usage.input_tokens": bill.usage.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": bill.usage.cached_tokens,
                "gen_ai.usage.output_tokens": bill.usage.output_tokens,
            }
        if columns.get("finish_reason"):
            found["gen_ai.response.finish_reasons"] = [columns["finish_reason"]]
        return found

    def close(self) -> None:
        """Send what is waiting, for a few seconds at most; blocks."""
        self._provider.shutdown()


def from_environment(version: str) -> TurnTracing:
    """Tracing as the OTEL_* variables of the process say, which the exporter reads for itself."""
    opted = os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")
    return TurnTracing(
        BatchSpanProcessor(OTLPSpanExporter()), version=version, conventions=OPT_IN in (name.strip() for name in opted)
    )


def _operation(attempt: Attempt) -> str:
    mode = attempt.context.chat.mode
    return "embeddings" if mode == "embedding" else mode


def _parent(traceparent: str | None) -> Context:
    """The client's span, if it named one that is well formed."""
    if traceparent is None:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _is_told(attempt: Attempt) -> bool:
    """True if the last attempt is among the failures already."""
    return bool(attempt.failures) and attempt.failures[-1].started_ms == attempt.sent_ms
