"""One mapping of the configuration, read key by key; every problem is collected with its key path, one line each.

A problem says where, what was expected and what was found:
`gateway.yaml: model_list[2].model_info.input_cost_per_token: expected a number, got "free"`.
Values of secrets are never repeated. `os.environ/NAME` stands for a variable wherever a scalar may stand.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from gateway.money import MoneyError, nanousd_from_usd

ENVIRONMENT_PREFIX = "os.environ/"

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SECONDS: Mapping[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
MAX_JSON_NODES = 10_000
MAX_JSON_DEPTH = 32
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

T = TypeVar("T")


class SettingsError(ValueError):
    """A configuration that must not start. `problems` has one line per defect, in the order of the file."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that must not be shown: `reveal()` is the one way to it, `str` and `repr` hide it."""

    _value: str = field(repr=False)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__


class AssumedEnvironment(dict[str, str]):
    """An environment in which a variable that is not set counts as set, to a value that nobody needs to know."""


class _NoJson(ValueError):
    """A value that JSON cannot say, or that is too large."""


@dataclass(slots=True)
class Findings:
    """What reading a configuration brings to light. Filled while one file is read, then dropped."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, where: str, text: str) -> None:
        self.problems.append(_one_line(f"{where}: {text}"))

    def warn(self, where: str, text: str) -> None:
        self.warnings.append(_one_line(f"{where}: {text}"))


@dataclass(frozen=True, slots=True)
class Located:
    """A raw YAML value and the place it came from: `gateway.yaml: model_list[2]`."""

    where: str
    raw: Any


class Section:
    """One mapping of the file, read key by key; `finish` judges the keys that nobody asked for."""

    def __init__(
        self, where: str, entries: Mapping[str, Located], findings: Findings, environ: Mapping[str, str]
    ) -> None:
        self.where = where
        self.entries = dict(entries)
        self.findings = findings
        self.environ = environ
        self._asked: set[str] = set()

    # Scalars. Each returns the default when the key is absent, null or wrong (the problem is noted).

    def text(
        self, key: str, default: str | None = None, *, pattern: str | None = None, expected: str = ""
    ) -> str | None:
        value = _as_text(self._scalar(key))
        if value is None:
            return default
        if not isinstance(value, str) or not value.strip():
            return self._wrong(key, expected or "a text", value, default)
        if pattern is not None and re.fullmatch(pattern, value) is None:
            return self._wrong(key, expected, value, default)
        return value

    def secret(self, key: str) -> Secret | None:
        value = _as_text(self._scalar(key))
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            self.findings.problem(self.path(key), f"expected a text, got {_kind(value)}")
            return None
        return Secret(value)

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        value = self._scalar(key)
        if value is None:
            return default
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        return value if isinstance(value, bool) else self._wrong(key, "true or false", value, default)

    def decimal(
        self, key: str, *, minimum: Decimal | int = 0, maximum: Decimal | int | None = None, expected: str = "a number"
    ) -> Decimal | None:
        value = self._scalar(key)
        if value is None:
            return None
        number = _as_decimal(value)
        if number is None:
            return self._wrong(key, expected, value, None)
        if number < minimum or (maximum is not None and number > maximum):
            return self._wrong(key, f"{expected} {_range(minimum, maximum)}", value, None)
        return number

    def number(self, key: str, default: float, *, minimum: float = 0.0, maximum: float | None = None) -> float:
        value = self.decimal(
            key, minimum=Decimal(str(minimum)), maximum=None if maximum is None else Decimal(str(maximum))
        )
        return default if value is None else float(value)

    def integer(self, key: str, default: int, *, minimum: int = 0, maximum: int | None = None) -> int:
        value = self.optional_integer(key, minimum=minimum, maximum=maximum)
        return default if value is None else value

    def optional_integer(self, key: str, *, minimum: int = 0, maximum: int | None = None) -> int | None:
        value = self._scalar(key)
        if value is None:
            return None
        number = _as_decimal(value)
        if number is None or number != number.to_integral_value():
            return self._wrong(key, "a whole number", value, None)
        if number < minimum or (maximum is not None and number > maximum):
            return self._wrong(key, f"a whole number {_range(minimum, maximum)}", value, None)
        return int(number)

    def duration_s(
        self, key: str, default: float | None, *, minimum_s: float = 0.0, maximum_s: float = 366 * 86400.0
    ) -> float | None:
        """Seconds as a number, or "500ms", "30s", "30m", "2h", "7d", "1w"."""
        value = self._scalar(key)
        if value is None:
            return default
        seconds = parse_duration_s(value)
        if seconds is None:
            return self._wrong(key, 'a duration like "30m", "45s" or a number of seconds', value, default)
        if not minimum_s <= seconds <= maximum_s:
            return self._wrong(key, f"a duration from {minimum_s:g} to {maximum_s:g} seconds", value, default)
        return seconds

    def usd(self, key: str, default_nanousd: int) -> int:
        """Decimal dollars, returned as nano-USD."""
        value = self._scalar(key)
        if value is None:
            return default_nanousd
        try:
            if not isinstance(value, str | int | float | Decimal):
                raise MoneyError("no number")
            return nanousd_from_usd(value)
        except MoneyError:
            return self._wrong(key, "an amount of USD, at least 0", value, default_nanousd)

    def choice(self, key: str, default: str, choices: Iterable[str]) -> str:
        value = self._scalar(key)
        # YAML 1.1 reads a bare `off` and `on` as false and true.
        word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        if word is None:
            return default
        listed = tuple(choices)
        return str(word) if word in listed else self._wrong(key, "one of " + ", ".join(listed), value, default)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; a single text counts as a list of one."""
        found = self._take(key)
        if found is None:
            return ()
        items = found.raw if isinstance(found.raw, list) else [found.raw]
        resolved = [self._resolved(Located(f"{found.where}[{i}]", item)) for i, item in enumerate(items)]
        good = tuple(item for item in resolved if isinstance(item, str) and item)
        if len(good) < sum(item is not None for item in resolved):
            self._wrong(key, "a list of texts", found.raw, None)
        return good

    def json(self, key: str) -> Any:
        """Any JSON value, with `os.environ/NAME` resolved at every depth; None when it is absent or no JSON."""
        found = self._take(key)
        if found is None:
            return None
        nodes = [0]
        try:
            return self._json(found, nodes, depth=0)
        except _NoJson:
            return self._wrong(key, f"JSON of at most {MAX_JSON_NODES} values", found.raw, None)

    def _json(self, located: Located, nodes: list[int], depth: int) -> Any:
        # Anchors of YAML can make a small file an endless value.
        nodes[0] += 1
        if depth > MAX_JSON_DEPTH or nodes[0] > MAX_JSON_NODES:
            raise _NoJson
        raw = located.raw
        if isinstance(raw, dict):
            if not all(isinstance(name, str) for name in raw):
                raise _NoJson
            return {
                name: self._json(_located(value, f"{located.where}.{name}"), nodes, depth + 1)
                for name, value in raw.items()
            }
        if isinstance(raw, list):
            return [self._json(_located(item, f"{located.where}[{i}]"), nodes, depth + 1) for i, item in enumerate(raw)]
        value = self._resolved(located)
        if isinstance(value, float) and not math.isfinite(value):
            raise _NoJson
        if value is None or isinstance(value, str | int | float):
            return value
        raise _NoJson

    # Structure.

    def section(self, key: str) -> Section:
        """A nested mapping; empty when absent or when something else stands there."""
        found = self._take(key)
        return Section(self.path(key), {}, self.findings, self.environ) if found is None else self.nested(found)

    def nested(self, located: Located) -> Section:
        """The mapping at `located`, as a section; an empty one, and a problem, when it is none."""
        if not isinstance(located.raw, dict):
            self.findings.problem(located.where, f"expected a mapping, got {shown(located.raw)}")
            return Section(located.where, {}, self.findings, self.environ)
        return Section(located.where, entries_of(located, self.findings), self.findings, self.environ)

    def items(self, key: str) -> list[Located]:
        """The elements of a list, each with its own path."""
        found = self._take(key)
        if found is None:
            return []
        if not isinstance(found.raw, list):
            self.findings.problem(found.where, f"expected a list, got {shown(found.raw)}")
            return []
        return [
            item if isinstance(item, Located) else Located(f"{found.where}[{i}]", item)
            for i, item in enumerate(found.raw)
        ]

    def names(self) -> Iterator[str]:
        """The keys that stand here, read or not."""
        return iter(tuple(self.entries))

    def has(self, key: str) -> bool:
        """Whether something other than null stands under `key`."""
        return key in self.entries and self.entries[key].raw is not None

    def path(self, key: str) -> str:
        """Where `key` stands, or would stand."""
        located = self.entries.get(key)
        if located is not None:
            return located.where
        return f"{self.where}.{key}" if ": " in self.where else f"{self.where}: {key}"

    def finish(
        self,
        ignored: Iterable[str] = (),
        *,
        protections: Mapping[str, str] | None = None,
        known: Iterable[str] = (),
        others_allowed: bool = False,
    ) -> None:
        """Judge the keys that nobody asked for.

        A key of `protections` that is on is a problem: ignoring it would cost money or safety. An `ignored` one is a
        warning. Any other is refused with the nearest known name; with `others_allowed` only when it looks like a
        misspelt key of ours, else it is a warning too.
        """
        foreign = frozenset(ignored)
        for key, located in self.entries.items():
            if key in self._asked:
                continue
            if protections is not None and key in protections and located.raw:
                self.findings.problem(
                    located.where,
                    f"cannot be ignored: {protections[key]}; remove the key to go on without it",
                )
            elif key in foreign or (protections is not None and key in protections):
                self.findings.warn(located.where, "a LiteLLM key that is not supported here; it is ignored")
            elif others_allowed:
                if not self.refuse_misspelt(key):
                    self.findings.warn(located.where, "not known here; it is ignored")
            elif not self.refuse_misspelt(key, foreign | set(known), cutoff=0.7):
                self.findings.problem(located.where, "unknown key")

    def refuse_misspelt(self, key: str, further: Iterable[str] = (), cutoff: float = 0.85) -> bool:
        """Note a problem when `key` is nearly a key that is read here, or one of `further`; say whether it was."""
        known = sorted({*self._asked, *further})
        near = difflib.get_close_matches(key, known, n=1, cutoff=cutoff)
        if near:
            self.findings.problem(self.path(key), f'unknown key, did you mean "{near[0]}"?')
        return bool(near)

    def unread(self) -> list[str]:
        """The keys that nobody asked for so far."""
        return [key for key in self.entries if key not in self._asked]

    def ignore(self, key: str, why: str) -> None:
        """Name a key that is understood and has no effect."""
        self._asked.add(key)
        self.findings.warn(self.path(key), why)

    def skip(self, key: str) -> None:
        """Leave a key unread that has been judged."""
        self._asked.add(key)

    def ignore_all(self) -> None:
        """Leave the rest of this mapping unread, without a word: descriptions for people."""
        self._asked |= self.entries.keys()

    def _take(self, key: str) -> Located | None:
        self._asked.add(key)
        found = self.entries.get(key)
        return None if found is None or found.raw is None else found

    def _scalar(self, key: str) -> Any:
        found = self._take(key)
        return None if found is None else self._resolved(found)

    def _resolved(self, located: Located) -> Any:
        raw = located.raw
        if not isinstance(raw, str) or not raw.startswith(ENVIRONMENT_PREFIX):
            return raw
        name = raw.removeprefix(ENVIRONMENT_PREFIX)
        if _VARIABLE_NAME.fullmatch(name) is None:
            self.findings.problem(located.where, f"expected {ENVIRONMENT_PREFIX}NAME, got {shown(raw)}")
            return None
        value = self.environ.get(name)
        if not value and isinstance(self.environ, AssumedEnvironment):
            return None
        if not value:
            self.findings.problem(located.where, f"environment variable {name} is not set")
            return None
        return value

    def _wrong(self, key: str, expected: str, value: Any, default: T) -> T:
        self.findings.problem(self.path(key), f"expected {expected}, got {shown(value)}")
        return default


def parse_duration_s(value: object) -> float | None:
    """Seconds out of a number or "500ms", "30s", "30m", "2h", "7d", "1w"; None when it is neither."""
    number = _as_decimal(value)
    if number is not None:
        return float(number) if number >= 0 else None
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    return None if match is None else float(match[1]) * _SECONDS[match[2]]


def entries_of(located: Located, findings: Findings) -> dict[str, Located]:
    entries: dict[str, Located] = {}
    separator = "." if ": " in located.where else ": "
    for key, value in located.raw.items():
        if not isinstance(key, str):
            findings.problem(located.where, f"expected keys that are texts, got {shown(key)}")
            continue
        entries[key] = value if isinstance(value, Located) else Located(f"{located.where}{separator}{key}", value)
    return entries


def _located(value: Any, where: str) -> Located:
    return value if isinstance(value, Located) else Located(where, value)


def _as_text(value: Any) -> Any:
    """YAML reads an unquoted `2024-02-01` as a date and `42` as a number; where a text is meant they are texts."""
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _one_line(text: str) -> str:
    """Keys and file names are shown as they are, but no terminal code or line break of theirs gets through."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _as_decimal(value: object) -> Decimal | None:
    # A YAML 1.1 reader takes 1e-7 (no dot) for a text, so texts that are numbers count as numbers.
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    text = str(value).strip()
    if len(text) > 64:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _range(minimum: Decimal | float, maximum: Decimal | float | None) -> str:
    low = _plainly(minimum)
    return f"of at least {low}" if maximum is None else f"from {low} to {_plainly(maximum)}"


def _plainly(number: Decimal | float) -> str:
    whole = Decimal(str(number)).normalize()
    return f"{whole:f}"


def _kind(value: object) -> str:
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (dict, "a mapping"),
        (list, "a list"),
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def shown(value: object) -> str:
    if isinstance(value, dict | list):
        return _kind(value)
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
