"""Policies without knowledge of the prompt cache, its writes or its warmth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from policy.arrays import I64
from policy.mdp import CandidateView, Decision, Observation, Policy
from train.replay.simulator import Rule, Turn


@dataclass(frozen=True)
class Blind:
    """A policy that sees every prompt at the list price; bills still use the cached price."""

    policy: Policy

    @property
    def policy_id(self) -> str:
        """The policy's id with the suffix `-blind`."""
        return f"{self.policy.policy_id}-blind"

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Decide on the observation with cold caches."""
        cold = tuple(_cold(candidate) for candidate in observation.candidates)
        return self.policy.decide(structs.replace(observation, candidates=cold), uniform)


def _cold(candidate: CandidateView) -> CandidateView:
    saved_usd = candidate.warm_tokens * (candidate.input_usd_per_mtok - candidate.cached_input_usd_per_mtok) * 1e-6
    return structs.replace(
        candidate,
        cached_input_usd_per_mtok=candidate.input_usd_per_mtok,
        warm_tokens=0,
        served_last=False,
        cost_quantiles_usd=tuple(quantile + saved_usd for quantile in candidate.cost_quantiles_usd),
        cost_max_usd=candidate.cost_max_usd + saved_usd,
    )


def at_list_price(rule: Rule) -> Rule:
    """The rule as one that is told that writing to a cache costs the list price, now and later."""
    return believing(rule, write_price=1.0)


def believing(rule: Rule, **believed: Any) -> Rule:
    """The rule told other properties of the context than the true ones, now and later."""

    def told(turn: Turn) -> I64:
        board = turn.board.within(replace(turn.board.context, **believed))
        more_usd = turn.board.context_usd(turn.index, turn.last) - board.context_usd(turn.index, turn.last)
        return rule(
            replace(
                turn,
                board=board,
                cost_quantiles_usd=turn.cost_quantiles_usd - more_usd[..., None],
                mean_usd=turn.mean_usd - more_usd,
            )
        )

    return told
