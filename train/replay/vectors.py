"""Vectors of prompts, in one space for every policy, before they are answered.

`train.replay.live` computes them as the gateway does, `train.replay.richer` with what the gateway does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy.arrays import F32, F64, I64


@dataclass(frozen=True)
class Vectors:
    """Vectors of all prompts and their `kind`: the source of their content.

    `text` (P, TEXT_DIM), `stats` (P, STATS_DIM), and `content` (P, E) for nearest neighbours. `tokens` (P,) is the
    prompt's counted length, `group` (P,) its label, all 0 where policies are told none.
    """

    text: F32
    stats: F32
    content: F32 | None
    kind: str
    tokens: F64
    group: I64
    groups: int
    route: I64  # (P,) of the observation


def project_directions(content: F32, training: I64, width: int) -> F32:
    """Rotated principal directions of the training rows, of mean length 1: (P, E) -> (P, width).

    The rotation is fixed: code that standardises columns afterwards (train/fit/reward_model.py does) would otherwise
    scale the weakest direction up to the strongest.
    """
    seen = content[training].astype(np.float64)
    centre = seen.mean(axis=0)
    _, sizes, directions = np.linalg.svd(seen - centre, full_matrices=False)
    directions = directions[: min(width, int((sizes > 1e-6 * sizes.max(initial=1e-9)).sum()))]
    rotation, _ = np.linalg.qr(np.random.default_rng(width).standard_normal((width, width)))
    turned = (content - centre) @ directions.T @ rotation[: len(directions)]
    length = float(np.linalg.norm(turned[training], axis=1).mean()) or 1.0
    return np.asarray(turned / length, np.float32)


def unit_rows(embedding: F32) -> F32:
    """Embeddings of length 1 (0 where a prompt has none)."""
    lengths = np.linalg.norm(embedding, axis=1, keepdims=True)
    return np.asarray(embedding / np.where(lengths > 0, lengths, 1.0), np.float32)
