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
_Box = tuple[bytes, memoryview]
"""A box's type and content."""


def seconds_of(url: str) -> int | None:
    """The seconds of a video in a `data:` address, rounded up; None: not known."""
    head, comma, _ = url[:_LONGEST_HEAD].partition(",")
    if not comma or not head.endswith(";base64") or len(url) > MOST_CHARACTERS:
        return None
    try:
        return _File(binascii.a2b_base64(url[len(head) + 1 :], strict_mode=True)).seconds()
    except (ArithmeticError, LookupError, ValueError, struct.error):  # what a broken file can cause
        return None


class _File:
    """A file's boxes; an error of numbers, indexes, values or `struct` for one that cannot be read."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._left = _MOST_BOXES

    def seconds(self) -> int | None:
        """The longest time of all that the file says of itself; None: it is of another kind."""
        top = list(self._boxes(self._data))
        films = [content for kind, content in top if kind == b"moov"]
        fragmented = any(kind in _ELSEWHERE for kind, _ in top)
        if not top or top[0][0] != b"ftyp" or len(films) != 1 or fragmented:
            return None
        if len(films[0]) > _MOST_INDEX_BYTES:
            return None
        within = list(self._boxes(films[0]))
        heads = [_header(content) for kind, content in within if kind == b"mvhd"]
        if len(heads) != 1 or any(kind in _ELSEWHERE for kind, _ in within):
            return None
        scale, ticks = heads[0]
        lengths = [-(-ticks // scale)]
        for kind, content in within:
            if kind == b"trak":
                lengths += self._of_track(content, scale)
        return max(lengths)

    def _of_track(self, track: memoryview, film_scale: int) -> Iterator[int]:
        leaves = list(self._leaves(track, 0))
        for kind, content in leaves:
            if kind == b"tkhd":
                yield -(-_number(content, 20, 28) // film_scale)
            elif kind == b"elst":
                edits = _table(content, ">Q12x" if content[0] else ">I8x")
                yield -(-sum(edit[0] for edit in edits) // film_scale)
        heads = [_header(content) for kind, content in leaves if kind == b"mdhd"]
        scale = min(scale for scale, _ in heads)
        shown, latest = 0, 0
        for kind, content in leaves:
            if kind == b"stts":
                shown += sum(count * ticks for count, ticks in _table(content, ">II"))
            elif kind == b"ctts":  # samples may be shown later than they are decoded
                shifts = _table(content, ">Ii" if content[0] else ">II")
                latest = max(latest, max((shift for _, shift in shifts), default=0))
        yield -(-max(shown + latest, *(ticks for _, ticks in heads)) // scale)

    def _boxes(self, holder: memoryview) -> Iterator[_Box]:
        start, end = 0, len(holder)
        while start < end:
            self._left -= 1
            size, kind = struct.unpack_from(">I4s", holder, start)
            head = 8
            if size == 1:
                (size,), head = struct.unpack_from(">Q", holder, start + 8), 16
            stop = end if size == 0 else start + size
            if self._left < 0 or not start + head <= stop <= end:
                raise ValueError("a box does not end where it can")
            yield kind, holder[start + head : stop]
            start = stop

    def _leaves(self, holder: memoryview, depth: int) -> Iterator[_Box]:
        if depth > _DEEPEST:
            raise ValueError("boxes lie too deep in each other")
        for kind, content in self._boxes(holder):
            if kind in _HOLDERS:
                yield from self._leaves(content, depth + 1)
            else:
                yield kind, content


def _header(content: memoryview) -> tuple[int, int]:
    """Ticks a second, and ticks, of a film or of a track's samples."""
    scale = struct.unpack_from(">I", content, 20 if content[0] else 12)[0]
    return scale, _number(content, 16, 24)


def _number(content: memoryview, at: int, at_in_long_form: int) -> int:
    form, offset = (">Q", at_in_long_form) if content[0] else (">I", at)
    number: int = struct.unpack_from(form, content, offset)[0]
    return number


def _table(content: memoryview, form: str) -> Iterator[tuple[int, ...]]:
    """The entries of a table behind their number."""
    (count,) = struct.unpack_from(">I", content, 4)
    stop = 8 + count * struct.calcsize(form)
    if stop > len(content):
        raise ValueError("a table is longer than its box")
    return struct.iter_unpack(form, content[8:stop])
