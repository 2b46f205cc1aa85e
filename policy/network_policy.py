"""The served network policy: this turn computed exactly, later turns by the network.

    argmax_k  Q_quality(k) - lambda Q_spend(k) - penalty P(starved | k)          (policy/value_curves.py)

This turn's quality is the reward model's less a margin of its posterior deviation: a lower confidence bound (Jin, Yang,
Wang 2021, arXiv 2012.15085), which is where conservatism was found to pay (docs/policy.md). It needs no shield: the
values include the whole cost distribution of this turn and the chance of ending starved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from policy.arrays import F32
from policy.catalogue_statistics import NOTHING_KNOWN, CatalogueStatistics
from policy.decision import cost_quantiles_usd, feasible, make_decision, turns_left
from policy.exploration import GREEDY, Exploration
from policy.features import DEFAULT_HORIZON, Horizon, available_usd, encode_state
from policy.mdp import CandidateView, Decision, Observation, PolicyFault
from policy.planned import TIE_BREAK
from policy.quality import PriorQuality, QualityModel
from policy.residual import Residual
from policy.residual import inputs as residual_inputs
from policy.value_curves import Backup, Catalogue, Forward, Later, q_values
from policy.value_curves_once import q_values_of_turn
from policy.valuetable import context_tokens


class Shown(NamedTuple):
    """Inputs of a decision: (..., K) each, bills (..., K, L), the last five (...).

    `predicted` and `average` are the quality model's; `able` marks candidates that later turns may use if affordable;
    `state` is that of `features.encode_state`, used only by a residual.
    """

    places: Any
    prior: Any
    predicted: Any
    average: Any
    usd_in: Any
    usd_cached: Any
    usd_out: Any
    warm_tokens: Any
    bills_usd: Any
    able: Any
    available_usd: Any
    later_turns: Any
    context_tokens: Any
    lambda_per_usd: Any
    state: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class NetworkPolicy:
    """Policy of the value network. `forward` are its layers (policy/value_layers.py).

    `starved_penalty` trades quality for starvation: what ending without money costs, in right answers.
    """

    policy_id: str
    forward: Forward
    quality: QualityModel = PriorQuality()  # noqa: RUF009 - frozen
    statistics: CatalogueStatistics = NOTHING_KNOWN
    residual: Residual | None = None
    starved_penalty: float = 0.0
    horizon: Horizon = DEFAULT_HORIZON
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the best worth over this and the later turns."""
        mask = feasible(observation)
        bills, price = cost_quantiles_usd(observation), observation.lambda_per_usd
        if not (math.isfinite(price) and math.isfinite(available_usd(observation.session))):
            raise PolicyFault("money or lambda is not finite")
        left = turns_left(observation, self.horizon)
        prior, usd_in, usd_cached, usd_out, warm_tokens = np.array(
            [_numbers(c) for c in observation.candidates], np.float32
        ).T
        quality, found = self.values(
            Shown(
                places=self.statistics.places([c.name for c in observation.candidates]),
                prior=prior,
                predicted=self.quality.predict(observation),
                average=self.quality.average(observation),
                usd_in=usd_in,
                usd_cached=usd_cached,
                usd_out=usd_out,
                warm_tokens=warm_tokens,
                bills_usd=bills,
                able=np.array([able_later(c) for c in observation.candidates]),
                available_usd=np.float32(available_usd(observation.session)),
                later_turns=np.float32(max(left - 1.0, 0.0)),
                context_tokens=np.float32(context_tokens(observation)),
                lambda_per_usd=np.float32(price),
                state=encode_state(observation) if self.residual is not None else None,
            )
        )
        costs = observation.means_usd
        tie_break = np.array(costs) * (TIE_BREAK / max(*costs, 1e-12))
        scores = found.worth(price, self.starved_penalty) - tie_break
        return make_decision(
            self.policy_id,
            observation,
            scores,
            mask,
            self.exploration,
            uniform,
            quality=quality,
            q_quality=found.quality,
            q_cost_usd=found.spend_usd,
            info={"lambda_per_usd": price, "turns_left": left},
        )

    def values(self, shown: Shown) -> tuple[F32, Backup]:
        """This turn's quality and the values from this turn on, (..., K) each."""
        quality = shown.predicted
        if self.residual is not None:
            listed, bill = shown.usd_in + shown.usd_out, shown.bills_usd.mean(axis=-1)
            quality = quality + self.residual.of(residual_inputs(shown.state, quality, shown.prior, listed, bill))
        quality = np.asarray(
            np.minimum(np.maximum(quality - self.statistics.margin[shown.places], 0.0), 1.0), np.float32
        )
        answers = quality[..., None] * self.statistics.answers[shown.places]
        price = np.asarray(shown.lambda_per_usd, np.float32)
        later = Later(
            turns=np.asarray(shown.later_turns, np.float32),
            context_tokens=np.asarray(shown.context_tokens, np.float32),
            grown_tokens=self.statistics.grown_tokens[0],
            last=price,  # ignored
            lambda_per_usd=price,
            penalty=np.float32(self.starved_penalty),
        )
        money = np.asarray(shown.available_usd, np.float32)
        if money.ndim == 0:
            found = q_values_of_turn(self.forward, self.catalogue(shown), answers, shown.bills_usd, float(money), later)
            return quality, found
        later = later._replace(
            grown_tokens=np.broadcast_to(later.grown_tokens, price.shape),
            penalty=np.broadcast_to(later.penalty, price.shape),
        )
        return quality, q_values(self.forward, self.catalogue(shown), answers, shown.bills_usd, money, later)

    def catalogue(self, shown: Shown) -> Catalogue:
        """Statistics of the candidates on later turns."""
        context = np.asarray(shown.context_tokens)[..., None]
        warm = np.minimum(shown.warm_tokens, context)
        read_usd = ((context - warm) * shown.usd_in + warm * shown.usd_cached) * 1e-6
        listed = shown.usd_in + shown.usd_out
        rows = self.statistics.rows(shown.places, shown.average, listed, shown.bills_usd, read_usd, shown.able)
        columns = (*rows, shown.usd_in * 1e-6, shown.usd_cached * 1e-6)
        return Catalogue._make([*(np.asarray(x, np.float32) for x in columns), shown.able])


def _numbers(c: CandidateView) -> tuple[float, float, float, float, float]:
    return c.quality_prior, c.input_usd_per_mtok, c.cached_input_usd_per_mtok, c.output_usd_per_mtok, c.warm_tokens


def able_later(candidate: CandidateView) -> bool:
    """Tell whether a later turn may use this candidate: nothing but money excludes it now."""
    return candidate.feasible or "budget" in candidate.why_not or "afford" in candidate.why_not
