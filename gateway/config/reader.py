"""Key-by-key reader of the configuration that collects every problem with its key path.

A problem is one line with the place, what was expected and what was found:
`gateway.yaml: model_list[2].model_info.input_cost_per_token: expected a number, got "free"`.
Secret values are never shown. Any scalar may be `os.environ/NAME`, the value of a variable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any, TypeVar

from gateway.config.values import Secret, as_decimal, as_text, describe_range, kind_of, parse_duration_s, shown
from gateway.money import MoneyError, nanousd_from_usd
from gateway.wording import did_you_mean

ENVIRONMENT_PREFIX = "os.environ/"

MAX_JSON_NODES = 10_000
MAX_JSON_DEPTH = 32
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

T = TypeVar("T")


class SettingsError(ValueError):
    """An invalid configuration; `problems` has one line per error, in the order of the file."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class AssumedEnvironment(dict[str, str]):
    """An environment whose unset variables count as set, for checks without secrets.

    With `paths`, only those that the file names at key paths that match it.
    """

    def __init__(self, values: Mapping[str, str] | None = None, paths: re.Pattern[str] | None = None) -> None:
        super().__init__(values or {})
        self.paths = paths

    def assumes(self, where: str) -> bool:
        """True if an unset variable counts as set at this place of a file."""
        return self.paths is None or self.paths.match(where.partition(": ")[2]) is not None


class _NotJson(ValueError):
    """A value that is too large or not representable in JSON."""


@dataclass(slots=True)
class Findings:
    """Problems and warnings collected while a configuration is read."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    assumed: set[str] = field(default_factory=set)
    """Places of variables that are assumed to be set, and to what is expected there."""

    def problem(self, where: str, text: str) -> None:
        """Add an error that prevents the start."""
        if where in self.assumed:
            return
        self.problems.append(_one_line(f"{where}: {text}"))

    def warn(self, where: str, text: str) -> None:
        """Add a warning."""
        self.warnings.append(_one_line(f"{where}: {text}"))


@dataclass(frozen=True, slots=True)
class Located:
    """A raw YAML value and its place, such as `gateway.yaml: model_list[2]`."""

    where: str
    raw: Any


class Section:
    """One mapping of the file, read key by key; `finish` reports unread keys."""

    def __init__(
        self, where: str, entries: Mapping[str, Located], findings: Findings, environ: Mapping[str, str]
    ) -> None:
        self.where = where
        self.entries = dict(entries)
        self.findings = findings
        self.environ = environ
        self._read: set[str] = set()

    # Scalars. Each returns the default when the key is absent, null or invalid (with a problem).

    def text(
        self, key: str, default: str | None = None, *, pattern: str | None = None, expected: str = ""
    ) -> str | None:
        """A string, by default any non-blank one; numbers and dates count as strings."""
        value = as_text(self._scalar(key))
        if value is None:
            return default
        if not isinstance(value, str) or not value.strip():
            return self._invalid(key, expected or "a string", value, default)
        if pattern is not None and re.fullmatch(pattern, value) is None:
            return self._invalid(key, expected, value, default)
        return value

    def secret(self, key: str) -> Secret | None:
        """A string that no message repeats."""
        value = as_text(self._scalar(key))
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            found = "an empty one; leave the key out" if isinstance(value, str) else kind_of(value)
            self.problem(key, f"expected a string, got {found}")
            return None
        return Secret(value)

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        """A boolean; also "true" and "false" as strings."""
        value = self._scalar(key)
        if value is None:
            return default
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        return value if isinstance(value, bool) else self._invalid(key, "true or false", value, default)

    def decimal(self, key: str, *, minimum: Decimal | int = 0, maximum: Decimal | int | None = None) -> Decimal | None:
        """An exact number within the bounds, or None."""
        value = self._scalar(key)
        if value is None:
            return None
        number = as_decimal(value)
        if number is None:
            return self._invalid(key, "a number", value, None)
        if number < minimum or (maximum is not None and number > maximum):
            return self._invalid(key, f"a number {describe_range(minimum, maximum)}", value, None)
        return number

    def number(self, key: str, default: float, *, minimum: float = 0.0, maximum: float | None = None) -> float:
        """A number within the bounds."""
        value = self.decimal(
            key, minimum=Decimal(str(minimum)), maximum=None if maximum is None else Decimal(str(maximum))
        )
        return default if value is None else float(value)

    def integer(self, key: str, default: int, *, minimum: int = 0, maximum: int | None = None) -> int:
        """A whole number within the bounds."""
        value = self.optional_integer(key, minimum=minimum, maximum=maximum)
        return default if value is None else value

    def optional_integer(self, key: str, *, minimum: int = 0, maximum: int | None = None) -> int | None:
        """A whole number within the bounds, or None."""
        value = self._scalar(key)
        if value is None:
            return None
        number = as_decimal(value)
        if number is None or number != number.to_integral_value():
            return self._invalid(key, "a whole number", value, None)
        if number < minimum or (maximum is not None and number > maximum):
            return self._invalid(key, f"a whole number {describe_range(minimum, maximum)}", value, None)
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
            return self._invalid(key, 'a duration like "30m", "45s" or a number of seconds', value, default)
        if not minimum_s <= seconds <= maximum_s:
            return self._invalid(key, f"a duration from {minimum_s:g} to {maximum_s:g} seconds", value, default)
        return seconds

    def instant_ms(self, key: str) -> int | None:
        """A date (midnight UTC) or a time with its offset, in Unix milliseconds; or None."""
        value = as_text(self._scalar(key))
        if value is None:
            return None
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return self._invalid(key, 'a date like "2027-01-31" or a time like "2027-01-31T12:00:00Z"', value, None)
        if moment.tzinfo is None:
            if moment != datetime.combine(moment.date(), time.min):
                return self._invalid(key, 'a time with its offset, like "2027-01-31T12:00:00Z"', value, None)
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1000)

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
            return self._invalid(key, "an amount of USD, at least 0", value, default_nanousd)

    def choice(self, key: str, default: str, choices: Iterable[str]) -> str:
        """One of a set of words."""
        value = self._scalar(key)
        # YAML 1.1 reads a bare `off` and `on` as false and true.
        word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        if word is None:
            return default
        listed = tuple(choices)
        if word in listed:
            return str(word)
        hint = did_you_mean(str(word), listed)
        self.problem(key, f"expected one of {', '.join(listed)}, got {shown(value)}{hint and f'; {hint}'}")
        return default

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; a single string counts as a list of one."""
        found = self._take(key)
        if found is None:
            return ()
        items = found.raw if isinstance(found.raw, list) else [found.raw]
        resolved = [self._resolved(Located(f"{found.where}[{i}]", item)) for i, item in enumerate(items)]
        good = tuple(item for item in resolved if isinstance(item, str) and item)
        for index, item in enumerate(resolved):
            if item is not None and item not in good:
                self._invalid(f"{key}[{index}]" if isinstance(found.raw, list) else key, "a string", item, None)
        return good

    def json(self, key: str) -> Any:
        """A JSON value with `os.environ/NAME` resolved at every depth; None if absent or invalid."""
        found = self._take(key)
        if found is None:
            return None
        nodes = [0]
        try:
            return self._json(found, nodes, depth=0)
        except _NotJson:
            return self._invalid(key, f"JSON of at most {MAX_JSON_NODES} values", found.raw, None)

    def _json(self, located: Located, nodes: list[int], depth: int) -> Any:
        # YAML anchors can expand a small file without bound.
        nodes[0] += 1
        if depth > MAX_JSON_DEPTH or nodes[0] > MAX_JSON_NODES:
            raise _NotJson
        raw = located.raw
        if isinstance(raw, dict):
            if not all(isinstance(name, str) or type(name) is int for name in raw):  # the tokens of a logit_bias
                raise _NotJson
            return {
                str(name): self._json(located_at(value, f"{located.where}.{name}"), nodes, depth + 1)
                for name, value in raw.items()
            }
        if isinstance(raw, list):
            return [
                self._json(located_at(item, f"{located.where}[{i}]"), nodes, depth + 1) for i, item in enumerate(raw)
            ]
        value = self._resolved(located)
        if isinstance(value, float) and not math.isfinite(value):
            raise _NotJson
        if value is None or isinstance(value, str | int | float):
            return value
        raise _NotJson

    # Structure.

    def section(self, key: str) -> Section:
        """A nested mapping; empty when absent or not a mapping."""
        found = self._take(key)
        return Section(self.path(key), {}, self.findings, self.environ) if found is None else self.nested(found)

    def nested(self, located: Located) -> Section:
        """The mapping at `located` as a section; empty, with a problem, for any other value."""
        if not isinstance(located.raw, dict):
            self.findings.problem(located.where, f"expected a mapping, got {shown(located.raw)}")
            return Section(located.where, {}, self.findings, self.environ)
        return Section(located.where, entries_of(located, self.findings), self.findings, self.environ)

    def items(self, key: str) -> list[Located]:
        """The elements of a list, each with its path."""
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
        """All keys, read or not."""
        return iter(tuple(self.entries))

    def has(self, key: str) -> bool:
        """True when `key` has a value other than null."""
        return key in self.entries and self.entries[key].raw is not None

    def path(self, key: str) -> str:
        """The path of `key`, present or not."""
        located = self.entries.get(key)
        if located is not None:
            return located.where
        return f"{self.where}.{key}" if ": " in self.where else f"{self.where}: {key}"

    def problem(self, key: str, text: str) -> None:
        """Add an error at a key."""
        self.findings.problem(self.path(key), text)

    def warn(self, key: str, text: str) -> None:
        """Add a warning at a key."""
        self.findings.warn(self.path(key), text)

    def require(self, key: str, expected: str) -> None:
        """Report a key without a value."""
        if not self.has(key):
            self.problem(key, f"expected {expected}, got nothing")

    def finish(
        self,
        ignored: Iterable[str] = (),
        *,
        protections: Mapping[str, str] | None = None,
        known: Iterable[str] = (),
        others_allowed: bool = False,
        cutoff: float = 0.85,
    ) -> None:
        """Report the unread keys.

        A key of `protections` that is on is a problem: ignoring it would cost money or safety. An `ignored` key is a
        warning. Any other key is a problem naming the nearest known key; with `others_allowed` only when it resembles a
        key that is read here, otherwise a warning.
        """
        foreign = frozenset(ignored)
        for key, located in self.entries.items():
            if key in self._read:
                continue
            if protections is not None and key in protections and located.raw:
                self.findings.problem(
                    located.where,
                    f"cannot be ignored: {protections[key]}; remove the key to run without it",
                )
            elif key in foreign or (protections is not None and key in protections):
                self.findings.warn(located.where, "a LiteLLM key that is not supported here; it is ignored")
            elif others_allowed:
                if not self.refuse_misspelt(key, cutoff=cutoff):
                    self.findings.warn(located.where, "unknown key; it is ignored")
            elif not self.refuse_misspelt(key, foreign | set(known), cutoff=0.7):
                self.findings.problem(located.where, "unknown key")

    def refuse_misspelt(self, key: str, further: Iterable[str] = (), cutoff: float = 0.85) -> bool:
        """Report a problem and return True when `key` resembles a key read here or one of `further`."""
        hint = did_you_mean(key, {*self._read, *further}, cutoff)
        if hint:
            self.problem(key, f"unknown key, {hint}")
        return bool(hint)

    def read(self) -> frozenset[str]:
        """The keys asked for so far, present or not."""
        return frozenset(self._read)

    def unread(self) -> list[str]:
        """The keys not read so far."""
        return [key for key in self.entries if key not in self._read]

    def ignore(self, key: str, why: str) -> None:
        """Mark a key as read and warn that it has no effect."""
        self._read.add(key)
        self.warn(key, why)

    def skip(self, key: str) -> None:
        """Mark a key as read without a message."""
        self._read.add(key)

    def ignore_all(self) -> None:
        """Accept all keys unread: a mapping that only describes something to people."""
        self._read |= self.entries.keys()

    def _take(self, key: str) -> Located | None:
        self._read.add(key)
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
        if not value and isinstance(self.environ, AssumedEnvironment) and self.environ.assumes(located.where):
            self.findings.assumed.add(located.where)
            return None
        if not value:
            self.findings.problem(located.where, f"environment variable {name} is not set")
            return None
        return value

    def _invalid(self, key: str, expected: str, value: Any, default: T) -> T:
        self.problem(key, f"expected {expected}, got {shown(value)}")
        return default


def entries_of(located: Located, findings: Findings) -> dict[str, Located]:
    """The entries of a mapping with their paths; reports keys that are not strings."""
    entries: dict[str, Located] = {}
    separator = "." if ": " in located.where else ": "
    for key, value in located.raw.items():
        if not isinstance(key, str):
            findings.problem(located.where, f"expected keys that are strings, got {shown(key)}")
            continue
        entries[key] = value if isinstance(value, Located) else Located(f"{located.where}{separator}{key}", value)
    return entries


def located_at(value: Any, where: str) -> Located:
    """A value inside another, with its own place if it came from an included file."""
    return value if isinstance(value, Located) else Located(where, value)


def _one_line(text: str) -> str:
    """The text with terminal codes and line breaks escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
