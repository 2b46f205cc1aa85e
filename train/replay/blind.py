"""Served policies that do not know the prompt cache, or the price of writing it."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from policy.mdp import CandidateView, Decision, Observation, Policy


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
        return self.policy.decide(replace(observation, candidates=cold), uniform)


def _cold(candidate: CandidateView) -> CandidateView:
    saved_usd = candidate.warm_tokens * (candidate.input_usd_per_mtok - candidate.cached_input_usd_per_mtok) * 1e-6
    return replace(
        candidate,
        cached_input_usd_per_mtok=candidate.input_usd_per_mtok,
        warm_tokens=0,
        served_last=False,
        cost_quantiles_usd=tuple(quantile + saved_usd for quantile in candidate.cost_quantiles_usd),
        cost_max_usd=candidate.cost_max_usd + saved_usd,
    )


@dataclass(frozen=True)
class ListPrice:
    """A policy that sees the list price where a token that is not cached costs more."""

    policy: Policy
    write_price: float

    @property
    def policy_id(self) -> str:
        """The policy's id with the suffix `-list-price`."""
        return f"{self.policy.policy_id}-list-price"

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Decide as if what is not cached cost the list price, at this turn and later."""
        listed = tuple(_listed(candidate, self.write_price) for candidate in observation.candidates)
        return self.policy.decide(replace(observation, candidates=listed), uniform)


def _listed(candidate: CandidateView, write_price: float) -> CandidateView:
    list_usd_per_mtok = candidate.input_usd_per_mtok / write_price
    written_tokens = candidate.input_tokens - candidate.warm_tokens
    surcharge_usd = written_tokens * (candidate.input_usd_per_mtok - list_usd_per_mtok) * 1e-6
    return replace(
        candidate,
        input_usd_per_mtok=list_usd_per_mtok,
        cost_quantiles_usd=tuple(quantile - surcharge_usd for quantile in candidate.cost_quantiles_usd),
        cost_max_usd=candidate.cost_max_usd - surcharge_usd,
    )
