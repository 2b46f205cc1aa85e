"""Follow-ups of a failed attempt: a retry, a fallback, or the client's error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.catalog.live import Configuration
from gateway.clock import Uniform
from gateway.config.settings import RouterSettings
from gateway.errors import GatewayError
from gateway.providers.balance import LoadBalancer
from gateway.providers.cooldown import Breaker
from gateway.providers.errors import CallRefused, CredentialFault, ThrottledFault, UpstreamFault
from gateway.turn.context import Attempt, RoutingDecision
from gateway.turn.decide import Decider
from gateway.turn.demand import demand_of
from gateway.turn.fallback import cause_of, eligible_fallback
from gateway.turn.reserve import Reservations
from gateway.turn.retry import LONGEST_PAUSE_S, Failures, Next, RetryBudget, next_attempt

USUAL_ATTEMPTS = 3
"""Provider calls of a turn, unless the configuration says how many."""

_UNAVAILABLE = 503


class FollowUps:
    """Chooses the next attempt of a turn, within its limits and those of the process."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        breaker: Breaker,
        balancer: LoadBalancer,
        decider: Decider,
        reservations: Reservations,
        budget: RetryBudget,
        uniform: Uniform,
    ) -> None:
        self._configuration = configuration
        self._breaker = breaker
        self._balancer = balancer
        self._decider = decider
        self._reservations = reservations
        self._budget = budget
        self._uniform = uniform

    def first(self) -> None:
        """Count the first attempt of a turn: the load that the further ones are a share of."""
        self._budget.turn()

    async def after(
        self, attempt: Attempt, fault: UpstreamFault, failures: Failures
    ) -> tuple[RoutingDecision, Next | None]:
        """The next attempt: at the same model, else at a fallback; None: there is none.

        The last call that the turn may make is the fallback's, if there is one.
        """
        router = self._configuration().settings.router
        context, choice, left = attempt.context, attempt.choice, _most_attempts(router) - failures.count
        if left <= 0 or (context.asked.max_cost_nanousd is not None and fault.dispatched):
            return choice, None  # a call that may be billed, and a second, could exceed the request's own limit
        limit_s = attempt.deployment.stream_timeout_s if context.chat.stream else attempt.deployment.timeout_s
        retry = next_attempt(
            fault,
            attempt.deployment,
            self._balancer.with_room(
                self._breaker.healthy(choice.estimate.option.model.deployments), demand_of(context, choice.estimate)
            ),
            failures.refused,
            retries=failures.on_model - 1,
            most_retries=most_retries(router, fault),
            left_s=limit_s - (asyncio.get_running_loop().time() - failures.since_s),
            uniform=self._uniform,
        )
        fallback = None
        if retry is None or left == 1 or retry.pause_s > LONGEST_PAUSE_S:
            fallback = await self._fallback(attempt, fault, failures)
        if retry is None and fallback is None:
            return choice, None
        # After a refusal in the gateway the next call is the turn's first one.
        if not isinstance(fault, CallRefused) and not self._budget.take():
            return choice, None
        if fallback is None:
            return choice, retry
        failures.leave(attempt.model)
        return fallback, Next(fallback.estimate.option.healthy, 0.0)

    async def _fallback(self, attempt: Attempt, fault: UpstreamFault, failures: Failures) -> RoutingDecision | None:
        """The decision for another model, if one can serve the turn and the money is there.

        It is the configured fallback; where the client leaves the choice and the drawn model's provider has no form
        for the request, also any other eligible model.
        """
        context, cause, tried = attempt.context, cause_of(fault), (*failures.models, attempt.model)
        if fault.dispatched and context.idempotency is not None:
            return None  # nothing that may be billed is repeated under an idempotency key
        option = None
        if cause is not None:
            option = eligible_fallback(
                cause,
                tried,
                context.chat,
                context.caller,
                context.prompt.estimate,
                configuration=self._configuration(),
                breaker=self._breaker,
                balancer=self._balancer,
            )
        free = context.requested.pinned is None and not context.chat.provider_bound and isinstance(fault, CallRefused)
        if option is None and not free:
            return None
        if context.outage is None:
            try:
                context = await self._reservations.refreshed(context)
            except GatewayError:  # the failed call's hold is still to be resolved
                return None
            estimate = attempt.choice.estimate
            billed_nanousd = estimate.likely_nanousd if fault.dispatched else 0
            context = context.with_ended_hold(estimate.hold_nanousd, billed_nanousd)
        found = None if option is None else self._decider.fallback(context, attempt.choice, option)
        return self._decider.without_form(context, attempt.choice, tried) if found is None and free else found


def most_retries(router: RouterSettings, fault: UpstreamFault) -> int:
    """The retries after a failure of this kind, by `retry_policy`, else `num_retries`."""
    policy = router.retry_policy
    if not policy:
        return router.num_retries
    if isinstance(fault, CredentialFault):
        kind = "AuthenticationErrorRetries"
    elif isinstance(fault, ThrottledFault):
        kind = "RateLimitErrorRetries"
    elif fault.status == _UNAVAILABLE:
        kind = "ServiceUnavailableErrorRetries"
    else:
        kind = "InternalServerErrorRetries" if fault.status else "DefaultRetries"
    return policy.get(kind, policy.get("DefaultRetries", router.num_retries))


def _most_attempts(router: RouterSettings) -> int:
    most = max((router.num_retries, *router.retry_policy.values()))
    return max(USUAL_ATTEMPTS, most + 1) if router.max_attempts is None else router.max_attempts
