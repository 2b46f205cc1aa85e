"""Reading of bodies by the schema, with one line for what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from gateway.errors import InvalidRequest
from gateway.schema.fields import CHAT_FIELDS, VENDOR_FIELDS, ChatBody, ChatParams
from gateway.schema.shapes import Message

# The identifying field of an object, reported when the value is not an object.
_IDENTIFIED_BY = (
    (re.compile(r"tools\[\d+\]"), "type"),
    (re.compile(r"tools\[\d+\]\.(function|custom)|functions\[\d+\]"), "name"),
    (re.compile(r"response_format|messages\[\d+\]\.content\[\d+\]"), "type"),
)
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_NO_OBJECT = re.compile(r"Expected `[a-z |]*object[a-z |]*`, got")
_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")
# Lists of plain values, reported without the index.
_WHOLE = re.compile(r"^(stop|modalities|logit_bias|transforms|guided_choice|bad_words|stop_token_ids)\b.*")


def read_body(fields: Mapping[str, Any]) -> ChatBody:
    """Read a body by the schema. Raises InvalidRequest with the parameter's name."""
    body: ChatBody = _read(fields, ChatBody)
    return body


def check_body(fields: Mapping[str, Any], kind: type) -> None:
    """Check an object of another dialect by its schema. Raises InvalidRequest."""
    _read(fields, kind)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages rebuilt with only the schema's fields. Raises InvalidRequest."""
    made: list[dict[str, Any]] = _read(messages, list[Message], "messages")
    return made


def read_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in the schema, rebuilt. Raises InvalidRequest."""
    known = [name for name in params if name in CHAT_FIELDS or name in VENDOR_FIELDS]
    read = given(_read({name: params[name] for name in known}, ChatParams), known)
    return read | ({"n": params["n"]} if isinstance(params.get("n"), int) else {})


def read_default(name: str, value: Any) -> Any:
    """An operator's value for a parameter, in the schema's types. Raises InvalidRequest for another type.

    Numbers may be texts. Parameters that the schema does not have are the provider's business.
    """
    if name not in CHAT_FIELDS and name not in VENDOR_FIELDS:
        return value
    if name == "reasoning_effort" and isinstance(value, dict):
        _read({name: value.get("effort")}, ChatParams, lax=True)  # LiteLLM takes it with a summary beside
        return value
    return getattr(_read({name: value}, ChatParams, lax=True), name)


def given(read: ChatParams, names: Iterable[str]) -> dict[str, Any]:
    """The parameters of `names` that are not null."""
    return {name: value for name in names if (value := getattr(read, name)) is not None}


def left_out(body: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Paths, without indexes, of fields in `body` that are missing in `kept`."""
    if body == kept:  # the common case, and much cheaper than a walk
        return
    if isinstance(kept, dict):
        if len(kept) != len(body):
            yield from (f"{path}.{name}" for name in body if name not in kept)
        for name, value in kept.items():
            yield from left_out(body[name], value, f"{path}.{name}")
    elif isinstance(kept, list):
        for before, after in zip(body, kept, strict=True):
            yield from left_out(before, after, f"{path}[]")


def _read(value: Any, kind: Any, where: str = "", *, lax: bool = False) -> Any:
    try:
        return msgspec.convert(value, kind, strict=not lax)
    except msgspec.ValidationError as error:
        raise _refused(str(error), kind, where) from None


def _refused(message: str, kind: Any, where: str) -> InvalidRequest:
    """A validation error as one line: the parameter's path and its expected type."""
    found, missing = _PATH.search(message), _MISSING.match(message)
    path = _WHOLE.sub(r"\1", found[1] if found else "")
    named = missing[1] if missing else ""
    if not missing and _NO_OBJECT.match(message):
        named = next((name for pattern, name in _IDENTIFIED_BY if pattern.fullmatch(where + path)), "")
    if named:
        path = f"{path}.{named}" if path else named
    param = where + path if not where or path.startswith("[") else f"{where}.{path}"
    return InvalidRequest(f"{param}: expected {_expected(_type_at(_described(kind), path))}", param=param)


@cache
def _described(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _type_at(kind: inspect.Type, path: str) -> inspect.Type:
    """The schema's type at `path`."""
    for name, index in _STEP.findall(path):
        options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        for option in options:
            if name and isinstance(option, inspect.StructType | inspect.TypedDictType):
                known = {item.encode_name: item.type for item in option.fields}
                if name in known:
                    kind = known[name]
                    break
            if index and isinstance(option, inspect.ListType):
                kind = option.item_type
                break
            if index and isinstance(option, inspect.DictType):
                kind = option.value_type
                break
    return kind


def _expected(kind: inspect.Type) -> str:
    """A description of a type."""
    if isinstance(kind, inspect.UnionType):
        options = [option for option in kind.types if not isinstance(option, inspect.NoneType)]
        if any(isinstance(option, inspect.FloatType) for option in options):
            options = [option for option in options if not isinstance(option, inspect.IntType)]
        return " or ".join(_expected(option) for option in options)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        noun = "an integer" if isinstance(kind, inspect.IntType) else "a number"
        return noun if kind.ge is None else f"{noun} from {kind.ge} to {kind.le}"
    if isinstance(kind, inspect.StrType):
        return "a string" if kind.max_length is None else f"a string of 1 to {kind.max_length} characters"
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(str(value) for value in kind.values)
    if isinstance(kind, inspect.ListType):
        least = "at least one, " if kind.min_length else ""
        items = _plural(kind.item_type)
        if kind.max_length is None:
            return f"a list of {items}" if items else "a list"
        return f"a list of {least}at most {kind.max_length} {items}".rstrip()
    if isinstance(kind, inspect.DictType) and _plural(kind.value_type):
        return f"an object of {_plural(kind.value_type)}"
    return "true or false" if isinstance(kind, inspect.BoolType) else "an object"


def _plural(kind: inspect.Type) -> str:
    """A description of plain values in a list or an object; empty for others."""
    found = re.fullmatch(r"an? (string|integer|number)((?:(?! or ).)*)", _expected(kind))
    return "" if found is None else f"{found[1]}s{found[2]}"
