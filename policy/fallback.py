"""Fallback to a rule in the same turn when a policy fails.

A decision is checked before it is used: the action feasible, the probabilities a distribution over feasible candidates,
the propensity that of the executed draw. A late decision counts as a fault too, and after several in a row the policy
is suspended, so that a slow one cannot block the event loop turn after turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import structs

from policy.mdp import Decision, Observation, Policy, PolicyFault, PolicyOfMany

PROPENSITY_TOLERANCE = 1e-6


class WithFallback:
    """A policy that falls back to a rule on a fault. `clock` is monotonic seconds.

    After `patience` faults in a row the policy is called only every `rest`-th turn until it succeeds.
    """

    def __init__(
        self,
        policy: Policy,
        rule: Policy,
        *,
        deadline_s: float,
        clock: Callable[[], float],
        patience: int = 5,
        rest: int = 100,
    ) -> None:
        self._policy = policy
        self._rule = rule
        self._deadline_s = deadline_s
        self._clock = clock
        self._patience = patience
        self._rest = rest
        self._in_a_row = 0
        self._resting = 0
        self.last_decision_s = 0.0

    @property
    def policy_id(self) -> str:
        """The wrapped policy's id."""
        return self._policy.policy_id

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Return the policy's decision, or the rule's with reason `policy-fault`.

        Raises only what the rule raises.
        """
        if self._in_a_row >= self._patience and self._resting < self._rest:
            self._resting += 1
            return self._fallback(observation, uniform)
        self._resting = 0
        started = self._clock()
        try:
            decision = self._policy.decide(observation, uniform)
            check_decision(observation, decision)
        except Exception:  # noqa: BLE001 - a learned policy may raise anything; the turn must not
            return self._failed(observation, uniform)
        finally:
            self.last_decision_s = self._clock() - started
        if self.last_decision_s > self._deadline_s:
            return self._failed(observation, uniform)
        self._in_a_row = 0
        return decision

    def decide_together(self, turns: Sequence[tuple[Observation, float]]) -> list[Decision]:
        """Decide several turns, together where the policy can; one that fails is decided alone.

        The deadline is that of one decision times the number of turns. A late result is used, since its time is spent,
        but counts as a fault: the next turns are decided alone, and the policy rests if they are late too.
        """
        policy = self._policy
        alike = len({len(observation.candidates) for observation, _ in turns}) == 1
        if len(turns) < 2 or self._in_a_row or not alike or not isinstance(policy, PolicyOfMany):
            return [self.decide(*turn) for turn in turns]
        started = self._clock()
        try:
            found = policy.decide_together(turns)
            pairs = list(zip(turns, found, strict=True))
        except Exception:  # noqa: BLE001 - `decide` finds the turn that fails, and counts its fault
            return [self.decide(*turn) for turn in turns]
        took_s = self._clock() - started
        decisions = [each if _is_executable(turn[0], each) else self.decide(*turn) for turn, each in pairs]
        self.last_decision_s = took_s
        if took_s > self._deadline_s * len(turns):
            self._in_a_row += 1
        return decisions

    def _failed(self, observation: Observation, uniform: float) -> Decision:
        self._in_a_row += 1
        return self._fallback(observation, uniform)

    def _fallback(self, observation: Observation, uniform: float) -> Decision:
        return structs.replace(self._rule.decide(observation, uniform), reason="policy-fault")


def _is_executable(observation: Observation, decision: Decision) -> bool:
    try:
        check_decision(observation, decision)
    except Exception:  # noqa: BLE001 - a learned policy may return anything
        return False
    return True


def check_decision(observation: Observation, decision: Decision) -> None:
    """Raise PolicyFault unless the decision is one the gateway may execute and log."""
    mask = observation.mask
    count = len(mask)
    probabilities: list[float] = np.asarray(decision.probabilities).tolist()
    if isinstance(decision.action, bool) or not isinstance(decision.action, int | np.integer):
        raise PolicyFault("the action is not an integer")
    if not 0 <= decision.action < count or not mask[decision.action]:
        raise PolicyFault("the action is not feasible")
    if np.shape(decision.probabilities) != (count,) or not all(0.0 <= p < math.inf for p in probabilities):
        raise PolicyFault("the probabilities are not a distribution over the candidates")
    for values in (decision.quality, decision.q_quality, decision.q_cost_usd):
        if np.shape(values) != (count,):
            raise PolicyFault("the values are not one per candidate")
    if abs(sum(probabilities) - 1.0) > PROPENSITY_TOLERANCE:
        raise PolicyFault("the probabilities do not add up to 1")
    if any(p > 0.0 and not may for p, may in zip(probabilities, mask.tolist(), strict=True)):
        raise PolicyFault("a candidate that is not feasible has a probability")
    executed = probabilities[decision.action]
    if executed <= 0.0 or not abs(executed - decision.propensity) <= PROPENSITY_TOLERANCE:  # NaN fails too
        raise PolicyFault("the propensity is not the probability of the executed action")
