"""A tiny ONNX encoder and its tokenizer.json, written without any library of ONNX's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

WORDS = ("[UNK]", "red", "blue", "green")
_INT64, _FLOAT = 7, 1


def write_tokenizer(path: Path) -> Path:
    """One token for each of WORDS, split at spaces."""
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "[UNK]"}
    made = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    path.write_text(
        json.dumps(
            made | {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
        )
    )
    return path


def write_encoder(path: Path, width: int, *, names: tuple[str, ...] = ("input_ids",), flat: bool = False) -> Path:
    """`Gather(vectors, input_ids)`: (1, T, width); `flat`: the ids themselves, an output of another shape."""
    vectors = np.random.default_rng(width).standard_normal((len(WORDS), width)).astype("<f4")
    table = b"".join(_number(1, size) for size in vectors.shape) + _number(2, _FLOAT) + _bytes(8, b"vectors")
    node = _bytes(1, b"vectors") + _bytes(1, b"input_ids") + _bytes(2, b"out") + _bytes(4, b"Gather")
    if flat:
        node = _bytes(1, b"input_ids") + _bytes(2, b"out") + _bytes(4, b"Flatten") + _bytes(5, _number(3, 2) + _axis())
    graph = _bytes(1, node) + _bytes(2, b"tiny") + _bytes(5, table + _bytes(9, vectors.tobytes()))
    graph += b"".join(_bytes(11, _value(name.encode(), _INT64, 2)) for name in names)
    graph += _bytes(12, _value(b"out", _INT64 if flat else _FLOAT, 2 if flat else 3))
    path.write_bytes(_number(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _number(2, 13)))
    return path


def _axis() -> bytes:
    return _bytes(1, b"axis") + _number(20, 2)


def _value(name: bytes, kind: int, axes: int) -> bytes:
    shape = b"".join(_bytes(1, _bytes(2, b"d%d" % i)) for i in range(axes))
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, kind) + _bytes(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
