"""Makes the model catalogue from the configuration and the price map of LiteLLM.

Values that the configuration omits come from the price map that LiteLLM ships as a file, read without importing
LiteLLM and without network access. A model without a price is a configuration error, never free.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gateway.catalog.addresses import NEVER_CALLED, provider_of
from gateway.catalog.assumptions import unstated
from gateway.catalog.build_model import (
    check_tier,
    evident_mode,
    map_entry,
    model_of,
    prices_of_size,
    stated_limits,
    with_siblings,
)
from gateway.catalog.cache_hits import CacheTerms
from gateway.catalog.efforts import quality_prior
from gateway.catalog.models import Catalog, Model
from gateway.catalog.price_map import PriceMap
from gateway.catalog.price_reading import (
    DatedPrices,
    in_its_region,
    read_prices,
    uncharged_fees,
    unstated_region,
    upper_bounds,
)
from gateway.clock import Clock, now_ms
from gateway.config.load import read_settings
from gateway.config.model_entry import EFFORTS, MODES, WITHOUT_OUTPUT, ModelEntry
from gateway.config.reader import SettingsError
from gateway.config.settings import Settings
from gateway.schema.fields import INPUT_FIELDS

PRICE_MAP_FILE = "model_prices_and_context_window_backup.json"


@dataclass(frozen=True, slots=True)
class CatalogDraft:
    """A configuration and its catalogue as far as readable; usable only without `problems`."""

    settings: Settings
    catalog: Catalog
    problems: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Findings that are logged without stopping the start."""
        return (*self.settings.warnings, *self.catalog.warnings)


def draft(
    path: Path | str,
    environ: Mapping[str, str],
    clock: Clock = time.time,
    *,
    price_map: Mapping[str, Any] | None = None,
) -> CatalogDraft:
    """Read the configuration at `path` as far as it can be read."""
    read = read_settings(path, environ)
    listed = bundled_price_map() if price_map is None else price_map
    catalog, unpriced = _build(read.settings, listed, now_ms(clock), environ)
    return CatalogDraft(read.settings, catalog, (*read.problems, *unpriced))


def load(
    path: Path | str,
    environ: Mapping[str, str],
    clock: Clock = time.time,
    *,
    price_map: Mapping[str, Any] | None = None,
) -> tuple[Settings, Catalog]:
    """Settings and catalogue of the configuration at `path`.

    `price_map` replaces LiteLLM's bundled file; `environ` has the locations that the configuration does not state.
    Raises SettingsError with the problems of both at once.
    """
    read = draft(path, environ, clock, price_map=price_map)
    if read.problems:
        raise SettingsError(read.problems)
    return read.settings, read.catalog


def bundled_price_map() -> Mapping[str, msgspec.Raw]:
    """LiteLLM's price map of the installed version; empty when LiteLLM is not installed."""
    spec = importlib.util.find_spec("litellm")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        file = Path(folder) / PRICE_MAP_FILE
        if file.is_file():
            return msgspec.json.decode(file.read_bytes(), type=dict[str, msgspec.Raw])
    return {}


def _build(
    settings: Settings, price_map: Mapping[str, Any], at_ms: int, environ: Mapping[str, str]
) -> tuple[Catalog, tuple[str, ...]]:
    """The catalogue with the prices in force at an instant, and its problems."""
    findings = _Findings()
    groups = _groups(settings, PriceMap(price_map), at_ms, environ, findings)
    models = _models(settings, groups)
    findings.problems += _effort_names(settings, models)
    if not models and not findings.problems and any(entry.info.prices_read for entry in settings.models):
        findings.problems.append(f"{settings.path.name}: model_list: expected at least one chat model")
    findings.problems += _mixed_modes(groups)
    aliases = {alias: name for alias, name in settings.router.model_group_alias.items() if name in models}
    access_groups = _access_groups(settings, {*models, *aliases}, findings)
    coming = sorted(findings.coming, key=lambda change: change[1].valid_from_ms)
    findings.warnings += [
        f'{dated.where}: other prices of "{name}" apply from {_utc(dated.valid_from_ms)}' for name, dated in coming
    ]
    catalog = Catalog(
        models,
        aliases,
        _digest(models.values(), aliases),
        tuple(findings.warnings),
        settings.router.hidden_aliases & aliases.keys(),
        access_groups,
        tuple(coming),
        lambda: _build(settings, price_map, coming[0][1].valid_from_ms, environ)[0],
    )
    return catalog, tuple(findings.problems)


@dataclass(slots=True)
class _Findings:
    """What is said of the entries beside their models."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    coming: list[tuple[str, DatedPrices]] = field(default_factory=list)
    """Prices that apply later, by model."""


def _groups(
    settings: Settings, listed: PriceMap, at_ms: int, environ: Mapping[str, str], findings: _Findings
) -> dict[str, list[Model]]:
    """The models of all entries that are served here, each with its one deployment, by name."""
    groups: dict[str, list[Model]] = {}
    entries = _entries_by_name(settings)
    for position, entry in enumerate(settings.models):
        known = map_entry(entry, listed)
        if (uncalled := NEVER_CALLED.get(provider_of(entry, known))) is not None:
            findings.warnings.append(f"{entry.where}.litellm_params.model: {uncalled}; the entry is ignored")
            continue
        mode = entry.info.mode or str(known.get("mode") or evident_mode(entry, listed))
        if mode not in MODES:
            findings.warnings.append(
                f"{entry.where}.model_info.mode: {mode} models are not served here; the entry is ignored"
            )
            continue
        findings.warnings += unstated_region(entry, known, environ)
        findings.warnings += [
            f"{entry.where}.litellm_params.{name}: not sent to a model of mode {mode}; it is ignored"
            for name in entry.params.request_defaults
            if (name in INPUT_FIELDS) != (mode == "embedding") and (name in INPUT_FIELDS or mode in WITHOUT_OUTPUT)
        ]
        known = in_its_region(entry, known, environ)
        priced = known or prices_of_size(entry, listed, mode, findings.warnings)
        read = read_prices(entry, priced, at_ms, findings.problems)
        findings.warnings += uncharged_fees(entry, known)
        if mode not in WITHOUT_OUTPUT:
            findings.warnings += unstated(entry, known, *stated_limits(entry, known))
        if read is not None:
            prices, later = read
            findings.coming += [(entry.model_name, dated) for dated in later]
            check_tier(entry, prices, findings.problems)
            weight = _weight(entry, entries[entry.model_name])
            model = model_of(entry, position, known, mode, prices, settings, weight)
            groups.setdefault(entry.model_name, []).append(with_siblings(model, entry, listed, environ))
    return groups


def _entries_by_name(settings: Settings) -> dict[str, list[ModelEntry]]:
    found: dict[str, list[ModelEntry]] = {}
    for entry in settings.models:
        found.setdefault(entry.model_name, []).append(entry)
    return found


def _access_groups(settings: Settings, names: set[str], findings: _Findings) -> dict[str, frozenset[str]]:
    """The models of each group that allow-lists may name.

    What a group grants is never more than the file surely says: a model whose entries disagree is in the groups that
    all of them name, because an allow-list means models, not deployments; a group cannot widen what a name means.
    """
    found: dict[str, set[str]] = {}
    for name, entries in _entries_by_name(settings).items():
        stated = [entry.info.access_groups for entry in entries]
        for group in sorted(frozenset().union(*stated)) if name in names else ():
            where = f"{entries[0].where}.model_info.access_groups"
            if group in ("all", "*", "auto") or group.startswith("auto@"):
                findings.problems.append(f'{where}: "{group}" is reserved: choose another name for the group')
            elif group in names:
                if group != name:
                    findings.warnings.append(
                        f'{where}: "{group}" is the name of a model or alias, and allow-lists mean that alone'
                    )
            elif all(group in each for each in stated):
                found.setdefault(group, set()).add(name)
            else:
                findings.warnings.append(
                    f'{where}: not every entry of "{name}" names the group "{group}"; it does not allow the model'
                )
    return {group: frozenset(members) for group, members in found.items()}


def _models(settings: Settings, groups: Mapping[str, list[Model]]) -> dict[str, Model]:
    """One model of each group, with its efforts."""
    models = {name: _merged(members) for name, members in groups.items()}
    for name, entries in _entries_by_name(settings).items():
        if name in models and models[name].mode == "chat":
            models[name] = replace(models[name], efforts=_levels(models[name], entries))
    return models


def _effort_names(settings: Settings, models: Mapping[str, Model]) -> list[str]:
    levels = {level.action for model in models.values() for level in model.efforts}
    return [
        f'{entry.where}.model_name: "{entry.model_name}" is also the name of an effort of another model'
        for entry in settings.models
        if entry.model_name in levels
    ]


def _utc(instant_ms: int) -> str:
    return datetime.fromtimestamp(instant_ms / 1000, UTC).isoformat().replace("+00:00", "Z")


def _weight(entry: ModelEntry, group: Sequence[ModelEntry]) -> float:
    """A deployment's share of its group: without any stated weight its rpm, else its tpm, as in LiteLLM."""
    if all(each.params.weight is None for each in group):
        for limits in ([each.params.rpm for each in group], [each.params.tpm for each in group]):
            if all(limits):
                return float(limits[group.index(entry)] or 0)
    return 1.0 if entry.params.weight is None else entry.params.weight


def _merged(members: list[Model]) -> Model:
    """One model from the deployments that share its name: smallest limits, common capabilities."""
    first = members[0]
    return replace(
        first,
        prices=upper_bounds([member.prices for member in members]),
        max_input_tokens=min(member.max_input_tokens for member in members),
        max_output_tokens=min(member.max_output_tokens for member in members),
        capabilities=frozenset.intersection(*(member.capabilities for member in members)),
        possible_capabilities=frozenset.intersection(*(member.possible_capabilities for member in members)),
        quality_prior=min(member.quality_prior for member in members),
        cache=CacheTerms(
            max((m.cache.min_tokens for m in members if m.cache.min_tokens is not None), default=None),
            min((m.cache.ttl_s for m in members if m.cache.ttl_s is not None), default=None),
        ),
        deployments=tuple(deployment for member in members for deployment in member.deployments),
        longest_answer_tokens=_largest(member.longest_answer_tokens for member in members),
        longest_prompt_tokens=_largest(member.longest_prompt_tokens for member in members),
        unasked_tokens=min(filter(None, (member.unasked_tokens for member in members)), default=None),
        default_max_tokens=min(filter(None, (member.default_max_tokens for member in members)), default=None),
    )


def _largest(limits: Iterable[int | None]) -> int | None:
    """The largest of the deployments' limits; None if one of them is unknown."""
    known = list(limits)
    return None if None in known else max(filter(None, known))


def _levels(model: Model, entries: Sequence[ModelEntry]) -> tuple[Model, ...]:
    """The model at each effort that all its deployments have, with the lowest of the stated priors."""
    found = []
    for level in EFFORTS:
        if all(level in entry.info.efforts for entry in entries):
            stated = [prior for entry in entries if (prior := entry.info.efforts[level]) is not None]
            prior = min(stated, default=quality_prior(model.quality_prior, level))
            found.append(replace(model, effort=level, quality_prior=prior))
    return tuple(found)


def _mixed_modes(groups: Mapping[str, list[Model]]) -> list[str]:
    return [
        f'model_list: "{name}": expected one mode for all its deployments, got '
        + " and ".join(sorted({member.mode for member in members}))
        for name, members in groups.items()
        if len({member.mode for member in members}) > 1
    ]


def _digest(models: Iterable[Model], aliases: Mapping[str, str]) -> str:
    """SHA-256 over everything that affects routing and billing; keys, hosts and secrets are left out."""
    rows = [
        (
            model.name, model.mode, repr(model.prices), model.max_input_tokens, model.max_output_tokens,
            sorted(model.possible_capabilities), sorted(model.capabilities), model.quality_prior,
            model.longest_answer_tokens, model.longest_prompt_tokens, model.unasked_tokens, model.default_max_tokens,
            [
                (
                    d.deployment_id, d.litellm_model, d.weight, d.order, repr(d.prices),
                    sorted((key, str(price)) for key, price in d.tool_prices_usd.items()),
                )
                for d in model.deployments
            ],
            [(level.effort, level.quality_prior) for level in model.efforts],
        )
        for model in models
    ]  # fmt: skip
    return hashlib.sha256(json.dumps([rows, sorted(aliases.items())]).encode()).hexdigest()
