"""The length of inline videos: the longest that a file states, unknown where it cannot be read."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.video_length import MOST_CHARACTERS, seconds_of

HOUR = Path(__file__).with_name("hour_of_two_stills.mp4")
"""Two frames of 64 by 64 pixels, an hour apart, in 987 bytes; FFmpeg wrote it."""


def box(kind: bytes, *content: bytes) -> bytes:
    whole = b"".join(content)
    return struct.pack(">I4s", 8 + len(whole), kind) + whole


def head(kind: bytes, scale: int, ticks: int) -> bytes:
    return box(kind, struct.pack(">IIIII", 0, 0, 0, scale, ticks), b"\0" * 80)


def long_head(kind: bytes, scale: int, ticks: int) -> bytes:
    return box(kind, b"\1\0\0\0", struct.pack(">QQIQ", 0, 0, scale, ticks), b"\0" * 80)


def table(kind: bytes, form: str, *entries: tuple[int, ...], version: int = 0) -> bytes:
    return box(
        kind, struct.pack(">B3xI", version, len(entries)), *(struct.pack(f">{form}", *entry) for entry in entries)
    )


def nested(inner: bytes, times: int) -> bytes:
    for _ in range(times):
        inner = box(b"stbl", inner)
    return inner


def film(
    *,
    first: bytes = box(b"ftyp", b"isom\0\0\0\0"),
    mvhd: bytes = head(b"mvhd", 1_000, 2_000),
    tkhd_ticks: int = 2_000,
    mdhd: bytes = head(b"mdhd", 90, 180),
    samples: tuple[bytes, ...] = (table(b"stts", "II", (20, 9)),),
    edits: tuple[bytes, ...] = (),
    more: tuple[bytes, ...] = (),
    behind: bytes = b"",
) -> str:
    """A film of two seconds, but for what is said otherwise."""
    tkhd = box(b"tkhd", struct.pack(">IIIIII", 0, 0, 0, 1, 0, tkhd_ticks), b"\0" * 60)
    stbl = box(b"minf", box(b"vmhd"), box(b"stbl", box(b"stsd", b"x"), *samples))
    track = box(b"trak", tkhd, *(box(b"edts", edit) for edit in edits), box(b"mdia", mdhd, stbl))
    return inline(first + box(b"mdat", b"x" * 50) + box(b"moov", mvhd, track, *more) + behind)


def inline(data: bytes, kind: str = "video/mp4;base64") -> str:
    return f"data:{kind},{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ({}, 2),
        ({"mvhd": head(b"mvhd", 1_000, 3_600_001)}, 3_601),
        ({"mvhd": long_head(b"mvhd", 1_000, 3_600_000)}, 3_600),
        ({"tkhd_ticks": 3_600_000}, 3_600),
        ({"mdhd": head(b"mdhd", 90, 90 * 3_600)}, 3_600),
        ({"mdhd": long_head(b"mdhd", 90, 90 * 3_600)}, 3_600),
        ({"samples": (table(b"stts", "II", (1, 90), (1, 90 * 3_599)),)}, 3_600),
        ({"samples": (table(b"stts", "II", (1, 90)), table(b"ctts", "II", (1, 0), (1, 90 * 3_599)))}, 3_600),
        ({"samples": (table(b"stts", "II", (20, 9)), table(b"ctts", "Ii", (20, -9), version=1))}, 2),
        ({"edits": (table(b"elst", "IiI", (2_000, 0, 1), (3_598_000, 0, 0)),)}, 3_600),
        ({"edits": (table(b"elst", "QqI", (3_600_000, 0, 1), version=1),)}, 3_600),
        ({"behind": box(b"free", b"x")}, 2),
    ],
)  # fmt: skip
def test_a_film_is_as_long_as_the_longest_that_it_says(said: dict[str, Any], seconds: int) -> None:
    assert seconds_of(film(**said)) == seconds


def test_the_length_of_a_real_film_is_read() -> None:
    assert seconds_of(inline(HOUR.read_bytes())) == 3_601


@pytest.mark.parametrize(
    "said",
    [
        {"more": (box(b"mvex"),)}, {"behind": box(b"moof")}, {"more": (box(b"cmov", b"x"),)},
        {"more": (head(b"mvhd", 1_000, 1_000),)}, {"mvhd": b""}, {"mdhd": b""}, {"first": b""},
        {"mvhd": head(b"mvhd", 0, 1)}, {"mdhd": head(b"mdhd", 0, 1)},
        {"samples": (box(b"stts", struct.pack(">II", 0, 9)),)},
        {"behind": struct.pack(">I4s", 7, b"free")}, {"behind": struct.pack(">I4s", 90, b"free")}, {"behind": b"\0"},
        {"behind": box(b"moov", head(b"mvhd", 1_000, 1_000))}, {"more": (box(b"free") * 3_000,)},
        {"samples": (nested(box(b"x"), 9),)}, {"mvhd": box(b"mvhd", b"\0" * 19)}, {"edits": (box(b"elst"),)},
        {"more": (box(b"free", b"x" * 2**20),)},
    ],
)  # fmt: skip
def test_another_kind_of_film_or_a_broken_one_has_no_known_length(said: dict[str, Any]) -> None:
    assert seconds_of(film(**said)) is None


@pytest.mark.parametrize(
    "address",
    [
        film()[:-9], film() + "\n", film().replace(";base64", ""), "data:video/mp4;base64",
        inline(b"\x1a\x45\xdf\xa3 webm"), inline(b""), film().replace("A", "é", 1),
        "data:video/mp4;base64," + "A" * MOST_CHARACTERS,
    ],
)  # fmt: skip
def test_what_is_no_whole_film_in_base64_has_no_known_length(address: str) -> None:
    assert seconds_of(address) is None


FILM = HOUR.read_bytes()
HOLDERS = frozenset({b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"})
READ = [b"mvhd", b"tkhd", b"elst", b"mdhd", b"stts"]


def rewritten(data: bytes, change: Callable[[bytes, bytes], bytes]) -> bytes:
    """The boxes with the content that `change` makes of a type and its content; all sizes fit."""
    made, at = b"", 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + size]
        made += box(kind, change(kind, rewritten(content, change) if kind in HOLDERS else content))
        at += size
    return made


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("length", [0, 1, 4, 7])
def test_a_box_is_not_read_beyond_its_end(kind: bytes, length: int) -> None:
    """What lies behind it is another box, or the end of the file."""
    cut = rewritten(FILM, lambda found, content: content[:length] if found == kind else content)
    assert seconds_of(inline(cut)) is None
    inner = (
        b"" if kind == b"mvhd" else head(b"mvhd", 1, 2) + box(b"trak", head(b"mdhd", 1, 2), box(kind, b"\0" * length))
    )
    last = box(b"ftyp", b"isom") + box(b"moov", inner or box(kind, b"\0" * length))
    assert seconds_of(inline(last)) is None


@given(
    st.dictionaries(st.sampled_from([*READ, *sorted(HOLDERS)]), st.integers(0, 40)),
    st.lists(st.tuples(st.integers(0, len(FILM)), st.integers(0, 12), st.binary(max_size=12)), max_size=4),
)
def test_no_damage_to_a_film_is_an_error(kept_bytes: dict[bytes, int], edits: list[tuple[int, int, bytes]]) -> None:
    """Boxes that are cut short, and then any bytes replaced, added or taken away."""
    damaged = rewritten(FILM, lambda kind, content: content[: kept_bytes.get(kind, len(content))])
    for at, taken, put in edits:
        damaged = damaged[:at] + put + damaged[at + taken :]
    seconds = seconds_of(inline(damaged))
    assert seconds is None or seconds >= 0
