"""JSON schemas in forms that dialects with less of JSON Schema have.

What a schema allows stays: other words for the same values, and for a union of objects the object of all their fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gateway.unchecked import at, listed, mapping

_UNIONS = ("allOf", "anyOf", "oneOf")
_SAYS_WHAT = frozenset({"type", "properties", "items", "prefixItems", "enum", "const", "$ref", "not", *_UNIONS})
_MAX_REFERENCES = 8
_NULL = {"type": "null"}
_ANYTHING: tuple[Mapping[str, Any], ...] = (
    *({"type": name} for name in ("string", "number", "boolean", "object")),
    {"type": "array", "items": {"type": "string"}},
)
_TYPES: Mapping[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}


def arguments_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments as one object, without a union or reference."""
    made = _as_object(schema, schema, _MAX_REFERENCES)
    return made if made.keys() & {"type", "$ref", *_UNIONS} else {"type": "object"} | made


def plain_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema in the words of Google's dialect: no truth values, tuples, `allOf` or `const`."""
    return _plain(schema) or dict(_NULL)


def _as_object(schema: Mapping[str, Any], root: Mapping[str, Any], references: int) -> dict[str, Any]:
    made = dict(schema)
    path = made.get("$ref")
    if isinstance(path, str) and references > 0 and isinstance(found := _at(root, path), Mapping):
        del made["$ref"]
        made = _as_object(found, root, references - 1) | made
    kinds = made.get("type")
    if isinstance(kinds, list) and "object" in kinds:
        made["type"] = "object"
    for union in _UNIONS:
        branches = made.get(union)
        if isinstance(branches, list) and branches and all(isinstance(branch, Mapping) for branch in branches):
            objects = [_as_object(branch, root, references) for branch in branches]
            if all(_is_object(each) for each in objects):
                del made[union]
                made = _merged(made, objects, union)
    return made


def _is_object(schema: Mapping[str, Any]) -> bool:
    return schema.get("type", "object") == "object" and not schema.keys() & {"$ref", *_UNIONS}


def _at(root: Mapping[str, Any], path: str) -> object:
    return at(root if path.startswith("#") else None, *path.split("/")[1:])


def _merged(made: dict[str, Any], branches: Sequence[Mapping[str, Any]], union: str) -> dict[str, Any]:
    """The object with the fields of all branches; required are those of each, or of any with `allOf`."""
    fields: dict[str, list[Any]] = {name: [value] for name, value in mapping(made.get("properties")).items()}
    for branch in branches:
        for name, value in mapping(branch.get("properties")).items():
            known = fields.setdefault(name, [])
            if value not in known:
                known.append(value)
    within = "allOf" if union == "allOf" else "anyOf"
    properties = {name: values[0] if len(values) == 1 else {within: values} for name, values in fields.items()}
    needed = [list(branch.get("required") or ()) for branch in branches]
    common = [name for name in needed[0] if all(name in names for names in needed)]
    wanted = [name for names in needed for name in names] if union == "allOf" else common
    required = list(dict.fromkeys([*(made.get("required") or ()), *wanted]))
    rest = {name: value for branch in branches for name, value in branch.items() if union == "allOf"}
    return rest | made | {"type": "object", "properties": properties} | ({"required": required} if required else {})


def _plain(schema: object) -> dict[str, Any] | None:
    """The schema in plain forms; None for one that nothing fits."""
    if schema is False:
        return None
    if not isinstance(schema, Mapping):
        return {"anyOf": list(_ANYTHING)}
    made = dict(schema)
    if isinstance(branches := made.pop("allOf", None), list):
        for branch in branches:
            made = _merged_any(made, branch)
    for name in ("$defs", "definitions", "properties"):
        if isinstance(inner := made.get(name), Mapping):
            made[name] = {key: value for key, each in inner.items() if (value := _plain(each)) is not None}
    if isinstance(required := made.get("required"), list) and isinstance(made.get("properties"), Mapping):
        made["required"] = [name for name in required if name in made["properties"]]
    _take_items(made)
    options = [each for name in ("anyOf", "oneOf") for each in listed(made.pop(name, None))]
    if options:
        options = [plain for each in options if (plain := _plain(each)) is not None]
        made |= _NULL if all(each == _NULL for each in options) else {"anyOf": options}
    if "type" not in made and ("const" in made or "enum" in made):
        values = [made.pop("const")] if "const" in made else listed(made.get("enum"))
        made.pop("enum", None)
        kinds = list(_kinds(values))
        made |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return made if made.keys() & _SAYS_WHAT else made | {"anyOf": list(_ANYTHING)}


def _merged_any(made: dict[str, Any], branch: object) -> dict[str, Any]:
    if not isinstance(branch, Mapping):
        return made
    if _is_object(branch) and "properties" in branch:
        return _merged(made, [branch], "allOf")
    return {**branch, **made}


def _take_items(made: dict[str, Any]) -> None:
    """Write a tuple as a list of its kinds of items, and the items of a list as a schema."""
    first = made.get("prefixItems") or made.get("items")
    if isinstance(first, list):
        more = made.get("items") if made.pop("prefixItems", None) else made.pop("additionalItems", None)
        if more is False:
            made.setdefault("maxItems", len(first))
        kinds = [each for each in (*first, *([more] if isinstance(more, Mapping) else [])) if each is not False]
        unique = [each for place, each in enumerate(kinds) if each not in kinds[:place]]
        made["items"] = unique[0] if len(unique) == 1 else {"anyOf": unique}
    if "items" in made:
        items = _plain(made.pop("items"))
        made |= {"maxItems": 0, "items": {"type": "string"}} if items is None else {"items": items}


def _kinds(values: Iterable[object]) -> Iterator[dict[str, Any]]:
    """The types of given values; Google lists only texts by value."""
    values = list(values)
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        yield {"type": "string", "enum": texts}
    names = [_TYPES.get(type(value), "object") for value in values if value is not None and not isinstance(value, str)]
    yield from ({"type": name} for name in dict.fromkeys(names))
    if None in values:
        yield dict(_NULL)
