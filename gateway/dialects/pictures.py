"""Generated pictures and sounds in dialects with few places for them, or none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_INLINE = re.compile(r"data:image/([A-Za-z0-9.+-]{1,32});base64,")
_OWN_ID = "igsr_"
"""Items with it were made here: any model can be shown their pictures, not OpenAI's servers alone. It ends at its only
"_", since the store finds an item by `KIND_SUFFIX_INDEX`."""
_HERE = "This API has no place for it"


@dataclass(frozen=True, slots=True)
class GeneratedPicture:
    """A generated picture: inline data in base64 with its format, or an address."""

    data: str = ""
    format: str = ""
    url: str = ""

    def note(self) -> str:
        """The text for a client that cannot be given the picture."""
        if self.url:
            return f"![picture]({self.url})"
        size = f"image/{self.format}, {len(self.data) * 3 // 4:,} bytes" if self.data else "in an unknown form"
        return f"[A picture ({size}) was generated. {_HERE}: ask at /v1/responses or /v1/chat/completions.]"


def picture_of(given: object) -> GeneratedPicture:
    """A picture as chat answers have it: an address or inline data, alone or under its name."""
    if isinstance(given, Mapping):
        if isinstance(given.get("b64_json"), str):
            return GeneratedPicture(given["b64_json"], "png")
        return picture_of(given.get("image_url") or given.get("url"))
    if not isinstance(given, str):
        return GeneratedPicture()
    inline = _INLINE.match(given)
    if inline is not None:
        return GeneratedPicture(given[inline.end() :], inline[1].lower())
    return GeneratedPicture(url=given) if given.startswith(("https://", "http://")) else GeneratedPicture()


def sound_note(data_characters: int) -> str:
    """The text for a client that is given the words of a spoken answer without its sound."""
    return f"[A sound ({data_characters * 3 // 4:,} bytes) was generated. {_HERE}: ask at /v1/chat/completions.]"


def picture_id(suffix: str, index: int) -> str:
    """The id of the item of a picture that was made here."""
    return f"{_OWN_ID}{suffix}_{index}"


def picture_item(item_id: str, data: str, kind: str) -> dict[str, Any]:
    """The finished item of a picture in OpenAI's Responses."""
    return {
        "id": item_id,
        "type": "image_generation_call",
        "status": "completed",
        "result": data,
        "output_format": kind,
    }


def own_picture(item: Mapping[str, Any]) -> str | None:
    """The picture, as inline data, of an item that was made here and comes back."""
    data, kind = item.get("result"), item.get("output_format")
    if not (_is_own(item) and isinstance(data, str) and data):
        return None
    return f"data:image/{kind if isinstance(kind, str) else 'png'};base64,{data}"


def names_own_picture(item: Mapping[str, Any]) -> bool:
    """True for an item that was made here and comes back as its id alone, as in OpenAI's guides."""
    return _is_own(item) and not item.get("result")


def _is_own(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "image_generation_call" and str(item.get("id")).startswith(_OWN_ID)
