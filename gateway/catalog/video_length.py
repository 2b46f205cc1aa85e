"""Seconds of an inline video, by the boxes of its MP4 or QuickTime file.

Providers bill a video by its seconds, and the bytes of a file say nothing of those: one still frame may be shown for an
hour. A caller writes the file, so that its length here is the longest of all that its boxes say of it, each of which a
provider may go by: of the film, of each track, of its edits, and of its samples.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator

MOST_CHARACTERS = 8 * 2**20
"""A longer file is not decoded: decoding 8 MiB takes some 30 ms of the event loop."""
_MOST_INDEX_BYTES = 2**20
_MOST_BOXES = 2_000
_DEEPEST = 6
_LONGEST_HEAD = 200
_HOLDERS = frozenset({b"edts", b"mdia", b"minf", b"stbl"})
_ELSEWHERE = frozenset({b"cmov", b"moof", b"mvex"})
"""Boxes of files whose samples are listed in another way: in fragments, or compressed."""
_Place = tuple[bytes, int, int]
"""A box's type, and where its content begins and ends."""


def seconds_of(url: str) -> int | None:
    """The seconds of a video in a `data:` address, rounded up; None: not known."""
    head, comma, _ = url[:_LONGEST_HEAD].partition(",")
    if not comma or not head.endswith(";base64") or len(url) > MOST_CHARACTERS:
        return None
    try:
        return _File(binascii.a2b_base64(url[len(head) + 1 :], strict_mode=True)).seconds()
    except (ValueError, struct.error, ZeroDivisionError):
        return None


class _File:
    """A file's boxes; ValueError or struct.error for one that cannot be read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = _MOST_BOXES

    def seconds(self) -> int | None:
        """The longest time of all that the file says of itself; None: it is of another kind."""
        top = list(self._boxes(0, len(self._data)))
        films = [(start, end) for kind, start, end in top if kind == b"moov"]
        fragmented = any(kind in _ELSEWHERE for kind, _, _ in top)
        if not top or top[0][0] != b"ftyp" or len(films) != 1 or fragmented:
            return None
        start, end = films[0]
        if end - start > _MOST_INDEX_BYTES:
            return None
        within = list(self._boxes(start, end))
        heads = [self._header(place) for place in within if place[0] == b"mvhd"]
        if len(heads) != 1 or any(kind in _ELSEWHERE for kind, _, _ in within):
            return None
        scale, ticks = heads[0]
        lengths = [-(-ticks // scale)]
        for kind, begins, ends in within:
            if kind == b"trak":
                lengths += self._of_track(begins, ends, scale)
        return max(lengths)

    def _of_track(self, start: int, end: int, film_scale: int) -> Iterator[int]:
        leaves = list(self._leaves(start, end, 0))
        for place in leaves:
            if place[0] == b"tkhd":
                yield -(-self._number(place, 20, 28) // film_scale)
            elif place[0] == b"elst":
                edits = self._table(place, ">Q12x" if self._data[place[1]] else ">I8x")
                yield -(-sum(edit[0] for edit in edits) // film_scale)
        heads = [self._header(place) for place in leaves if place[0] == b"mdhd"]
        scale = min(scale for scale, _ in heads)
        shown, latest = 0, 0
        for place in leaves:
            if place[0] == b"stts":
                shown += sum(count * ticks for count, ticks in self._table(place, ">II"))
            elif place[0] == b"ctts":  # samples may be shown later than they are decoded
                shifts = self._table(place, ">Ii" if self._data[place[1]] else ">II")
                latest = max(latest, max((shift for _, shift in shifts), default=0))
        yield -(-max(shown + latest, *(ticks for _, ticks in heads)) // scale)

    def _boxes(self, start: int, end: int) -> Iterator[_Place]:
        while start < end:
            self._left -= 1
            size, kind = struct.unpack_from(">I4s", self._data, start)
            head = 8
            if size == 1:
                (size,), head = struct.unpack_from(">Q", self._data, start + 8), 16
            stop = end if size == 0 else start + size
            if self._left < 0 or not start + head <= stop <= end:
                raise ValueError("a box does not end where it can")
            yield kind, start + head, stop
            start = stop

    def _leaves(self, start: int, end: int, depth: int) -> Iterator[_Place]:
        if depth > _DEEPEST:
            raise ValueError("boxes lie too deep in each other")
        for place in self._boxes(start, end):
            if place[0] in _HOLDERS:
                yield from self._leaves(place[1], place[2], depth + 1)
            else:
                yield place

    def _header(self, place: _Place) -> tuple[int, int]:
        """Ticks a second, and ticks, of a film or of a track's samples."""
        scale = struct.unpack_from(">I", self._data, place[1] + (20 if self._data[place[1]] else 12))[0]
        return scale, self._number(place, 16, 24)

    def _number(self, place: _Place, at: int, at_in_long_form: int) -> int:
        long = self._data[place[1]]
        form, offset = (">Q", at_in_long_form) if long else (">I", at)
        number: int = struct.unpack_from(form, self._data, place[1] + offset)[0]
        return number

    def _table(self, place: _Place, form: str) -> Iterator[tuple[int, ...]]:
        """The entries of a table behind their number."""
        _, start, end = place
        (count,) = struct.unpack_from(">I", self._data, start + 4)
        stop = start + 8 + count * struct.calcsize(form)
        if stop > end:
            raise ValueError("a table is longer than its box")
        return struct.iter_unpack(form, self._data[start + 8 : stop])
