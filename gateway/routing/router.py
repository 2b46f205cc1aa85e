"""Selects the policy of a session; if it fails, the rule decides in the same turn.

`policy_settings.mode` selects the policy: `off` the rule; `shadow` the rule, with the champion's choice only
logged; `canary` the champion on a sticky share of the sessions; `on` the champion everywhere. A policy staged as
canary or shadow is on trial next to the champion.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from msgspec import Struct, structs

from gateway.config.settings import PolicySettings
from gateway.routing.guard import EFFORT_REASONS, TOOL_LOOP, RequestedModel
from policy.fallback import WithFallback
from policy.features import encode_turn
from policy.mdp import NOT_AFFORDABLE, ONLY_AFFORDABLE, Decision, Observation, Policy, PolicyFault
from policy.reload import LoadedPolicy, ServingPolicies
from policy.rules import LAMBDA_PRESETS, Cheapest

POLICY_FAULT = "policy-fault"
RULE_PREFIX = "rule:"
"""Prefix of built-in policies' ids; ids of published ones contain no colon (policy/manifest.py)."""

MAX_DECIDED_TOGETHER = 16
"""Turns that one turn of the event loop decides: all others wait while it does."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """The choice of a policy that did not decide; None if it should have and failed."""

    policy_id: str
    model: str | None


class Routed(Struct, frozen=True):
    """A decision, and the logged choice of another policy."""

    decision: Decision
    shadow: Shadow | None


class _Undecided(NamedTuple):
    """What one turn asks the router."""

    observation: Observation
    uniform: float
    requested: RequestedModel
    session_key: str


class Router:
    """Picks the policy of a session and contains its faults."""

    def __init__(
        self,
        settings: Callable[[], PolicySettings],
        rule: LoadedPolicy,
        lineup: Callable[[], ServingPolicies],
        *,
        monotonic: Callable[[], float],
        on_fault: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._lineup = lineup
        self._monotonic = monotonic
        self._on_fault = on_fault
        self._rule = rule
        self._guarded: dict[str, tuple[Policy, float, WithFallback]] = {}
        self._waiting: list[tuple[asyncio.Future[Routed], _Undecided]] = []

    def lambda_per_usd(self, requested: RequestedModel, asked_per_usd: float | None) -> float:
        """Lambda of this turn: from the header, else the preset, else the default."""
        if asked_per_usd is not None:
            return asked_per_usd
        if requested.preset is not None:
            return self.presets()[requested.preset]
        return self._settings().default_lambda

    def presets(self) -> Mapping[str, float]:
        """The champion's calibrated presets; while a rule is champion, those of the configuration."""
        champion = self._lineup().champion
        rule = champion.reference.policy_id.startswith(RULE_PREFIX)
        return {**LAMBDA_PRESETS, **(self._settings().lambda_presets if rule else champion.lambda_presets)}

    def answer_tokens(
        self, observation: Observation, input_tokens: int, candidates: int
    ) -> Mapping[str, tuple[float, ...]]:
        """The champion's forecast of the answers' lengths, by model, at policy.mdp.COST_LEVELS.

        The observation has no candidates yet. Empty for a champion that predicts none, in mode `off`, or after a fault.
        """
        lengths = self._lineup().champion.lengths
        if lengths is None or self._settings().mode == "off":
            return {}
        try:
            found = lengths.by_model(encode_turn(observation, input_tokens, candidates))
        except ValueError:  # an observation that cannot be encoded
            self._on_fault()
            return {}
        return {name: levels for name, levels in found.items() if all(map(math.isfinite, levels))}

    def decide(self, observation: Observation, uniform: float, requested: RequestedModel, session_key: str) -> Routed:
        """One decision. Policy faults never raise; at least one candidate must be feasible."""
        return self._decide_all([_Undecided(observation, uniform, requested, session_key)])[0]

    async def decide_soon(
        self, observation: Observation, uniform: float, requested: RequestedModel, session_key: str
    ) -> Routed:
        """Decide together with the other turns that ask in this turn of the event loop.

        Under load many do: their accounts were read together. One pass through the network serves up to
        MAX_DECIDED_TOGETHER of them; the others are decided in the loop's next turns, after what else is due.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Routed] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._decide_waiting)
        self._waiting.append((found, _Undecided(observation, uniform, requested, session_key)))
        return await found

    def _decide_waiting(self) -> None:
        waiting = [each for each in self._waiting if not each[0].done()]
        deciding, self._waiting = waiting[:MAX_DECIDED_TOGETHER], waiting[MAX_DECIDED_TOGETHER:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._decide_waiting)
        try:
            routed = self._decide_all([question for _, question in deciding])
        except Exception:  # noqa: BLE001 - one turn's error is no other's
            for found, question in deciding:
                self._decide_alone(found, question)
            return
        for (found, _), each in zip(deciding, routed, strict=True):
            found.set_result(each)

    def _decide_alone(self, found: asyncio.Future[Routed], question: _Undecided) -> None:
        try:
            found.set_result(self.decide(*question))
        except Exception as error:  # noqa: BLE001 - it belongs to the turn that waits
            found.set_exception(error)

    def _decide_all(self, questions: Sequence[_Undecided]) -> list[Routed]:
        lineup = self._lineup()
        found: list[Routed | None] = [None] * len(questions)
        by_policy: dict[int, tuple[LoadedPolicy, str | None, list[int]]] = {}
        for index, (observation, _, requested, session_key) in enumerate(questions):
            if sum([c.feasible for c in observation.candidates]) == 1:
                pinned = requested.pinned is not None
                found[index] = Routed(forced(observation, "pinned" if pinned else forced_reason(observation)), None)
            else:
                serving, reason = self._serving(lineup, session_key)
                by_policy.setdefault(id(serving), (serving, reason, []))[2].append(index)
        for serving, reason, indexes in by_policy.values():
            decisions = self._decided(serving, [questions[index][:2] for index in indexes])
            for index, decision in zip(indexes, decisions, strict=True):
                observation, uniform = questions[index][:2]
                found[index] = self._routed(lineup, serving, reason, observation, uniform, decision)
        return [each for each in found if each is not None]

    def _routed(
        self,
        lineup: ServingPolicies,
        serving: LoadedPolicy,
        reason: str | None,
        observation: Observation,
        uniform: float,
        decision: Decision,
    ) -> Routed:
        if decision.reason == POLICY_FAULT:
            self._on_fault()
            # Log the failed policy, because a canary's faults count against it although the rule decided.
            return Routed(decision, Shadow(policy_id=serving.policy.policy_id, model=None))
        if reason is not None and decision.reason == "policy":
            decision = structs.replace(decision, reason=reason)
        return Routed(decision, self._shadowed(lineup, serving, observation, uniform))

    def _serving(self, lineup: ServingPolicies, session_key: str) -> tuple[LoadedPolicy, str | None]:
        """The policy of this session, and the reason to log instead of `policy`, if any."""
        mode = self._settings().mode
        if mode == "off":
            return self._rule, "policy-off"
        if mode == "shadow":
            return self._rule, "shadow"
        if lineup.canary is not None or mode == "canary":
            in_canary = share(session_key) < self._settings().canary_fraction
            if lineup.canary is not None and in_canary:
                return lineup.canary, None
            if mode == "canary" and not in_canary:
                return self._rule, None
        return lineup.champion, None

    def _decided(self, served: LoadedPolicy, turns: Sequence[tuple[Observation, float]]) -> list[Decision]:
        try:
            return self._guard(served).decide_together(turns)
        except PolicyFault:  # the rule itself failed; the cheapest candidate always exists
            if len(turns) > 1:
                return [decision for turn in turns for decision in self._decided(served, [turn])]
            return [forced(turns[0][0], POLICY_FAULT)]

    def _guard(self, served: LoadedPolicy) -> WithFallback:
        """The policy with the rule as its fallback; rebuilt for a new checkpoint or deadline."""
        on_rule = served is self._rule
        # After the deadline the rule decides; the rule itself has no better fallback.
        deadline_s = math.inf if on_rule else self._settings().decision_deadline_ms / 1000
        known = self._guarded.get(served.policy.policy_id)
        if known is not None and known[0] is served.policy and known[1] == deadline_s:
            return known[2]
        behind = Cheapest() if on_rule else self._rule.policy
        guarded = WithFallback(served.policy, behind, deadline_s=deadline_s, clock=self._monotonic)
        if len(self._guarded) > 16:
            self._guarded.clear()
        self._guarded[served.policy.policy_id] = (served.policy, deadline_s, guarded)
        return guarded

    def _shadowed(
        self, lineup: ServingPolicies, serving: LoadedPolicy, observation: Observation, uniform: float
    ) -> Shadow | None:
        """The choice of the policy on trial; its failure does not affect the turn."""
        trial = lineup.champion if self._settings().mode == "shadow" else lineup.shadow
        if trial is None or trial is serving:
            return None
        (decision,) = self._decided(trial, [(observation, uniform)])
        if decision.reason == POLICY_FAULT:
            return None
        return Shadow(policy_id=trial.policy.policy_id, model=observation.candidates[decision.action].name)


def forced(observation: Observation, reason: str) -> Decision:
    """A decision without a choice: the cheapest feasible candidate with probability one."""
    costs = np.array([c.cost_max_usd if c.feasible else np.inf for c in observation.candidates])
    action = int(np.argmin(costs))
    probabilities = np.zeros(len(costs), np.float32)
    probabilities[action] = 1.0
    unknown = np.full(len(costs), np.nan, np.float32)
    return Decision(
        action=action,
        best=action,
        propensity=1.0,
        policy_id="rule:forced",
        reason=reason,
        probabilities=probabilities,
        quality=np.array([c.quality_prior for c in observation.candidates], np.float32),
        q_quality=unknown,
        q_cost_usd=unknown,
    )


def forced_reason(observation: Observation) -> str:
    """The reason why only one candidate is feasible."""
    reasons = [c.why_not for c in observation.candidates if not c.feasible and c.why_not not in EFFORT_REASONS]
    if TOOL_LOOP in reasons:
        return "tool-loop"
    if NOT_AFFORDABLE in reasons:
        return ONLY_AFFORDABLE
    return "capability" if reasons else "policy"


def share(session_key: str) -> float:
    """A session's fixed position in [0, 1), the same on every replica, for canary assignment."""
    return int.from_bytes(hashlib.sha256(session_key.encode()).digest()[:8], "big") / 2**64
