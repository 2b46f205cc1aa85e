"""The planner: this turn's quality plus the value of what each bill would leave.

    argmax_k  sum over the quantiles l of k's bill of
              [it fits] (quality_k answer_kl + V(budget - bill, k warm)) - [it does not] penalty

Dynamic programming with a learned value function (policy/valuetable.py), this turn computed exactly: it includes the
tail of a bill, the prompt cache that k would leave warm and the turns that an empty budget loses, and so needs no
shield. answer_kl is the quality of an answer with such a bill, relative to the model's mean: 1 on average.
`starved_penalty` is the cost of a lost answer beyond its loss; raised, fewer sessions starve. `caution` stretches the
tail of every bill where the budget is compared with it: the penalty alone covers only the estimated cost distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy.decision import cost_quantiles_usd, feasible, make_decision, turns_left
from policy.exploration import GREEDY, Exploration
from policy.features import DEFAULT_HORIZON, Horizon, available_usd, expected_cost_usd
from policy.mdp import Decision, Observation
from policy.quality import QualityModel
from policy.valuetable import ValueTable, bill_scores, cautious_usd, context_tokens

TIE_BREAK = 1e-7
"""Advantage of the cheaper of equals, in quality between free and the most expensive candidate."""


@dataclass(frozen=True, slots=True)
class Planner:
    """The planner. `table` must have been learned with this `starved_penalty` and `caution`."""

    policy_id: str
    quality: QualityModel
    table: ValueTable
    starved_penalty: float = 0.0
    caution: float = 1.0
    horizon: Horizon = DEFAULT_HORIZON
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the best expected worth over this turn's cost distribution."""
        mask = feasible(observation)
        quantiles = cost_quantiles_usd(observation).astype(np.float64)
        quality = self.quality.predict(observation)
        budget, price = available_usd(observation.session), observation.lambda_per_usd
        later_turns = max(turns_left(observation, self.horizon) - 1.0, 0.0)
        weighed = cautious_usd(quantiles, self.caution)
        after = np.maximum(budget - weighed, 0.0)
        later = self.table.later(observation.candidates, after, later_turns, price, context_tokens(observation))
        answers = self.table.by_bill(observation.candidates, quality)
        scores = bill_scores(answers, quantiles, weighed, later, budget, price, self.starved_penalty)
        costs = expected_cost_usd(quantiles)
        scores = scores - TIE_BREAK * costs / max(float(costs.max()), 1e-12)
        return make_decision(
            self.policy_id,
            observation,
            scores,
            mask,
            self.exploration,
            uniform,
            quality=quality,
            q_quality=scores,
            info={"lambda_per_usd": price, "turns_left": later_turns + 1.0},
        )
