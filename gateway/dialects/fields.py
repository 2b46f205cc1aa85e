"""Typed access to the fields of a JSON body, with errors that name the field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from gateway.errors import InvalidRequest

T = TypeVar("T")
_WORDS: Mapping[type, str] = {
    str: "a string", dict: "an object", list: "a list", bool: "true or false", int: "an integer", float: "a number",
}  # fmt: skip


def read(fields: Mapping[str, Any], name: str, kind: type[T], where: str = "") -> T | None:
    """Field `name` of type `kind`; None if absent or null. Raises InvalidRequest."""
    value = fields.get(name)
    if value is None or type(value) is kind:
        return value
    return checked(value, kind, f"{where}{name}")


def need(fields: Mapping[str, Any], name: str, kind: type[T], where: str = "") -> T:
    """The required field `name` of type `kind`. Raises InvalidRequest."""
    value = fields.get(name)
    if type(value) is kind:  # what almost every field has; no message is made for it
        return value
    return checked(value, kind, f"{where}{name}")


def checked(value: object, kind: type[T], where: str) -> T:
    """The value, if it has type `kind`. An integer counts as a number, a boolean as neither."""
    if type(value) is kind:
        return value
    wanted: Any = int | float if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise InvalidRequest(f"{where}: expected {_WORDS[kind]}", param=where)
    return value  # type: ignore[no-any-return]


def objects(value: object, where: str) -> list[dict[str, Any]]:
    """The value as a list of objects, empty for None. Raises InvalidRequest."""
    if value is None:
        return []
    items = checked(value, list, where)
    if {*map(type, items)} <= {dict}:
        return items
    return [checked(item, dict, f"{where}[{index}]") for index, item in enumerate(items)]


def read_each(items: Iterable[Mapping[str, Any]], where: str, read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """Every item of the list `where` as `read` makes it, whose errors get the item's path."""
    made = []
    for index, item in enumerate(items):
        try:
            made.append(read(item))
        except InvalidRequest as error:
            raise within(f"{where}[{index}]", error) from None
    return made


def within(where: str, error: InvalidRequest) -> InvalidRequest:
    """The error of a value inside `where`, under its path from there.

    Paths are made for errors alone: bodies have thousands of values, and the time of a path each was measurable.
    """
    inner = error.param or ""
    param = f"{where}.{inner}" if inner and not inner.startswith("[") else where + inner
    return InvalidRequest(f"{param}: {error.message.removeprefix(f'{inner}: ')}", param=param)


def refused(where: str, why: str) -> InvalidRequest:
    """The error for a valid value that is not supported."""
    return InvalidRequest(f"{where}: {why}", param=where)


def refuse_sounds(fields: Mapping[str, Any]) -> None:
    """Refuse what asks for more than text in a dialect of text. Raises InvalidRequest."""
    for name in ("modalities", "audio"):
        if fields.get(name) and fields[name] != ["text"]:
            raise refused(name, "only text is served here; send this request to /v1/chat/completions")


def copied(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The present fields of `names` under their new names."""
    return {new: fields[old] for old, new in names.items() if fields.get(old) is not None}


def kind_of_item(item: Mapping[str, Any]) -> Any:
    """The type of a Responses item; one without is a message."""
    kind = item.get("type")
    return "message" if kind is None else kind


def names_of(schema: type) -> frozenset[str]:
    """The names of a schema's fields."""
    return frozenset(schema.__annotations__)


def unknown(fields: Mapping[str, Any], known: frozenset[str], where: str) -> set[str]:
    """Paths of the fields that are neither known nor null."""
    if fields.keys() <= known:  # almost always
        return set()
    return {f"{where}{name}" for name in fields.keys() - known if fields[name] is not None}
