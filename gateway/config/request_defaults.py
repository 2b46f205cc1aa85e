"""Reads the request parameters that `litellm_params` sets for every request of a deployment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config import litellm_keys
from gateway.config.reader import Section
from gateway.config.values import shown
from gateway.errors import InvalidRequest
from gateway.schema.fields import INPUT_FIELDS, KNOWN_FIELDS, OWN_FIELDS
from gateway.schema.reader import left_out, read_default

LIMIT_KEYS = frozenset({"max_tokens", "max_completion_tokens"})
"""Names of an answer's limit, for which money is held."""
_NEVER_SENT = ("_", "health_check_")
"""Beginnings of LiteLLM's own names: its marks on a call, and how it probes a deployment."""
_FOREIGN_LIMITS = LIMIT_KEYS | {
    "max_output_tokens", "max_new_tokens", "max_tokens_to_sample", "max_gen_len", "maxOutputTokens", "maxTokens",
    "num_predict", "n_predict",
}  # fmt: skip
"""Names of the same limit in providers' own requests, at any depth of them."""
_SCHEMA_NAMES = (".properties", ".$defs")
"""Ends of the paths of objects whose names are those of a JSON schema's author."""


def read_request_defaults(section: Section, info: Section) -> Mapping[str, Any]:
    """The remaining `litellm_params`: request parameters, some of which only the provider knows."""
    defaults: dict[str, Any] = {}
    extra = section.json("extra_body")
    if extra is not None and not isinstance(extra, dict):
        section.problem("extra_body", f"expected a mapping, got {shown(extra)}")
    elif extra:
        _refuse_unheld(section, "extra_body", extra)
        defaults["extra_body"] = extra
    for key in sorted(LIMIT_KEYS):
        limit = section.optional_integer(key, minimum=1)
        if limit is not None:
            defaults[key] = limit
    known = {*litellm_keys.IGNORED["litellm_params"], *litellm_keys.PROTECTIONS["litellm_params"]}
    of_info = {*litellm_keys.IGNORED["model_info"], *litellm_keys.PROTECTIONS["model_info"], *info.read()}
    for key, kind in INPUT_FIELDS.items():
        value = section.optional_integer(key, minimum=1) if kind is int else section.text(key)
        if value is not None:
            defaults[key] = value
    for key in section.unread():
        if key in known:
            if key in litellm_keys.PRICED_PARAMETERS and litellm_keys.costs_nothing(key, section.entries[key].raw):
                section.ignore(key, "it changes nothing that is billed; it is ignored")
            continue
        if key not in litellm_keys.REQUEST_PARAMETERS and key not in KNOWN_FIELDS:
            if key in of_info or key.startswith(_NEVER_SENT):
                _refuse_or_ignore(section, key)
                continue
            if section.refuse_misspelt(key):
                section.skip(key)
                continue
            section.warn(key, "unknown parameter; it is sent to the provider unchanged")
        value = section.json(key)
        if key != "service_tier":
            _refuse_unheld(section, key, {key: value}, f".{key}")
        if key in OWN_FIELDS:
            section.warn(key, "every request sets its own; it is ignored")
            continue
        if value is not None:
            try:
                defaults[key] = read_default(key, value)
            except InvalidRequest as error:
                _report_type(section, key, value, error)
                continue
            for path in left_out(value, defaults[key]):
                where = section.path(key) + path
                section.findings.warn(where, "not sent: the parameter has no such field; extra_body may have any")
    return defaults


def _unheld_in(body: object, path: str = "") -> Iterator[tuple[str, str]]:
    """The paths of all fields of a provider's own request that would cost more than is held, each with the reason."""
    if isinstance(body, list):
        for place, each in enumerate(body):
            yield from _unheld_in(each, f"{path}[{place}]")
    elif isinstance(body, dict):
        for name, value in body.items():
            if path.endswith(_SCHEMA_NAMES):
                yield from _unheld_in(value, f"{path}.{name}")
            elif name in _FOREIGN_LIMITS:
                yield (
                    f"{path}.{name}",
                    "would exceed what is reserved for an answer: write litellm_params.max_tokens instead",
                )
            elif why := litellm_keys.unheld(name, value, nested=bool(path)):
                yield f"{path}.{name}", f"cannot be a default: {why}"
            else:
                yield from _unheld_in(value, f"{path}.{name}")


def _refuse_unheld(section: Section, key: str, body: Mapping[str, Any], above: str = "") -> None:
    """Report what could make a bill higher than its hold; `above` is the part of the paths that `key` stands for."""
    for path, why in sorted(_unheld_in(body)):
        section.findings.problem(section.path(key) + path.removeprefix(above), why)


def _report_type(section: Section, key: str, value: Any, error: InvalidRequest) -> None:
    """Report a request parameter of another type than the schema's, at its place within the value as it is written."""
    expected, place, got = str(error).partition(": expected ")[2], "", value
    for step in re.findall(r"\.[^.\[]+|\[[^\]]*\]", (error.param or key).removeprefix(key)):
        if step.startswith("."):
            if got is not None and not isinstance(got, dict):
                expected = f"an object whose {step[1:]} is {expected}"
                break
            got = None if got is None else got.get(step[1:])
        else:
            got = None  # one of several
        place += step
    alike = "a list" if isinstance(got, list) else "an object" if isinstance(got, dict) else None
    found = "" if got is None or (alike is not None and alike in expected) else f", got {shown(got)}"
    section.findings.problem(section.path(key) + place, f"expected {expected}{found}")


def _refuse_or_ignore(section: Section, key: str) -> None:
    """Report a key that describes the model and would be no parameter of a request."""
    if key in litellm_keys.PROTECTIONS["model_info"] and section.entries[key].raw:
        section.problem(key, "cannot be ignored: it belongs under model_info")
        section.skip(key)
    else:
        section.ignore(key, "not a parameter of a request: it belongs under model_info; it is ignored")
