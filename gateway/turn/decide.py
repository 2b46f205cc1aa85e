"""Decides which model answers a turn: estimates all, then lets the policy choose."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple, cast

from msgspec import structs

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.cost import Settlement
from gateway.catalog.live import Configuration
from gateway.clock import Clock, Uniform
from gateway.decisions.trainable import PINNED_REASONS, why_not_trained
from gateway.metrics import Metrics
from gateway.providers.cooldown import Breaker
from gateway.routing import guard
from gateway.routing.estimates import Estimate, LeastAnswer, TurnTerms, cache_mark, estimate, without_uncertain
from gateway.routing.exploration import ExplorationBudget
from gateway.routing.guard import Eligibility, RequestedModel
from gateway.routing.observe import Observer
from gateway.routing.router import Routed, Router
from gateway.turn.context import Attempt, RoutingDecision, TurnContext
from gateway.turn.fallback import FALLBACK
from gateway.turn.funds import AvailableFunds, Shortage
from gateway.turn.waiting import HeldMoney
from gateway.turn.wrap_up import LastAnswer, last_answer
from policy.facts import LOG_VERSION
from policy.mdp import ONLY_AFFORDABLE, Observation

AnswerTokens = Mapping[str, tuple[float, ...]]
"""Quantiles of the answers' lengths predicted from the turn, by model; a missing model has its own distribution."""


class Estimator:
    """Estimates a turn's cost on each of its models, and the shortage if it affords none."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        forecast: OutputForecast,
        breaker: Breaker,
        held: HeldMoney,
    ) -> None:
        self._configuration = configuration
        self._forecast = forecast
        self._breaker = breaker
        self._held = held

    def estimates(
        self, context: TurnContext, funds: AvailableFunds, answer_tokens: AnswerTokens, *, patient: bool
    ) -> list[Estimate]:
        """Estimates of all models, with their affordability."""
        over_budget = cast(Literal["degrade", "refuse"], self._configuration().settings.session.over_budget)
        least: LeastAnswer = "any"
        if context.closing:
            over_budget = "degrade"
            least = "short" if context.memory.closed else "any"
        elif context.second:
            over_budget = "refuse"  # the grade of a cut answer would be of the money, not of the model
        elif context.kept_nanousd and funds.account != "request":
            least = "whole"  # a whole last answer is better than a cut one
        family = context.asked.parent_session_id or context.session_id
        company = self._held.company((context.caller.tenant_id, family))
        # A note that differs on each turn stands before the conversation: no cached prefix reaches beyond it.
        memory = structs.replace(context.memory, warm={}) if context.notes else context.memory
        terms = TurnTerms(
            chat=context.chat,
            memory=memory,
            prompt=context.prompt,
            at_ms=context.started_ms,
            available_nanousd=funds.left_nanousd,
            over_budget=over_budget,
            shared_nanousd=funds.shared_nanousd,
            contended=funds.contended,
            patient=patient,
            company=max(1, company),
            mark=cache_mark(context.chat),
            least=least,
            growth_femtousd=context.growth_femtousd if least == "whole" else 0,
        )
        estimates = [
            estimate(option, terms, self._forecast, self._breaker, answer_tokens.get(option.model.action))
            for option in context.options
        ]
        return (
            without_uncertain(estimates) if any(e.view.feasible and e.option.certain for e in estimates) else estimates
        )

    def last_answer(self, closing: TurnContext) -> LastAnswer:
        """The money that a turn leaves for the session's last answer, whose context this is."""
        bound, budget_nanousd = closing.prompt.bound, closing.budget_nanousd
        return last_answer(closing.options, closing.chat, self._forecast, bound, budget_nanousd)

    def without_tool_loop(self, context: TurnContext) -> TurnContext | None:
        """The turn with every model open to its tool loop, whose own has become too expensive.

        None where there is no such loop, `over_budget` is `refuse`, or the history has what only its provider reads.
        """
        if context.chat.provider_bound or self._configuration().settings.session.over_budget != "degrade":
            return None
        options = guard.without_tool_loop(context.options)
        return None if options == context.options else structs.replace(context, options=options)

    def shortage(self, context: TurnContext, funds: AvailableFunds, answer_tokens: AnswerTokens) -> Shortage:
        """The reason why no model serves: money is spent or held, or affordable models are busy."""
        undisturbed = self.estimates(context, funds.undisturbed(), answer_tokens, patient=False)
        held = any(e.view.feasible for e in undisturbed)
        needed = self.estimates(context, funds.all_held(), answer_tokens, patient=True) if held else undisturbed
        least_nanousd = min(e.hold_nanousd for e in needed if e.option.capable)
        waits_s = [
            e.option.wait_s
            for e in undisturbed
            if e.option.why_not == guard.BUSY and e.max_tokens and e.hold_nanousd <= funds.unspent_nanousd
        ]
        return Shortage(funds, least_nanousd, held, busy_s=min(waits_s, default=0))


class _PreparedTurn(NamedTuple):
    """A turn with what the router is asked about it; `since_s` is when its decision began."""

    asked: tuple[Observation, float, RequestedModel, str]
    estimates: list[Estimate]
    moved: bool
    since_s: float


class Decider:
    """Decides within the money that a turn can spend."""

    def __init__(
        self,
        *,
        estimator: Estimator,
        observer: Observer,
        router: Router,
        exploring: ExplorationBudget,
        metrics: Metrics,
        clock: Clock,
        uniform: Uniform,
    ) -> None:
        self._estimator = estimator
        self._observer = observer
        self._router = router
        self._exploring = exploring
        self._metrics = metrics
        self._clock = clock
        self._uniform = uniform

    def decide(self, context: TurnContext, funds: AvailableFunds, *, patient: bool) -> RoutingDecision | Shortage:
        """One decision within `funds`; `patient` excludes responses truncated by others' holds."""
        prepared = self._prepared(context, funds, patient=patient)
        if isinstance(prepared, Shortage):
            return prepared
        return self._chosen(context, prepared, self._router.decide(*prepared.asked))

    async def decide_soon(
        self, context: TurnContext, funds: AvailableFunds, *, patient: bool
    ) -> RoutingDecision | Shortage:
        """Decide together with other turns that are this far (`Router.decide_soon`)."""
        prepared = self._prepared(context, funds, patient=patient)
        if isinstance(prepared, Shortage):
            return prepared
        return self._chosen(context, prepared, await self._router.decide_soon(*prepared.asked))

    def _prepared(self, context: TurnContext, funds: AvailableFunds, *, patient: bool) -> _PreparedTurn | Shortage:
        """Observation and estimates of a turn, or why no model serves it."""
        started_s = self._clock()
        turn = self._observed(context, funds)
        answer_tokens = self._answer_tokens(context, turn)
        observed_s = self._clock()
        estimates, moved = self._estimator.estimates(context, funds, answer_tokens, patient=patient), False
        if not any(e.view.feasible for e in estimates):
            shortage = self._estimator.shortage(context, funds, answer_tokens)
            free = self._estimator.without_tool_loop(context)  # no affordable model: may another finish the loop?
            if shortage.held or free is None:
                return shortage
            estimates, moved = self._estimator.estimates(free, funds, answer_tokens, patient=patient), True
            if not any(e.view.feasible for e in estimates):
                return self._estimator.shortage(free, funds, answer_tokens)
        estimated_s = self._clock()
        since_s = estimated_s - observed_s + started_s  # the estimates are no part of the decision
        views = tuple([e.view for e in estimates])
        observation = turn.with_candidates(views, self._exploring.wanted(turn, views))
        # All sessions of a tree are served by one policy: together they are one sample of a trial.
        key = f"{context.caller.tenant_id}/{context.chain.root_id if context.chain else context.session_id}"
        asked = (observation, self._uniform(), context.requested, key)
        return _PreparedTurn(asked, estimates, moved, since_s)

    def _chosen(self, context: TurnContext, prepared: _PreparedTurn, routed: Routed) -> RoutingDecision:
        """The decision of the router about a prepared turn."""
        (observation, uniform, _, _), estimates, moved, since_s = prepared
        if moved:
            routed = structs.replace(routed, decision=structs.replace(routed.decision, reason=ONLY_AFFORDABLE))
        self._metrics.decision_seconds.observe(max(0.0, self._clock() - since_s))
        if context.fallback:
            routed = structs.replace(routed, decision=structs.replace(routed.decision, reason=FALLBACK))
        return RoutingDecision(
            observation=observation,
            routed=routed,
            estimate=estimates[routed.decision.action],
            uniform=uniform,
        )

    def _observed(self, context: TurnContext, funds: AvailableFunds) -> Observation:
        """The turn's text and session, before its candidates are estimated."""
        return self._observer.observe(
            context.chat,
            context.memory,
            context.row,
            context.tenant,
            budget_nanousd=context.budget_nanousd,
            left_nanousd=funds.left_nanousd,
            expected_turns=context.asked.expected_turns or (context.row.expected_turns if context.row else None),
            lambda_per_usd=self._router.lambda_per_usd(context.requested, context.asked.lambda_per_usd),
            at_ms=context.started_ms,
            explore=context.explores and self._exploring.allows(),
        )

    def _answer_tokens(self, context: TurnContext, turn: Observation) -> AnswerTokens:
        if context.chat.mode != "chat":
            return {}
        return self._router.answer_tokens(turn, context.prompt.estimate, len(context.options))

    def last_answer(self, closing: TurnContext) -> LastAnswer:
        """The money that a turn leaves for the session's last answer, whose context this is."""
        return self._estimator.last_answer(closing)

    def fallback(self, context: TurnContext, choice: RoutingDecision, option: Eligibility) -> RoutingDecision | None:
        """The decision with another model in the drawn one's place; None: not affordable."""
        names = [candidate.name for candidate in choice.observation.candidates]
        funds = context.funds
        answer_tokens = self._answer_tokens(context, self._observed(context, funds))
        alone = structs.replace(context, options=[option])
        (estimated,) = self._estimator.estimates(alone, funds, answer_tokens, patient=False)
        if not estimated.view.feasible or option.model.action not in names:
            return None
        decision = structs.replace(choice.routed.decision, action=names.index(option.model.action), reason=FALLBACK)
        return structs.replace(choice, estimate=estimated, routed=structs.replace(choice.routed, decision=decision))

    def without_form(
        self, context: TurnContext, choice: RoutingDecision, models: Collection[str]
    ) -> RoutingDecision | None:
        """The policy's choice among the other models, without exploration; None: none is affordable.

        `models` are those whose providers have no form for the request.
        """
        left = structs.replace(context, options=guard.without_form(context.options, models))
        if all(option.why_not for option in left.options):
            return None
        prepared = self._prepared(left, left.funds, patient=False)
        if isinstance(prepared, Shortage):
            return None
        observation, uniform, requested, key = prepared.asked
        routed = self._router.decide(structs.replace(observation, explore=False), uniform, requested, key)
        decision = structs.replace(choice.routed.decision, action=routed.decision.action, reason=FALLBACK)
        return structs.replace(
            choice,
            estimate=prepared.estimates[decision.action],
            routed=structs.replace(choice.routed, decision=decision),
        )

    def shortage(self, context: TurnContext, funds: AvailableFunds) -> Shortage:
        """The reason why a turn cannot be paid out of `funds`."""
        return self._estimator.shortage(context, funds, self._answer_tokens(context, self._observed(context, funds)))

    def executed(self, choice: RoutingDecision) -> None:
        """Charge the exploration of an executed decision to the day's budget, and count its attempt."""
        decision = choice.routed.decision
        self._metrics.explored(self._exploring.charge(choice.observation, decision))
        if decision.reason not in PINNED_REASONS:
            self._exploring.tried(choice.observation, decision)

    def settled(self, attempt: Attempt, columns: Mapping[str, Any], bill: Settlement | None) -> None:
        """Count the answer of an ended turn towards its model's quota, if training will read it.

        `columns` are those that complete its decision.
        """
        choice = attempt.choice
        row = {
            "origin": attempt.context.origin,
            "status": columns["status"],
            "reason": choice.routed.decision.reason,
            "feature_version": LOG_VERSION,
            "cost_nanousd": None if bill is None else bill.amount_nanousd,
        }
        if not why_not_trained(row):
            self._exploring.count(choice.observation, choice.routed.decision)
