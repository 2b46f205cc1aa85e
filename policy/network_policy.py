"""The served network policy: this turn computed exactly, later turns by the network.

    argmax_k  Q_quality(k) - lambda Q_spend(k) - penalty P(starved | k)          (policy/value_backup.py)

This turn's quality is the reward model's less a margin of its posterior deviation: a lower confidence bound (Jin, Yang,
Wang 2021, arXiv 2012.15085), which is where conservatism was found to pay (docs/policy-design.md). It needs no shield:
the values include the whole cost distribution of this turn and the chance of ending starved.

A conversation grows on later turns as the log's did, but no faster than this session's has: by at most its tokens over
its turns, so one that never had any is not expected to begin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from policy.arrays import F32, Bools
from policy.catalogue_statistics import NOTHING_KNOWN, Q95, CatalogueStatistics
from policy.decision import cost_quantiles_usd, feasible, make_decision, turns_left
from policy.exploration import GREEDY, Exploration
from policy.features import DEFAULT_HORIZON, Horizon, available_usd, encode_state
from policy.mdp import NOT_AFFORDABLE, CandidateView, Decision, Observation, PolicyFault
from policy.planned import TIE_BREAK
from policy.quality import PriorQuality, QualityModel
from policy.residual import Residual
from policy.residual import inputs as residual_inputs
from policy.value_backup import Backup, q_values
from policy.value_curves import Catalogue, Forward, Later
from policy.value_curves_once import OneTurn, q_values_of_turn, q_values_of_turns
from policy.valuetable import context_tokens


class Shown(NamedTuple):
    """Inputs of many decisions: (..., K) each, bills (..., K, L), the last six (...).

    `predicted` and `average` are the quality model's; `able` marks candidates that later turns may use if affordable;
    `state` is that of `features.encode_state`, used only by a residual.
    """

    model_rows: Any
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
    turn: Any
    context_tokens: Any
    lambda_per_usd: Any
    state: Any = None


class _Prepared(NamedTuple):
    """One turn before its values are known."""

    one: OneTurn
    mask: Bools
    quality: F32
    turns_left: float


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
        prepared = self._prepared(observation)
        return self._decided(observation, uniform, prepared, q_values_of_turn(self.forward, *prepared.one))

    def decide_together(self, turns: Sequence[tuple[Observation, float]]) -> list[Decision]:
        """Decide turns with equally many candidates in one pass through the network."""
        prepared = [self._prepared(observation) for observation, _ in turns]
        found = q_values_of_turns(self.forward, [each.one for each in prepared])
        return [self._decided(*turn, each, values) for turn, each, values in zip(turns, prepared, found, strict=True)]

    def _prepared(self, observation: Observation) -> _Prepared:
        """What a turn's values are computed from."""
        mask = feasible(observation)
        bills, price = cost_quantiles_usd(observation), observation.lambda_per_usd
        money = available_usd(observation.session)
        if not (math.isfinite(price) and math.isfinite(money)):
            raise PolicyFault("money or lambda is not finite")
        left = turns_left(observation, self.horizon)
        model_rows = self.statistics.model_rows([c.name for c in observation.candidates])
        quality = self.quality_of_turn(observation, model_rows, bills)
        answers = quality[:, None] * self.statistics.answers[model_rows]
        context, turn = context_tokens(observation), observation.session.turn
        grown = float(self.statistics.grown_tokens[0])
        later = Later(
            turns=max(left - 1.0, 0.0),
            context_tokens=context,
            grown_tokens=min(grown, context / turn) if turn > 0 else grown,
            last=None,  # ignored
            lambda_per_usd=price,
            penalty=self.starved_penalty,
        )
        catalogue = self.catalogue_of_turn(observation, model_rows, context)
        return _Prepared(OneTurn(catalogue, answers, bills, money, later), mask, quality, left)

    def _decided(self, observation: Observation, uniform: float, prepared: _Prepared, found: Backup) -> Decision:
        """The decision by a turn's values."""
        costs, price = observation.means_usd, observation.lambda_per_usd
        tie_break = TIE_BREAK / max(*costs, 1e-12)
        worth: list[float] = found.worth(price, self.starved_penalty).tolist()
        scores = [value - cost * tie_break for value, cost in zip(worth, costs, strict=True)]
        return make_decision(
            self.policy_id,
            observation,
            scores,
            prepared.mask,
            self.exploration,
            uniform,
            quality=prepared.quality,
            q_quality=found.quality,
            q_cost_usd=found.spend_usd,
            info={"lambda_per_usd": price, "turns_left": prepared.turns_left},
        )

    def quality_of_turn(self, observation: Observation, model_rows: list[int], bills_usd: F32) -> F32:
        """The lower confidence bound of one turn."""
        predicted = self.quality.predict(observation)
        if self.residual is None:
            margins = [self.statistics.margins[row] for row in model_rows]
            lower = [min(max(q - less, 0.0), 1.0) for q, less in zip(predicted.tolist(), margins, strict=True)]
            return np.array(lower, np.float32)
        columns = [(c.quality_prior, c.input_usd_per_mtok + c.output_usd_per_mtok) for c in observation.candidates]
        prior, listed = np.array(columns, np.float32).T
        state = encode_state(observation)
        inputs = residual_inputs(state, predicted, prior, listed, bills_usd.mean(axis=-1))
        return self.lower_quality(predicted + self.residual.of(inputs), model_rows)

    def lower_quality(self, predicted: F32, model_rows: Any) -> F32:
        """The lower confidence bound, (..., K)."""
        return np.asarray(np.minimum(np.maximum(predicted - self.statistics.margin[model_rows], 0.0), 1.0), np.float32)

    def catalogue_of_turn(self, observation: Observation, model_rows: list[int], context: float) -> Catalogue:
        """The catalogue of one turn, in plain numbers."""
        listed, bills, read, inputs, cached, able = [], [], [], [], [], []
        for c, mean_usd in zip(observation.candidates, observation.means_usd, strict=True):
            usd_in, usd_cached = c.input_usd_per_mtok * 1e-6, c.cached_input_usd_per_mtok * 1e-6
            warm = min(c.warm_tokens, context)
            listed.append(c.input_usd_per_mtok + c.output_usd_per_mtok)
            bills.append((mean_usd, c.cost_quantiles_usd[Q95]))
            read.append((context - warm) * usd_in + warm * usd_cached)
            inputs.append(usd_in)
            cached.append(usd_cached)
            able.append(able_later(c))
        average: list[float] = self.quality.average(observation).tolist()
        rows = self.statistics.rows_of_turn(model_rows, average, listed, bills, read, able)
        return Catalogue(*rows, inputs, cached, able)

    def values(self, shown: Shown) -> tuple[F32, Backup]:
        """Quality of many turns and the values from them on, (N, K) each."""
        quality = shown.predicted
        if self.residual is not None:
            listed, bill = shown.usd_in + shown.usd_out, shown.bills_usd.mean(axis=-1)
            quality = quality + self.residual.of(residual_inputs(shown.state, quality, shown.prior, listed, bill))
        quality = self.lower_quality(quality, shown.model_rows)
        answers = quality[..., None] * self.statistics.answers[shown.model_rows]
        price = np.asarray(shown.lambda_per_usd, np.float32)
        context, turn = np.asarray(shown.context_tokens, np.float64), np.asarray(shown.turn)
        grown = float(self.statistics.grown_tokens[0])
        later = Later(
            turns=np.asarray(shown.later_turns, np.float32),
            context_tokens=context.astype(np.float32),
            grown_tokens=np.where(turn > 0, np.minimum(grown, context / np.maximum(turn, 1)), grown).astype(np.float32),
            last=price,  # ignored
            lambda_per_usd=price,
            penalty=np.full(price.shape, self.starved_penalty, np.float32),
        )
        money = np.asarray(shown.available_usd, np.float32)
        return quality, q_values(self.forward, self.catalogue(shown), answers, shown.bills_usd, money, later)

    def catalogue(self, shown: Shown) -> Catalogue:
        """Statistics of the candidates on later turns."""
        context = np.asarray(shown.context_tokens)[..., None]
        warm = np.minimum(shown.warm_tokens, context)
        read_usd = ((context - warm) * shown.usd_in + warm * shown.usd_cached) * 1e-6
        listed = shown.usd_in + shown.usd_out
        rows = self.statistics.rows(shown.model_rows, shown.average, listed, shown.bills_usd, read_usd, shown.able)
        columns = (*rows, shown.usd_in * 1e-6, shown.usd_cached * 1e-6)
        return Catalogue._make([*(np.asarray(x, np.float32) for x in columns), shown.able])


def able_later(candidate: CandidateView) -> bool:
    """Tell whether a later turn may use this candidate: nothing but money excludes it now."""
    return candidate.feasible or candidate.why_not == NOT_AFFORDABLE
