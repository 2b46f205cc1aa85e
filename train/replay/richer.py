"""Inputs richer than the gateway's, to show what better ones would bring: `--inputs richer`.

Policies are told the prompt's embedding and the label of its group, and bills are predicted by a regression on both.
The only file of replay that makes features or forecasts of its own.

    embedding         its principal directions on the training half, and the hashed name of the group
    text              hashed n-grams (policy/text.py), likewise
    neither           the hashed name of the group only
    bills             ridge regression of log cost, times the quantiles of its out-of-fold residuals, wider in groups
                      that vary
"""

from __future__ import annotations

import numpy as np

from policy.arrays import F32, F64, I64, Bools
from policy.features import expected_cost_usd
from policy.mdp import COST_LEVELS
from policy.text import STAT_NAMES, STATS_DIM, TEXT_DIM, embed, stats
from train.replay.dataset import Graded
from train.replay.predict import GROUP_STRENGTH, Bills, design_matrix, folds_of_tasks, ridges
from train.replay.vectors import Vectors, project_directions, unit_rows

CONTENT_DIM = 192
GROUP_DIM = TEXT_DIM - CONTENT_DIM
GROUP_WEIGHT = 0.5
CHARS_PER_WORD = 5.5
PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
LEAST_OUTPUT_TOKENS = 16
TINY_USD = 1e-9


def richer_vectors(graded: Graded, training: I64) -> Vectors:
    """Compute the prompts' vectors without outcomes; the projection fits the training half."""
    content, kind = _content(graded)
    group_names = np.stack([embed(name) for name in graded.groups])
    if content is None:
        text = group_names[graded.group]
    else:
        folded = group_names.reshape(len(graded.groups), TEXT_DIM // GROUP_DIM, GROUP_DIM).sum(axis=1)
        directions = project_directions(content, training, CONTENT_DIM)
        text = np.column_stack([directions, GROUP_WEIGHT * folded[graded.group]])
    return Vectors(
        text=text.astype(np.float32),
        stats=_stats(graded),
        content=content,
        kind=kind,
        tokens=graded.n_tokens,
        group=graded.group,
        groups=len(graded.groups),
        route=np.zeros(graded.prompts, np.int64),
    )


def richer_bills(graded: Graded, seen: Vectors, training: I64, seed: int) -> Bills:
    """Predict every bill: out of fold on the training half, by all of it on the other."""
    learn = np.zeros(graded.prompts, np.bool_)
    learn[training] = True
    quantiles_usd = _cost_quantiles(graded, design_matrix(graded, seen, learn), learn, folds_of_tasks(graded, seed))
    floor = graded.n_tokens[:, None] * graded.usd_in_per_m + LEAST_OUTPUT_TOKENS * graded.usd_out_per_m
    mean_usd = np.asarray(expected_cost_usd(quantiles_usd), np.float64)
    read_usd = np.floor(graded.n_tokens)[:, None] * graded.usd_in_per_m * 1e-6
    return Bills(
        cost_quantiles_usd=quantiles_usd,
        # List prices may exceed a source's bills; an offered answer must not cost less than its reservation.
        least_usd=np.minimum(floor * 1e-6, quantiles_usd[..., 0]),
        output_tokens=np.maximum(mean_usd - read_usd, 0.0) / np.maximum(graded.usd_out_per_m * 1e-6, 1e-12),
    )


def _content(graded: Graded) -> tuple[F32 | None, str]:
    if graded.embedding is not None:
        return unit_rows(graded.embedding), "embedding"
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


def _cost_quantiles(graded: Graded, design: F64, learn: Bools, fold: I64) -> F64:
    """Predicted log cost plus residual quantiles, scaled by the group's spread, (P, M, L)."""
    logs = np.log(np.maximum(graded.cost_usd, TINY_USD))
    centre = logs[learn].mean(axis=0)
    targets = logs - centre
    tried = ridges(design, targets, learn, fold, PENALTIES)
    errors = [float(np.mean((found[learn] - targets[learn]) ** 2)) for found in tried]
    predicted = tried[int(np.argmin(errors))]
    residual = targets - predicted
    scale = _group_scale(graded.group, residual, learn, len(graded.groups))[graded.group]
    levels = np.quantile(residual[learn] / scale[learn], COST_LEVELS, axis=0)  # (L, M)
    return np.asarray(np.exp((centre + predicted)[..., None] + scale[..., None] * levels.T))


def _group_scale(group: I64, residual: F64, learn: Bools, groups: int) -> F64:
    """Relative spread of each group's residuals, (G, M), shrunk to 1 where a group is small."""
    energy = residual[learn] ** 2
    overall = np.maximum(energy.mean(axis=0), 1e-12)
    count = np.bincount(group[learn], minlength=groups)[:, None]
    total = np.stack([np.bincount(group[learn], weights=column, minlength=groups) for column in energy.T], axis=1)
    pulled = (total + GROUP_STRENGTH * overall) / (count + GROUP_STRENGTH)
    return np.asarray(np.sqrt(np.maximum(pulled / overall, 0.05)))
