"""Promotion gate: decides whether a candidate may serve, with reasons. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

from gateway.wording import counted
from train.config import GateConfig
from train.evaluate.ope import Interval

Outcome = Literal["promote", "keep", "not enough data"]


@dataclass(frozen=True)
class Evidence:
    """Evaluation of one candidate against the incumbent. Scores are per turn, 0 to 1.

    `gain` is the paired difference of the doubly robust estimates, with `below` the probability under its lower bound
    (`tails`); `gain_sd` its standard deviation over trees of sessions. `second_opinion` is the
    same difference by an estimator without assumptions about users.
    """

    name: str
    sessions: int
    trees: int
    """Independent sessions: those of one tree count once."""
    turns: int
    gain: Interval
    gain_sd: float
    second_opinion: Interval
    effective_turns: float
    overlap: float
    starved_rate: float
    incumbent_starved_rate: float
    below: float = 0.05
    tuned_score: float = 0.0
    """Score per turn on the training part, by the reward model: decides among candidates that all pass."""
    network: bool = False
    incumbent_network: bool = False
    """Whether the network decides; ties go to it."""
    incumbent_overlap: float = 1.0
    graded_share: float = 1.0
    """Graded share of the turns without an implicit signal."""
    over_networks: Mapping[str, float] = field(default_factory=dict)
    """Lower bound of the paired gain over each candidate network, by name; empty for a network."""


@dataclass(frozen=True)
class GateVerdict:
    """Decision of the gate with its reasons."""

    outcome: Outcome
    candidate: str | None
    reasons: tuple[str, ...]


def judge(evidence: Sequence[Evidence], config: GateConfig) -> GateVerdict:
    """Choose a candidate that passes every test, or give the reasons why none does.

    Of several that pass, the one that did best on the training part is chosen, because the largest estimate here is
    likely to be too large (the optimiser's curse). A network replaces it unless the choice is better by more than
    `network_tie` with confidence.
    """
    if not evidence:
        return GateVerdict("keep", None, ("there is no candidate",))
    passed = [item for item in evidence if not objections(item, config)]
    if passed:
        best = max(passed, key=lambda item: (item.tuned_score, item.gain.low))
        level = [item for item in evidence if is_level(item, best, config)]
        if not level:
            return GateVerdict("promote", best.name, (reason_to_promote(best, config, len(evidence)),))
        network = max(level, key=lambda item: (item.tuned_score, item.gain.low))
        reason = (
            f"the network, with a gain of {network.gain.mean:+.4f} per turn: {best.name} is better by more than "
            f"{best.over_networks[network.name]:+.4f} with confidence, at least {config.network_tie:+.4f} is required"
        )
        return GateVerdict("promote", network.name, (reason, reason_to_promote(best, config, len(evidence))))
    best = max(evidence, key=lambda item: (item.gain.mean, item.name))
    reasons = tuple(f"{item.name}: {text}" for item in evidence for text in objections(item, config))
    short = shortage(best, config)
    if short is not None:
        return GateVerdict("not enough data", None, (short, *reasons))
    return GateVerdict("keep", None, reasons)


def is_level(network: Evidence, best: Evidence, config: GateConfig) -> bool:
    """Tell whether a network is level with a passing candidate of another kind.

    It must pass all tests except that of a certain gain, and must not have starved more sessions than that candidate or
    than the gate allows.
    """
    surpassed = best.over_networks.get(network.name)
    if surpassed is None or surpassed > config.network_tie or network.gain.mean < least_gain(network, config):
        return False
    starves = starving_costs(network, config) > 0.0 and network.starved_rate > best.starved_rate
    return not starves and not doubts(network, config)


def objections(item: Evidence, config: GateConfig) -> tuple[str, ...]:
    """Reasons not to promote; empty if there are none."""
    found = [*doubts(item, config)]
    least = least_gain(item, config)
    if not item.gain.low > least:
        found.append(f"gain {item.gain.mean:+.4f} per turn, lower bound {item.gain.low:+.4f} is not above {least:g}")
    wanted = starving_costs(item, config)
    if wanted > 0.0 and not item.gain.low > wanted:
        starves = f"starves {item.starved_rate:.1%} of sessions, the incumbent {item.incumbent_starved_rate:.1%}"
        pays = f": a gain above {wanted:+.4f} per turn would pay for that, {item.gain.low:+.4f} is sure"
        found.append(starves + (pays if math.isfinite(wanted) else ""))
    return tuple(found)


def doubts(item: Evidence, config: GateConfig) -> tuple[str, ...]:
    """Reasons not to trust the estimates."""
    found = []
    if item.trees < config.min_sessions:
        found.append(f"{counted(item.trees, 'held-out session')}, at least {config.min_sessions} are required")
    if not item.graded_share:
        found.append("no held-out turn without an implicit signal has feedback")
    if item.second_opinion.high < least_gain(item, config):
        found.append(
            f"per-decision importance sampling contradicts: its interval ends at {item.second_opinion.high:+.4f}"
        )
    floor = max(config.min_ess, config.min_ess_fraction * item.turns)
    if item.effective_turns < floor:
        found.append(f"effective sample size {item.effective_turns:.0f} turns, at least {floor:.0f} are required")
    if item.overlap < config.min_overlap:
        found.append(f"overlap {item.overlap:.2f}, at least {config.min_overlap:g} is required")
    if item.incumbent_overlap < config.min_overlap:
        found.append(
            f"the log says little about what serves now: overlap {item.incumbent_overlap:.2f}, at least "
            f"{config.min_overlap:g} is required"
        )
    return tuple(found)


def least_gain(item: Evidence, config: GateConfig) -> float:
    """Threshold of the lower bound; a network may replace a rule at a small loss."""
    return config.min_gain - (config.network_tie if item.network and not item.incumbent_network else 0.0)


def starving_costs(item: Evidence, config: GateConfig) -> float:
    """Gain per turn that compensates for more starved sessions than allowed.

    The gain counts a starved session's lost answers as 0 already; this is the additional cost.
    """
    more = item.starved_rate - item.incumbent_starved_rate - config.max_starved_increase
    return more * config.starved_worth * item.sessions / max(item.turns, 1) if more > 0.0 else 0.0


def shortage(item: Evidence, config: GateConfig) -> str | None:
    """Return "not enough data" when more sessions could confirm an estimated gain, else None."""
    if item.trees < config.min_sessions:
        needed = max(config.min_sessions, sessions_needed(item, config) or 0)
        return f"not enough data: {item.trees:,} of about {needed:,} held-out sessions"
    if not item.graded_share:
        return (
            "not enough data: no held-out turn without an implicit signal has feedback; implicit signals alone tell of "
            "poor answers only"
        )
    only_uncertain = not item.gain.low > config.min_gain and item.gain.mean > config.min_gain
    needed_sessions = sessions_needed(item, config)
    if only_uncertain and needed_sessions is not None and needed_sessions > item.trees:
        return f"not enough data: {item.trees:,} of about {needed_sessions:,} held-out sessions"
    return None


def sessions_needed(item: Evidence, config: GateConfig) -> int | None:
    """Sessions at which the estimated gain would clear the bound: (z sd / gain)^2, two digits."""
    gain = item.gain.mean - config.min_gain
    if not (gain > 0 and math.isfinite(item.gain_sd)):
        return None
    exact = (NormalDist().inv_cdf(1.0 - item.below) * item.gain_sd / gain) ** 2
    digits = max(0, int(math.log10(max(exact, 1.0))) - 1)
    step: int = 10**digits
    return math.ceil(exact / step) * step


def tails(config: GateConfig, candidates: int) -> tuple[float, ...]:
    """Error probability of each candidate's lower bound: 1 - confidence, divided among them.

    Bonferroni's inequality holds for any shares. The first candidate, the night's network at its best on the training
    part, has half, because it is the purpose of the night; with equal shares each further candidate made it wait
    longer.
    """
    left = 1.0 - config.confidence
    if not candidates:
        return ()
    return (left,) if candidates < 2 else (left / 2.0, *(left / 2.0 / (candidates - 1),) * (candidates - 1))


def reason_to_promote(item: Evidence, config: GateConfig, candidates: int) -> str:
    """The reason for the log and the report."""
    return (
        f"gain {item.gain.mean:+.4f} per turn, above {item.gain.low:+.4f} with {config.confidence:.0%} confidence "
        f"({candidates} tested) on {item.trees:,} held-out sessions"
    )
