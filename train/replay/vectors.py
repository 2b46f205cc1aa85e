"""Prompts as observation vectors, in one space for every policy.

The text part of an observation has TEXT_DIM entries. Its content depends on the source:

    embedding         its principal directions on the training half, and the hashed name of the group
    text              hashed n-grams (policy/text.py), likewise
    neither           the hashed name of the group only

The principal directions are rotated by a fixed matrix: code that standardises columns afterwards
(train/fit/reward_model.py does) would otherwise scale the weakest direction up to the strongest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy.arrays import F32, I64
from policy.text import STAT_NAMES, STATS_DIM, TEXT_DIM, embed, stats
from train.replay.dataset import Graded

CONTENT_DIM = 192
GROUP_DIM = TEXT_DIM - CONTENT_DIM
GROUP_WEIGHT = 0.5
CHARS_PER_WORD = 5.5


@dataclass(frozen=True)
class Vectors:
    """Vectors of all prompts and their `kind`.

    `text` (P, TEXT_DIM), `stats` (P, STATS_DIM), and `content` (P, E) for nearest neighbours.
    """

    text: F32
    stats: F32
    content: F32 | None
    kind: str


def vectors(graded: Graded, training: I64) -> Vectors:
    """Compute the prompts' vectors without outcomes; the projection fits the training half."""
    content, kind = _content(graded)
    group_names = np.stack([embed(name) for name in graded.groups])
    if content is None:
        text = group_names[graded.group]
    else:
        folded = group_names.reshape(len(graded.groups), TEXT_DIM // GROUP_DIM, GROUP_DIM).sum(axis=1)
        text = np.column_stack([project_directions(content, training), GROUP_WEIGHT * folded[graded.group]])
    return Vectors(text.astype(np.float32), _stats(graded), content, kind)


def project_directions(content: F32, training: I64, width: int = CONTENT_DIM) -> F32:
    """Rotated principal directions of the training rows, of mean length 1: (P, E) -> (P, width)."""
    seen = content[training].astype(np.float64)
    centre = seen.mean(axis=0)
    _, sizes, directions = np.linalg.svd(seen - centre, full_matrices=False)
    directions = directions[: min(width, int((sizes > 1e-6 * sizes.max(initial=1e-9)).sum()))]
    rotation, _ = np.linalg.qr(np.random.default_rng(width).standard_normal((width, width)))
    turned = (content - centre) @ directions.T @ rotation[: len(directions)]
    length = float(np.linalg.norm(turned[training], axis=1).mean()) or 1.0
    return np.asarray(turned / length, np.float32)


def _content(graded: Graded) -> tuple[F32 | None, str]:
    if graded.embedding is not None:
        lengths = np.linalg.norm(graded.embedding, axis=1, keepdims=True)
        return np.asarray(graded.embedding / np.where(lengths > 0, lengths, 1.0), np.float32), "embedding"
    if any(graded.text):
        return np.stack([embed(text) for text in graded.text]), "text"
    return None, "lengths and group"


def _stats(graded: Graded) -> F32:
    """Surface features; only those of the length where the text is withheld."""
    found = np.zeros((graded.prompts, STATS_DIM), np.float32)
    chars, words = STAT_NAMES.index("log_chars"), STAT_NAMES.index("log_words")
    for i, text in enumerate(graded.text):
        if text:
            found[i] = stats(text)
        else:
            found[i, chars] = np.log1p(graded.n_chars[i]) / 12.0
            found[i, words] = np.log1p(graded.n_chars[i] / CHARS_PER_WORD) / 10.0
    return found
