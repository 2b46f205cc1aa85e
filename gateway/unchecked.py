"""Members of JSON that no schema has checked: a provider's answer, a client's free fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def at(value: object, *path: str) -> Any:
    """The value at a path of names, object in object; None where there is none."""
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def mapping(value: object) -> Mapping[str, Any]:
    """The value, if it is an object; else an empty one."""
    return value if isinstance(value, Mapping) else {}


def listed(value: object) -> list[Any]:
    """The value, if it is a list; else an empty one."""
    return value if isinstance(value, list) else []


def objects_in(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list; none for anything else."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
