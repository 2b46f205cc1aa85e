"""Text vectors of models: wordllama's static token embeddings, and ONNX sentence encoders.

Both are extras, read only files of this machine, and give vectors of TEXT_DIM numbers: wider ones are projected,
narrower ones padded. A space's version has the digest of its files: other files are another space.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from policy.arrays import F32
from policy.text import TEXT_DIM, TextSpace, both_ends

MOST_TOKENS = 256
"""Tokens that an encoder reads, where its tokenizer.json states no truncation."""
_STATIC_FILES = ("weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json")
_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class TextUnavailable(Exception):
    """A text space that cannot be opened.

    `part` is "", "model" or "tokenizer"; the message says what was expected.
    """

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


def static_space() -> TextSpace:
    """Mean of wordllama's token vectors (MIT), from the files of its wheel.

    The package itself is never imported. Raises TextUnavailable without the extra.
    """
    found = importlib.util.find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        raise TextUnavailable("", 'expected the package wordllama, found none: pip install "seqroute[static-text]"')
    vectors, tokenizer = (Path(found.submodule_search_locations[0]) / name for name in _STATIC_FILES)
    try:
        with safe_open(vectors, "np") as file:
            of_token = file.get_tensor("embedding.weight")
        version = f"static-1-{_digest(vectors, tokenizer)}"
    except Exception as error:  # Rust errors of no common class
        raise TextUnavailable("", f"expected wordllama 0.4, whose files are others: {_short(error)}") from error
    tokens = _tokenizer(tokenizer, None)
    project = projection(of_token.shape[1])

    def embed(text: str) -> F32:
        ids = tokens(text)
        return project(of_token[ids].mean(axis=0, dtype=np.float32)) if ids else np.zeros(TEXT_DIM, np.float32)

    return TextSpace(version, embed)


def onnx_space(model: Path, tokenizer: Path) -> TextSpace:
    """Sentence vectors of an ONNX encoder.

    Its first output is (1, T, D), of which the mean is taken, or (1, D). Raises TextUnavailable without the extra, for
    unreadable files, and for other inputs or outputs.
    """
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError as error:
        raise TextUnavailable("", 'expected onnxruntime, found none: pip install "seqroute[onnx-text]"') from error
    tokens = _tokenizer(tokenizer, MOST_TOKENS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise TextUnavailable("model", f"expected an ONNX model, got {_short(error)} at {model}") from error
    inputs = [each.name for each in session.get_inputs()]
    if "input_ids" not in inputs or not set(inputs) <= _INPUTS:
        raise TextUnavailable("model", f"expected inputs among {', '.join(sorted(_INPUTS))}, got {', '.join(inputs)}")
    encode = partial(_encoded, session, inputs)
    try:
        ids = tokens("a probe")
        shape = encode(ids).shape
    except Exception as error:
        raise TextUnavailable("model", f"expected an encoder of this tokenizer, got {_short(error)}") from error
    if len(shape) not in (2, 3) or shape[0] != 1 or (len(shape) == 3 and shape[1] != len(ids)):
        raise TextUnavailable("model", f"expected a first output of (1, D) or (1, tokens, D), got {shape}")
    project = projection(shape[-1])

    def embed(text: str) -> F32:
        ids = tokens(text)
        return project(encode(ids).reshape(-1, shape[-1]).mean(axis=0)) if ids else np.zeros(TEXT_DIM, np.float32)

    return TextSpace(f"onnx-1-{_digest(model, tokenizer)}", embed)


def projection(width: int) -> Callable[[F32], F32]:
    """Map of vectors (width,) to TEXT_DIM and length 1.

    Padded, or on random orthonormal directions that are the same everywhere.
    """
    directions = None
    if width > TEXT_DIM:
        random = np.random.default_rng(width).standard_normal((width, TEXT_DIM))
        directions = np.linalg.qr(random)[0].astype(np.float32)

    def project(vector: F32) -> F32:
        made = np.pad(vector, (0, TEXT_DIM - width)) if directions is None else vector @ directions
        length = float(np.sqrt(made @ made))
        if not 0.0 < length < np.inf:
            return np.zeros(TEXT_DIM, np.float32)
        return np.asarray(made / length, np.float32)

    return project


def _tokenizer(path: Path, most_tokens: int | None) -> Callable[[str], list[int]]:
    try:
        made = import_module("tokenizers").Tokenizer.from_file(str(path))
    except Exception as error:  # the class Exception itself
        raise TextUnavailable("tokenizer", f"expected a tokenizer.json, got {_short(error)} at {path}") from error
    made.no_padding()
    if most_tokens is None:
        made.no_truncation()
    elif made.truncation is None:
        made.enable_truncation(most_tokens)

    def tokens(text: str) -> list[int]:
        # Half characters (lone surrogates) are no text for it.
        read = both_ends(text).encode("utf-8", "replace").decode() if text else ""
        if not read.strip():
            return []
        ids: list[int] = made.encode(read, add_special_tokens=most_tokens is not None).ids
        return ids

    return tokens


def _encoded(session: Any, inputs: list[str], ids: list[int]) -> F32:
    given = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
    fed = {name: np.array([given[name]], np.int64) for name in inputs}
    return np.asarray(session.run(None, fed)[0], np.float32)


def _digest(*files: Path) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:12]


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]
