"""Manifest of a checkpoint: how it decides; untrusted JSON, checked field by field."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from policy.features import DEFAULT_HORIZON, FEATURE_VERSION, Horizon
from policy.kernel import MAX_MODELS
from policy.rules import LAMBDA_PRESETS
from policy.text import TEXT_VERSION
from policy.value_network_shapes import Sizes

FORMAT = "seqroute-policy-1"
MANIFEST = "manifest.json"

RULES: Mapping[str, frozenset[str]] = {
    "network": frozenset({"starved_penalty"}),
    "planned": frozenset({"starved_penalty", "caution"}),
    "resolving": frozenset({"reserve", "spread", "margin", "cache_aware"}),
    "pacing": frozenset({"factor", "reserve"}),
    "tuned-lambda": frozenset({"lambda_per_usd", "reserve"}),
    "threshold": frozenset({"threshold"}),
    "strongest": frozenset(),
    "cheapest": frozenset(),
}
"""Decision rules of a checkpoint and their parameters; `policy.learned.policy_from` has the defaults."""

_POLICY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FIELDS = frozenset(
    {
        "format",
        "policy_id",
        "feature_version",
        "text_version",
        "rule",
        "rule_parameters",
        "lambda_presets",
        "hazard",
        "average_quality",
        "sizes",
        "params_sha256",
        "params_bytes",
        "report",
    }
)
_OPTIONAL_FIELDS = frozenset({"models"})


class CheckpointError(ValueError):
    """An invalid checkpoint. The one-line message says what was found and expected, and where."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The part of the manifest that a trainer chooses: how a checkpoint decides.

    `rule` names one of RULES and `rule_parameters` its numbers; `average_quality` is the mean graded quality by model
    name, for people to read; `report` is free JSON (the gate's verdict). The parameters are by part: a reward model
    over `models` ("quality/...", policy/kernel.py), the planner's value table ("values/...", policy/valuetable.py), the
    network's layers ("network/layer.leaf", of these `sizes`), its statistics of the catalogue ("statistics/...",
    policy/catalogue_statistics.py) and the residual of its quality ("residual/...", policy/residual.py); with any rule,
    the lengths of the models' answers ("lengths/...", policy/answer_lengths.py). Without models there are only the
    layers, and all qualities are priors. `text_version` is that of the text it reads; without models it reads none.
    """

    policy_id: str
    rule: str = "network"
    rule_parameters: Mapping[str, float] = field(default_factory=dict)
    lambda_presets: Mapping[str, float] = field(default_factory=lambda: dict(LAMBDA_PRESETS))
    horizon: Horizon = DEFAULT_HORIZON
    average_quality: Mapping[str, float] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)
    report: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    text_version: str = TEXT_VERSION


def write_manifest(recipe: Recipe, params: bytes, folder_name: str) -> bytes:
    """The manifest of these parameters. Raises CheckpointError as `read_recipe` would."""
    manifest = {
        "format": FORMAT,
        "policy_id": recipe.policy_id,
        "feature_version": FEATURE_VERSION,
        "text_version": recipe.text_version,
        "rule": recipe.rule,
        "rule_parameters": dict(recipe.rule_parameters),
        "lambda_presets": dict(recipe.lambda_presets),
        "hazard": list(recipe.horizon.hazard),
        "average_quality": dict(recipe.average_quality),
        "sizes": asdict(recipe.sizes),
        "report": dict(recipe.report),
        "params_sha256": hashlib.sha256(params).hexdigest(),
        "params_bytes": len(params),
    } | ({"models": list(recipe.models)} if recipe.models else {})
    try:
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{MANIFEST}: not plain finite JSON") from error
    read_recipe(parse_manifest(text), folder_name)
    return text


def parse_manifest(text: bytes) -> dict[str, Any]:
    """The manifest's fields, all known. Raises CheckpointError."""
    try:
        manifest = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST}: not plain JSON") from error
    if not isinstance(manifest, dict) or set(manifest) - _OPTIONAL_FIELDS != _FIELDS:
        found = (
            sorted((set(manifest) - _OPTIONAL_FIELDS) ^ _FIELDS)
            if isinstance(manifest, dict)
            else type(manifest).__name__
        )
        raise CheckpointError(f"{MANIFEST}: missing or unknown fields: {found}"[:300])
    return manifest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a field appears twice")
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def read_recipe(manifest: dict[str, Any], folder_name: str) -> Recipe:
    """Parse the manifest. Raises CheckpointError naming the wrong field."""
    for name, expected in (
        ("format", FORMAT),
        ("feature_version", FEATURE_VERSION),
        ("policy_id", folder_name),
    ):
        if type(manifest[name]) is not type(expected) or manifest[name] != expected:
            raise CheckpointError(f"{MANIFEST}: {name}: expected {expected!r}, found {manifest[name]!r}"[:300])
    if not _POLICY_ID.fullmatch(folder_name):
        raise CheckpointError(f"{MANIFEST}: policy_id: expected letters, digits, '.', '_' and '-', up to 128")
    text_version = manifest["text_version"]
    if not isinstance(text_version, str) or not _POLICY_ID.fullmatch(text_version):
        raise CheckpointError(f"{MANIFEST}: text_version: expected a name, found {text_version!r}"[:300])
    rule = manifest["rule"]
    if not isinstance(rule, str) or rule not in RULES:
        raise CheckpointError(f"{MANIFEST}: rule: expected one of {', '.join(RULES)}, found {rule!r}"[:300])
    parameters = _numbers(manifest, "rule_parameters", most=1e9)
    if unknown := sorted(set(parameters) - RULES[rule]):
        raise CheckpointError(f"{MANIFEST}: rule_parameters: {rule} takes no {', '.join(unknown)}"[:300])
    presets = _numbers(manifest, "lambda_presets", most=1e9)
    if set(presets) != set(LAMBDA_PRESETS):
        raise CheckpointError(f"{MANIFEST}: lambda_presets: expected {', '.join(LAMBDA_PRESETS)}")
    hazard = manifest["hazard"]
    if not isinstance(hazard, list) or not 1 <= len(hazard) <= 256 or not all(_within(h, 0.0, 1.0) for h in hazard):
        raise CheckpointError(f"{MANIFEST}: hazard: expected 1 to 256 probabilities")
    if not isinstance(manifest["report"], dict):
        raise CheckpointError(f"{MANIFEST}: report: expected an object")
    sizes = Sizes()
    if rule == "network":  # earlier versions wrote meaningless sizes for other rules
        try:
            sizes = Sizes(**manifest["sizes"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{MANIFEST}: sizes: expected the positive whole numbers of a network") from error
    return Recipe(
        folder_name,
        rule,
        parameters,
        presets,
        Horizon(tuple(float(h) for h in hazard)),
        _numbers(manifest, "average_quality", most=1.0),
        sizes,
        manifest["report"],
        _models(manifest, rule),
        text_version,
    )


def _models(manifest: dict[str, Any], rule: str) -> tuple[str, ...]:
    """The models of the tables."""
    names = manifest.get("models", [])
    if not isinstance(names, list) or len(names) > MAX_MODELS or not all(isinstance(n, str) and n for n in names):
        raise CheckpointError(f"{MANIFEST}: models: expected at most {MAX_MODELS} names")
    if len(set(names)) != len(names):
        raise CheckpointError(f"{MANIFEST}: models: a name appears twice")
    if rule == "planned" and not names:
        raise CheckpointError(f"{MANIFEST}: models: not those of a {rule} policy")
    return tuple(names)


def _numbers(manifest: dict[str, Any], name: str, *, most: float) -> dict[str, float]:
    value = manifest[name]
    if not isinstance(value, dict) or not all(_within(v, 0.0, most) for v in value.values()):
        raise CheckpointError(f"{MANIFEST}: {name}: expected an object of numbers from 0 to {most:g}")
    return {key: float(number) for key, number in value.items()}


def _within(value: Any, least: float, most: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and least <= value <= most
        and math.isfinite(value)
    )
