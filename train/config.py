"""Configuration of training and its gate: one frozen dataclass per subject.

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
    """An unknown setting or an impossible value; the message names it."""


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """Weights that turn logged quality signals into a score in [0, 1] (train/log/reward.py)."""

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
    """Score of an answer without feedback by its worst implicit signal. The gateway logs them by these names;
    `regenerated` and `edited` come from the next turn's `regenerates` and `edits`."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Selection of the logged turns, and their split."""

    since_days: float = 60.0
    """Older decisions are left out: prices, models and users change."""
    holdout_fraction: float = 0.4
    """Share of sessions held out for evaluation, chosen by a hash of their ids."""
    tenant_weight_cap: float = 0.25
    """Highest weight of one tenant's turns, in the fit and in the gate: a busy or malicious tenant does not decide for
    the others. 1 is no cap."""
    max_sessions: int = 100_000
    """Only the newest sessions are read, to bound memory."""
    max_turns: int = 64
    """Later turns of a session are left out: one session of thousands would pad all others to its length."""
    memory_mb: float = 2_000.0
    """Memory limit of the log; the last turns of the longest sessions are left out beyond it."""


@dataclass(frozen=True, slots=True)
class RelabelConfig:
    """Hindsight relabeling (arXiv 2605.25424, section 4): terms redrawn at every gradient step."""

    lambda_zero_fraction: float = 0.6
    """Share of groups at lambda = 0 (quality only)."""
    lambda_low: float = 0.02
    lambda_high: float = 5.0
    """Range of other lambdas, log-uniform, in quality points per mean cost of a turn (scale-free)."""
    bold_fraction: float = 0.5
    """Share of groups without a penalty for ending without money beyond the lost answers."""
    penalty_low: float = 0.1
    penalty_high: float = 40.0
    """Range of other penalties, log-uniform, in right answers; the penalty is an input of the network."""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """The value network (train/fit/value_curves.py) and the residual."""

    warm_steps: int = 3000
    """Steps of regression on the exact programme, starting at the shipped checkpoint."""
    steps: int = 300
    """Steps of temporal differences."""
    groups: int = 16
    """Sets of terms per step, each trained at every knot of the money axis."""
    rows: int = 16
    """Turns of the log in a group's backup."""
    samples: int = 1024
    """Turns to draw from, evenly spaced in the log."""
    conversation_fraction: float = 0.6
    """Share of groups with a conversation to read."""
    warm_rate: float = 4e-3
    learning_rate: float = 5e-4
    """Peak learning rates of a cosine decay with a short warm-up."""
    weight_decay: float = 1e-5
    gradient_clip: float = 5.0
    polyak: float = 0.05
    """Step of the averaged network, which is target and result, towards the online one."""
    encoder: int = 32
    hidden: int = 80
    """Widths; others than the shipped checkpoint's start from fresh parameters."""
    margin: float = 0.25
    """Posterior deviations to subtract from a predicted quality: a lower confidence bound."""
    alpha: float = 0.01
    """Weight of the residual's conservative term where only the logged action was graded (arXiv 2006.04779)."""
    residual_steps: int = 400
    residual_hidden: int = 16
    residual_rate: float = 3e-3


@dataclass(frozen=True, slots=True)
class QualityConfig:
    """The reward model (train/fit/reward_model.py): kernel ridge regression with shrinkage."""

    folds: int = 5
    """Folds of cross-fitting: a session is graded by a model that did not see it."""
    penalties: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    """Ridge penalties to choose from, by out-of-fold error."""
    landmarks: int = 512
    """Number of the kernel's landmark turns."""
    width: float = 0.7
    """Width of the Gaussian kernel, in median squared distances between turns."""
    text_width: float = 0.4
    """Width of the kernel over the text alone, in median squared distances between texts."""
    max_rows: int = 100_000
    """Limit of the graded turns to fit on, from the first sessions: more cost time without changing the fit."""
    prior_strength: float = 4.0
    """Weight of a model's prior quality, in observations."""


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """The planner's value table (train/fit/value_table.py)."""

    samples: int = 128
    """Sampled turns of the log that represent a later turn."""
    turns: int = 16
    """Later turns in the table; more are taken to be alike."""
    money_points: int = 40
    """Points of the money axis, geometric."""
    contexts_tokens: tuple[float, ...] = (0.0, 2000.0, 8000.0, 32000.0, 128000.0)
    """Lengths of conversation: bookkeeping, so the log need not have seen them. The first must be 0."""
    lambdas: tuple[float, ...] = (0.03, 0.15, 0.75)
    """Prices of money besides 0, in quality per mean bill."""
    starved_penalties: tuple[float, ...] = (0.0, 0.3, 2.0, 10.0, 30.0)
    """Additional costs of a lost answer: a table for each, of which tuning keeps two."""
    cautious_penalties: tuple[float, ...] = (5.0, 10.0)
    """The same for tables that stretch a bill's tail `caution` times: settings with almost no starvation."""
    caution: float = 2.0
    most_starved: float = 0.01
    """Starved share of the calibrated setting on the training part, by Laplace's rule: the target itself. At 1 % one
    of 200 sessions (`ope.tuning_sessions`) may starve; of fewer than 198, none. The dial has one dimension and falls,
    so what it selects starves hardly more when it serves (docs/policy-results.md)."""


@dataclass(frozen=True, slots=True)
class OpeConfig:
    """Off-policy evaluation."""

    bootstrap: int = 2000
    """Resamples of whole sessions."""
    weight_cap: float = 100.0
    """Cap of a single turn's importance ratio (bias towards the model, bounded variance). An action logged with a
    probability below its inverse does not count as overlap."""
    tuning_sessions: int = 200
    """Training sessions for tuning the network's price of starving, the planner and the rules."""
    max_sessions: int = 5_000
    """Limit of held-out sessions to play: every policy decides one turn at a time, as it serves."""
    fqe_sessions: int = 1_000
    """Training sessions for fitted Q evaluation, which has five numbers for every turn left."""


@dataclass(frozen=True, slots=True)
class GateConfig:
    """Conditions for a candidate to serve."""

    confidence: float = 0.95
    """One-sided confidence, divided among the candidates tested (Bonferroni)."""
    min_sessions: int = 100
    """Held-out sessions below which nothing is promoted, whatever the estimate."""
    min_ess_fraction: float = 0.05
    min_ess: float = 40.0
    """Effective sample size floors, in turns, of the candidate's importance weights."""
    min_overlap: float = 0.8
    """Least share of the candidate's probability, and of the incumbent's, on actions that the log took often enough."""
    max_starved_increase: float = 0.02
    """Highest increase of the starved share over the incumbent's, as a point estimate."""
    starved_worth: float = math.inf
    """Price of a further starved session, in right answers that the certain gain must bring beyond those it lost.
    Infinite: none may starve. Where expensive answers are the failures, guarding every session costs most quality."""
    min_gain: float = 0.0
    """The lower bound of the gain in score per turn must be above this."""
    network_tie: float = 0.001
    """Score per turn by which the network may be certainly behind the best candidate and still be chosen."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """All settings of a training run."""

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
        """Short digest of exactly these settings."""
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
    """Convert `value` to the type of `current`: a default declares its type."""
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
