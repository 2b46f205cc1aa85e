"""Every number that training and its gate depend on, with its meaning. One frozen value per subject.

A run is a pure function of (log, config, key): `digest` names the config in `runs/<run_id>/`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from train.errors import kind_of


class ConfigError(ValueError):
    """A setting with an unknown name or an impossible value; the message says which."""


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """How logged quality signals become one score in [0, 1] (train/log/reward.py)."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of a feedback name or source in the mean; 1 when not named, 0 to ignore it."""
    implicit: Mapping[str, float] = field(
        default_factory=lambda: {
            "regenerated": 0.2,
            "edited": 0.35,
            "invalid_tool_json": 0.0,
            "refusal": 0.1,
            "truncated": 0.3,
        }
    )
    """What an implicit signal says of an answer nobody scored; several: the worst counts. The gateway logs them by
    these names; `regenerated` and `edited` are read off the next turn's `regenerates` and `edits`."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Which logged turns are learnt from, and how they are divided."""

    since_days: float = 60.0
    """Older decisions are left out: prices, models and users have moved on."""
    holdout_fraction: float = 0.4
    """Sessions kept untouched for evaluation, chosen by a hash of their ids."""
    tenant_weight_cap: float = 0.25
    """A tenant with a larger share of the turns than this is weighed as if it had this share, in the fit and in the
    gate: one loud or poisoned tenant does not decide for the others. 1 is no cap."""
    max_sessions: int = 100_000
    """The newest so many sessions are read: bounds memory."""
    max_turns: int = 64
    """Turns of a session beyond these are left out: one session of thousands would pad all others to its length."""
    memory_mb: float = 2_000.0
    """What the read log may take: where all its sessions at their longest take more, their last turns are left out."""


@dataclass(frozen=True, slots=True)
class RelabelConfig:
    """Hindsight relabeling (arXiv 2605.25424, section 4): terms redrawn at every gradient step, at all sums of
    money."""

    lambda_zero_fraction: float = 0.6
    """The share of groups at lambda = 0 (quality only)."""
    lambda_low: float = 0.02
    lambda_high: float = 5.0
    """Else log-uniform, in quality points per mean cost of a turn (a scale-free lambda)."""
    bold_fraction: float = 0.5
    """The share of groups at which ending without money counts no more than the answers that are lost."""
    penalty_low: float = 0.1
    penalty_high: float = 40.0
    """Else log-uniform, in right answers: the price of starving is an input of the network."""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """The value network (train/fit/value_curves.py): warm start on the exact programme, then TD; and the residual."""

    warm_steps: int = 3000
    """Steps of regression on the exact programme, from the shipped checkpoint on."""
    steps: int = 300
    """Steps of temporal differences."""
    groups: int = 16
    """Terms a step: each is learnt at every knot of the money axis."""
    rows: int = 16
    """Turns of the log that a group is backed up over."""
    samples: int = 1024
    """Turns of the log that are drawn from, evenly through it."""
    conversation_fraction: float = 0.6
    """The share of groups with a conversation to read."""
    warm_rate: float = 4e-3
    learning_rate: float = 5e-4
    """Peaks of a cosine decay with a short warm-up."""
    weight_decay: float = 1e-5
    gradient_clip: float = 5.0
    polyak: float = 0.05
    """Step of the mean network, which is the target and what is published, towards the online one."""
    encoder: int = 32
    hidden: int = 80
    """Widths of a network that is not begun from the shipped checkpoint."""
    margin: float = 0.25
    """Posterior deviations that are subtracted from a predicted quality: a lower confidence bound."""
    alpha: float = 0.01
    """Weight of the conservative term of the residual where only the logged action was graded (arXiv 2006.04779)."""
    residual_steps: int = 400
    residual_hidden: int = 16
    residual_rate: float = 3e-3


@dataclass(frozen=True, slots=True)
class QualityConfig:
    """The reward model (train/fit/reward_model.py): kernel ridge regression by candidate, with shrinkage."""

    folds: int = 5
    """Cross-fitting: a session is graded by a model that did not see it."""
    penalties: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    """Ridge penalties to choose from, by out-of-fold error."""
    landmarks: int = 512
    """Turns of the log that the kernel compares with."""
    width: float = 0.7
    """Of the Gaussian kernel, in median squared distances between turns."""
    text_width: float = 0.4
    """Of the kernel that looks at the text alone, in median squared distances between texts."""
    max_rows: int = 100_000
    """Graded turns that are fitted on at most, those of the first sessions: more change nothing but the time."""
    prior_strength: float = 4.0
    """How many observations the catalogue's prior quality of a model counts for."""


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """The planner's value table (train/fit/value_table.py)."""

    samples: int = 128
    """Turns of the log that stand for a later turn."""
    turns: int = 16
    """Later turns that the table reaches; more are taken to be like these."""
    purses: int = 40
    """Points of the money axis, geometric."""
    contexts_tokens: tuple[float, ...] = (0.0, 2000.0, 8000.0, 32000.0, 128000.0)
    """Lengths of conversation: bookkeeping, so the log need not have seen them. The first must be 0."""
    lambdas: tuple[float, ...] = (0.03, 0.15, 0.75)
    """Prices of money beside 0, in quality per mean bill."""
    starved_penalties: tuple[float, ...] = (0.0, 0.3, 2.0, 10.0, 30.0)
    """What a lost answer counts beside being lost: a table for each, of which tuning keeps two."""
    cautious_penalties: tuple[float, ...] = (5.0, 10.0)
    """The same, for tables of which a bill's tail counts `caution` times: settings that starve hardly anybody."""
    caution: float = 2.0
    most_starved: float = 0.002
    """Share of sessions that the calibrated setting may starve on the training part: a fifth of the one in a hundred
    that is wanted, since what was chosen for starving little starves more when it serves."""


@dataclass(frozen=True, slots=True)
class OpeConfig:
    """Off-policy evaluation."""

    bootstrap: int = 2000
    """Resamples of whole sessions."""
    weight_cap: float = 100.0
    """Importance ratios of a single turn above this are cut (bias towards the model, bounded variance). An action
    logged with a probability below its inverse does not count as overlap."""
    tuning_sessions: int = 60
    """Sessions of the training part that the rules' numbers are tuned on."""
    max_sessions: int = 5_000
    """Held-out sessions beyond these are not played: every policy decides one by one, as it serves."""
    fqe_sessions: int = 1_000
    """Sessions of the training part that fitted Q evaluation is fitted on: five numbers for every turn left."""


@dataclass(frozen=True, slots=True)
class GateConfig:
    """When a candidate may serve. Each refusal is a value with its reason."""

    confidence: float = 0.95
    """One-sided, divided among the candidates tested (Bonferroni)."""
    min_sessions: int = 100
    """Held-out sessions below which nothing is promoted, whatever the estimate says."""
    min_ess_fraction: float = 0.05
    min_ess: float = 40.0
    """Effective sample size floors, in turns, of the candidate's importance weights."""
    min_overlap: float = 0.8
    """Share of the candidate's probability that lies on actions the log took often enough to know them."""
    max_starved_increase: float = 0.02
    """How much more often a session may starve than under the incumbent: a point estimate beyond this refuses."""
    starved_worth: float = math.inf
    """At what price more may starve after all: the right answers a session, beside those it lost, that the sure gain
    must bring. Infinite: at none. Where dear answers are the failures, guarding every session costs most quality."""
    min_gain: float = 0.0
    """The lower bound of the gain in score per turn must be above this."""
    network_tie: float = 0.001
    """Score per turn by which the network may be behind and still be taken: ties go to what is learnt by gradient."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    seed: int = 0
    log: LogConfig = field(default_factory=LogConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    ope: OpeConfig = field(default_factory=OpeConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    def digest(self) -> str:
        """A short name for exactly these settings."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_mapping(values: Mapping[str, object], seed: int | None = None) -> TrainConfig:
    """Read a training file ({"gate": {"confidence": .9}, ...}); unknown names are errors.

    Raises ConfigError, naming the key path, for an unknown key or a value of the wrong type.
    """
    blank = TrainConfig()
    parts: dict[str, object] = {}
    for name, value in values.items():
        where = f"training.{name}"
        if name not in TrainConfig.__dataclass_fields__:
            raise ConfigError(f"{where}: unknown key, expected one of {sorted(TrainConfig.__dataclass_fields__)}")
        current = getattr(blank, name)
        parts[name] = _typed(where, current, value) if name == "seed" else _section(where, current, value)
    if seed is not None:
        parts["seed"] = seed
    return TrainConfig(**parts)  # type: ignore[arg-type]


def _section(where: str, current: object, value: object) -> object:
    fields = getattr(type(current), "__dataclass_fields__", {})
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {value!r}")
    known: dict[str, object] = {name: getattr(current, name) for name in fields}
    for key, item in value.items():
        if key not in fields:
            raise ConfigError(f"{where}.{key}: unknown key, expected one of {sorted(fields)}")
        known[key] = _typed(f"{where}.{key}", known[key], item)
    return type(current)(**known)


def _typed(where: str, current: object, value: object) -> object:
    """`value` as the type `current` has: a default is the declaration of its type."""
    if isinstance(current, Mapping) and isinstance(value, Mapping):
        return {str(k): _typed(f"{where}.{k}", 0.0, v) for k, v in value.items()}
    if isinstance(current, tuple) and isinstance(value, list | tuple):
        return tuple(float(_number(where, v)) for v in value)
    if isinstance(current, int) and isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(current, float):
        return float(_number(where, value))
    raise ConfigError(f"{where}: expected {kind_of(current)}, got {value!r}")


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: expected a number, got {value!r}")
    return float(value)
