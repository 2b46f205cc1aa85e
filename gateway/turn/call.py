"""Calls the provider of a reserved attempt, and makes a further attempt after a failure."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from msgspec import structs

from gateway.catalog.live import Configuration
from gateway.catalog.models import Deployment
from gateway.catalog.prices import NO_SEARCH
from gateway.clock import Clock, now_ms
from gateway.config.settings import Settings
from gateway.dialects.request import ChatRequest
from gateway.errors import GatewayError
from gateway.providers.answers import UpstreamStream
from gateway.providers.cooldown import Breaker
from gateway.providers.errors import CallRefused, MessagesRefused, RejectedFault, UpstreamFault
from gateway.providers.providers import Call, Outgoing, Upstream
from gateway.providers.replies import Reply
from gateway.routing.estimates import is_forwarded
from gateway.tasks import Background
from gateway.turn.context import Attempt
from gateway.turn.failures import failed_attempt
from gateway.turn.follow_up import FollowUps
from gateway.turn.notes import task_budget, with_notes, with_task_budgets
from gateway.turn.reserve import Reservations
from gateway.turn.retry import Failures
from gateway.turn.settle import Settlements

T = TypeVar("T")


class ProviderCalls:
    """Makes the calls of turns. Every attempt that gets no response resolves its hold here."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        upstream: Upstream,
        breaker: Breaker,
        reservations: Reservations,
        follow_ups: FollowUps,
        settling: Settlements,
        background: Background,
        clock: Clock,
    ) -> None:
        self._configuration = configuration
        self._upstream = upstream
        self._breaker = breaker
        self._reservations = reservations
        self._follow_ups = follow_ups
        self._settling = settling
        self._background = background
        self._clock = clock

    @property
    def _settings(self) -> Settings:
        return self._configuration().settings

    async def complete(self, attempt: Attempt) -> tuple[Attempt, Reply]:
        """Get a whole response, and the attempt that got it."""
        match attempt.context.chat.mode:
            case "embedding":
                return await self._reached(attempt, self._upstream.embed)
            case "moderation":
                return await self._reached(attempt, self._upstream.moderate)
        return await self._reached(attempt, self._upstream.complete)

    async def open_stream(self, attempt: Attempt) -> tuple[Attempt, UpstreamStream]:
        """Start a stream; returns after its first chunk."""
        attempt, stream = await self._reached(attempt, self._upstream.open_stream)
        return structs.replace(attempt, first_byte_ms=now_ms(self._clock)), stream

    async def _reached(self, attempt: Attempt, send: Callable[[Outgoing], Coroutine[Any, Any, T]]) -> tuple[Attempt, T]:
        """Call the provider; retry or fall back after a failure. Each failed attempt resolves its hold."""
        failures, is_second = Failures(asyncio.get_running_loop().time()), attempt.context.caller.is_second
        if not is_second:
            self._follow_ups.first()
        while True:
            started_s = self._clock()
            sent_ms, sent = int(started_s * 1000), False
            try:
                outgoing = self._upstream.outgoing(self._call(attempt))
                attempt = structs.replace(attempt, sent_ms=sent_ms, dropped=_dropped(attempt.context.chat, outgoing))
                sent = True
                answer = await send(outgoing)
            except UpstreamFault as fault:
                failed = attempt if sent else structs.replace(attempt, sent_ms=sent_ms)
                attempt = await self._next_attempt(failed, fault, failures)
            except GatewayError as error:  # refused before sending
                await self._background.run(self._settling.release(attempt, status="failed", error_code=error.code))
                raise
            except BaseException:  # cancelled, or an internal error: once sent, the provider may be working
                self._background.spawn(
                    self._settling.abandoned(attempt, outgoing.heard.usage)
                    if sent
                    else self._settling.release(attempt, status="failed", error_code="internal_error")
                )
                raise
            else:
                latency_s = self._clock() - started_s
                if not is_second:
                    self._breaker.record(attempt.deployment.deployment_id, failed=False, latency_s=latency_s)
                attempt.slot.answered(latency_s)
                return attempt, answer

    def _call(self, attempt: Attempt) -> Call:
        context, deployment = attempt.context, attempt.deployment
        chat, notes = context.chat, context.notes
        estimate = attempt.choice.estimate
        model = estimate.option.model
        forwarded = chat.forwarded if is_forwarded(chat, model) else None
        # Responses keep the note: Anthropic's API alone has a task budget.
        anthropic = forwarded is None or forwarded.api == "messages_api"
        task = task_budget(context, model, deployment) if anthropic else None
        headers = {name: value.reveal() for name, value in deployment.extra_headers.items()}
        if task is not None:
            notes = notes[1:]  # the first note says the same
            headers = with_task_budgets(headers)
        return Call(
            litellm_model=deployment.litellm_model,
            messages=with_notes(chat.messages, notes),
            api_base=deployment.api_base,
            api_key=None if deployment.api_key is None else deployment.api_key.reveal(),
            params=chat.params,
            task_budget=task,
            cache_key=cache_key(context.caller.tenant_id, context.session_id) if chat.mode == "chat" else None,
            extras=chat.extras,
            defaults=_defaults(attempt),
            allowed_params=deployment.allowed_params,
            dropped_params=deployment.dropped_params,
            service_tiers=deployment.prices.tier_names,
            search_priced=deployment.prices.search_femtousd != NO_SEARCH,
            max_tokens=estimate.max_tokens,
            max_tokens_param=_limit_name(chat, deployment),
            limited=estimate.limited,
            forwarded=forwarded,
            api_stated=deployment.api_stated,
            tool_calls=estimate.tool_calls,
            notes=notes,
            is_chat=chat.mode == "chat",
            stream=chat.stream,
            timeout_s=deployment.timeout_s,
            stream_timeout_s=deployment.stream_timeout_s,
            idle_timeout_s=self._settings.timings.upstream_idle_s,
            extra_headers=headers,
            drop_params=self._settings.router.drop_params,
            lane=deployment.lane,
            base_model=deployment.base_model,
            options={name: value.reveal() for name, value in deployment.provider_params.items()}
            | {
                name: value
                for name, value in (("api_version", deployment.api_version), ("organization", deployment.organization))
                if value is not None
            },
        )

    async def _next_attempt(self, attempt: Attempt, fault: UpstreamFault, failures: Failures) -> Attempt:
        """Resolve a failed attempt's hold; then reserve a retry or a fallback, or raise the fault."""
        attempt = structs.replace(
            attempt, failures=(*attempt.failures, failed_attempt(attempt, fault, now_ms(self._clock)))
        )
        if isinstance(fault, CallRefused):
            attempt.slot.unsent()
        if isinstance(fault, MessagesRefused) and fault.part:
            self._breaker.note_lost(attempt.context.caller.tenant_id, attempt.deployment, fault.part)
        attempt.slot.leave()  # a retry may need the place
        if attempt.context.caller.is_second:  # no client waits for it: one call, which says nothing of the others
            await self._background.run(self._settling.failed(attempt, fault, final=True))
            raise fault.answer()
        deployment = attempt.deployment
        faulty = not isinstance(fault, RejectedFault | CallRefused)
        first = deployment.deployment_id not in failures.seen
        self._breaker.record(deployment.deployment_id, failed=faulty, latency_s=0.0, counts=first)
        failures.note(deployment, fault)
        try:
            choice, further = await self._follow_ups.after(attempt, fault, failures)
        except BaseException:  # cancelled, or an internal error: the failed attempt's hold is still open
            self._background.spawn(self._settling.failed(attempt, fault, final=True))
            raise
        billed_nanousd = await self._background.run(self._settling.failed(attempt, fault, final=further is None))
        if further is None:
            raise _final(fault, failures, attempt.decision_id)
        reserved = await self._reservations.reserve(
            attempt.context, choice, attempt.decision_id, None, further.deployments
        )
        if isinstance(reserved, Attempt):
            billed_nanousd += attempt.earlier_nanousd
            reserved = structs.replace(
                reserved, rates=attempt.rates, failures=attempt.failures, earlier_nanousd=billed_nanousd
            )
        else:
            # The failed attempt's row stays pending; the sweeper closes decisions without an open hold.
            raise _final(fault, failures, attempt.decision_id)
        try:
            await asyncio.sleep(further.pause_s)
        except BaseException:  # cancelled before this attempt was sent
            self._background.spawn(self._settling.release(reserved, status="cancelled", error_code="client_closed"))
            raise
        return reserved


def _defaults(attempt: Attempt) -> Mapping[str, Any]:
    """The operator's parameters, and the chosen effort unless the client says how much to reason."""
    effort = attempt.choice.estimate.option.model.effort
    defaults = attempt.deployment.request_defaults
    return {**defaults, "reasoning_effort": effort} if effort and attempt.context.chat.effort is None else defaults


def _dropped(chat: ChatRequest, outgoing: Outgoing) -> tuple[str, ...]:
    """The client's names of what is not sent: of what a translation loses, and of chat parameters left out."""
    if outgoing.call.forwarded is not None:
        return outgoing.left_out  # fields of the client's own body
    lost = () if chat.forwarded is None else chat.forwarded.lost
    return (*lost, *(own for name in outgoing.left_out for own in chat.own_names.get(name, (name,))))


def cache_key(tenant_id: str, session_id: str) -> str:
    """A name for a session's prompt cache that tells the provider nothing else."""
    return hashlib.blake2b(f"{tenant_id}/{session_id}".encode(), digest_size=16).hexdigest()


def _limit_name(chat: ChatRequest, deployment: Deployment) -> str:
    """OpenAI's name under which the answer's limit is sent: the client's, else the operator's."""
    newer = "max_completion_tokens"
    return newer if chat.max_tokens is None and newer in deployment.request_defaults else chat.max_tokens_param


def _final(fault: UpstreamFault, failures: Failures, decision_id: str) -> GatewayError:
    """The client's error for a fault; clients should not repeat retries that were made here."""
    error = fault.answer()
    error.headers["x-seqroute-decision-id"] = decision_id
    if failures.count > 1:
        error.headers["x-should-retry"] = "false"
    return error
