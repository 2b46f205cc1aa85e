"""Predictions for a prompt before its answers: quality of every model, and its bills.

Fitted on the training half; its own predictions are out of fold (five folds, by task), so that tuning sees errors as
large as the test half will. The stack is the reward model of the baselines: it reads the vectors that every policy
gets, and is stronger than the gateway's own.

quality   three views - ridge regression, nearest neighbours, group means -, each split into its shared part and each
          model's own, combined by non-negative least squares on out-of-fold errors: a view, or a difference between
          models, that the data do not support is shrunk away.
bills     those of `train.replay.live`, or of `train.replay.richer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F64, I64, Bools
from policy.features import expected_cost_usd
from train.replay.dataset import Graded
from train.replay.split import hash_fraction
from train.replay.vectors import Vectors

Fit = Callable[[Bools, F64], F64]
"""(training rows (P,), targets (P, M)) -> predictions for all rows (P, M)."""
View = Callable[[F64, Bools, I64], F64]
"""(targets (P, M), training rows (P,), folds (P,)) -> cross-fitted predictions for all rows (P, M)."""

FOLDS = 5
SWEEPS = 500
STACKED_PENALTIES = (30.0, 300.0, 3000.0)
NEIGHBOURS = 30
GROUP_STRENGTH = 10.0
PRIOR_STEP = 0.05
TINY_USD = 1e-9


@dataclass(frozen=True)
class Bills:
    """Forecast of every prompt's bill on every model, before it is answered.

    `cost_quantiles_usd` (P, M, L), `least_usd` (P, M) the least money with which a model is offered, `output_tokens`
    (P, M) expected. `unseen_usd` (P, M, L): the quantiles for a model of which no answer was seen.
    """

    cost_quantiles_usd: F64
    least_usd: F64
    output_tokens: F64
    unseen_usd: F64 | None = None

    def of(self, models: I64) -> Bills:
        """The forecast for some models."""
        return replace(
            self,
            cost_quantiles_usd=self.cost_quantiles_usd[:, models],
            least_usd=self.least_usd[:, models],
            output_tokens=self.output_tokens[:, models],
            unseen_usd=None if self.unseen_usd is None else self.unseen_usd[:, models],
        )


@dataclass(frozen=True)
class Predictions:
    """Predictions for every prompt: `quality` (P, M), and the bills.

    `prompt_tokens` (P,) is the counted length. `average` (M,) is the training half's mean quality, `average_cost_usd`
    (M,) its mean cost. `r2` is the out-of-fold share of explained variance.
    """

    quality: F64
    bills: Bills
    prompt_tokens: F64
    average: F64
    average_cost_usd: F64
    r2: float

    def of(self, models: Sequence[int]) -> Predictions:
        """Predictions of some models."""
        at = np.asarray(models, np.int64)
        return replace(
            self,
            quality=self.quality[:, at],
            bills=self.bills.of(at),
            average=self.average[at],
            average_cost_usd=self.average_cost_usd[at],
        )

    @property
    def cost_quantiles_usd(self) -> F64:
        """Quantiles of the cost at policy.mdp.COST_LEVELS, (P, M, L)."""
        return self.bills.cost_quantiles_usd

    @property
    def cost_usd(self) -> F64:
        """Expected cost, (P, M)."""
        return np.asarray(expected_cost_usd(self.cost_quantiles_usd))


def predict(graded: Graded, seen: Vectors, bills: Bills, training: I64, seed: int) -> Predictions:
    """Predict every prompt: out of fold on the training half, by all of it on the other."""
    learn = np.zeros(graded.prompts, np.bool_)
    learn[training] = True
    average = graded.quality[training].mean(axis=0)
    views = _views(seen, design_matrix(graded, seen, learn))
    quality, r2 = stack_views(views, graded.quality - average, learn, folds_of_tasks(graded, seed))
    return Predictions(
        quality=np.clip(average + quality, 0.0, 1.0),
        bills=bills,
        prompt_tokens=seen.tokens,
        average=average,
        average_cost_usd=graded.cost_usd[training].mean(axis=0),
        r2=r2,
    )


def folds_of_tasks(graded: Graded, seed: int, folds: int = FOLDS) -> I64:
    """Fold of every prompt, (P,), by its task."""
    return np.array([int(hash_fraction(seed + 1, "fold", name) * folds) for name in graded.task_ids])[graded.task]


def newcomer(graded: Graded, predictions: Predictions, model: int, known: Sequence[int]) -> Predictions:
    """Predictions for a `model` without data, from its prices, a prior and the `known` models.

    Its quality on a prompt is the prior (the true mean to the next PRIOR_STEP, as an operator would write it) plus the
    others' mean deviation: difficulty learned from other models ranks a newcomer nearly as well as its own data. Its
    bills are those of a model of which no answer was seen.
    """
    others = predictions.of(known)
    prior = float(np.round(predictions.average[model] / PRIOR_STEP) * PRIOR_STEP)
    shared = (others.quality - others.average).mean(axis=1)
    bills = predictions.bills
    quality, quantiles_usd = predictions.quality.copy(), bills.cost_quantiles_usd.copy()
    average, cost = predictions.average.copy(), predictions.average_cost_usd.copy()
    quality[:, model], average[model] = np.clip(prior + shared, 0.0, 1.0), prior
    least_usd = bills.least_usd.copy()
    if bills.unseen_usd is None:
        unseen = others_usd(graded, others, model, known)
        least_usd[:, model] = np.minimum(least_usd[:, model], unseen[:, 0])
    else:
        unseen = bills.unseen_usd[:, model]
    quantiles_usd[:, model] = unseen
    cost[model] = float(expected_cost_usd(unseen).mean())
    return replace(
        predictions,
        quality=quality,
        bills=replace(bills, cost_quantiles_usd=quantiles_usd, least_usd=least_usd),
        average=average,
        average_cost_usd=cost,
    )


def others_usd(graded: Graded, others: Predictions, model: int, known: Sequence[int]) -> F64:
    """Cost quantiles of a model like the others' with their prices divided out, (P, L)."""
    out = graded.out_tokens[:, known].mean()
    spent = others.average_cost_usd - out * graded.usd_out_per_m[known] * 1e-6
    read = np.maximum(spent / np.maximum(graded.usd_in_per_m[known] * 1e-6, 1e-12), 0.0)
    tokens_in = float(np.median(np.where(graded.usd_in_per_m[known] > 0, read, 0.0)))

    def price(at: Sequence[int]) -> F64:
        each = tokens_in * graded.usd_in_per_m[at] + out * graded.usd_out_per_m[at]
        return np.maximum(np.asarray(each, np.float64), TINY_USD)

    logs = np.log(np.maximum(others.cost_quantiles_usd, TINY_USD)) - np.log(price(known))[:, None]
    return np.asarray(np.exp(logs.mean(axis=1)) * price([model]))


def stack_views(views: list[View], targets: F64, learn: Bools, fold: I64) -> tuple[F64, float]:
    """Combine views by the value of their out-of-fold predictions.

    Targets (P, M) are deviations from the means. Rows outside `learn` are predicted, never used. Returns predictions
    (P, M) and the share of variance explained.
    """
    parts = [part for view in views for part in _shared_and_own(view(targets, learn, fold))]
    regressors = np.stack([part[learn].ravel() for part in parts], axis=1)
    happened = targets[learn].ravel()
    weights = nonnegative(regressors.T @ regressors, regressors.T @ happened)
    predicted = np.tensordot(weights, np.stack(parts), axes=1)
    energy = float(happened @ happened)
    error = happened - regressors @ weights
    return predicted, 1.0 - float(error @ error) / energy if energy > 0 else 0.0


def nonnegative(gram: F64, product: F64) -> F64:
    """Solve argmin w'Gw/2 - w'p over w >= 0 by coordinate descent (Franc et al. 2005)."""
    weights = np.zeros(len(product))
    for _ in range(SWEEPS):
        for i in np.flatnonzero(np.diag(gram) > 0):
            weights[i] = max(weights[i] + (product[i] - gram[i] @ weights) / gram[i, i], 0.0)
    return weights


def cross_fitted(fit: Fit, targets: F64, learn: Bools, fold: I64) -> F64:
    """Predictions for every row, (P, M): a fold's from a fit without it, the rest from all rows."""
    found = fit(learn, targets)
    for f in np.unique(fold[learn]):
        held = learn & (fold == f)
        found[held] = fit(learn & (fold != f), targets)[held]
    return found


def ridges(design: F64, targets: F64, learn: Bools, fold: I64, penalties: Sequence[float]) -> list[F64]:
    """Cross-fitted ridge regression at several penalties; a fold's moments are subtracted."""
    folds = np.unique(fold[learn])
    moments = []
    for f in folds:
        x = design[learn & (fold == f)]
        moments.append((x.T @ x, x.T @ targets[learn & (fold == f)]))
    xx, xy = sum(m[0] for m in moments), sum(m[1] for m in moments)
    found = [np.asarray(design @ weights) for weights in _solutions(xx, xy, penalties)]
    for f, (fold_xx, fold_xy) in zip(folds, moments, strict=True):
        held = learn & (fold == f)
        solutions = _solutions(xx - fold_xx, xy - fold_xy, penalties)
        for predicted, weights in zip(found, solutions, strict=True):
            predicted[held] = design[held] @ weights
    return found


def _solutions(xx: F64, xy: F64, penalties: Sequence[float]) -> list[F64]:
    """Solve (X'X + penalty I) w = X'y for every penalty from one eigendecomposition."""
    values, vectors = np.linalg.eigh(xx)
    turned = vectors.T @ xy
    return [np.asarray(vectors @ (turned / (np.maximum(values, 0.0) + penalty)[:, None])) for penalty in penalties]


def _views(seen: Vectors, design: F64) -> list[View]:
    """Ridge at three strengths, group means, and neighbours if there are vectors."""

    def ridge_view(penalty: float) -> View:
        return lambda targets, learn, fold: ridges(design, targets, learn, fold, (penalty,))[0]

    views = [ridge_view(penalty) for penalty in STACKED_PENALTIES]
    if seen.groups > 1:
        views.append(partial(cross_fitted, _group_fit(seen.group, seen.groups)))
    if seen.content is not None:
        views.append(partial(cross_fitted, _neighbour_fit(seen.content)))
    return views


def _group_fit(group: I64, groups: int) -> Fit:
    def fit(rows: Bools, targets: F64) -> F64:
        count = np.bincount(group[rows], minlength=groups)
        sums = np.stack([np.bincount(group[rows], weights=column, minlength=groups) for column in targets[rows].T], 1)
        return np.asarray((sums / (count + GROUP_STRENGTH)[:, None])[group])

    return fit


def _neighbour_fit(content: NDArray[np.float32]) -> Fit:
    """Mean of the nearest by cosine, weighted by similarity; a prompt is not its own neighbour."""
    likeness = content @ content.T
    np.fill_diagonal(likeness, -np.inf)

    def fit(rows: Bools, targets: F64) -> F64:
        among = np.flatnonzero(rows)
        near = likeness[:, among]
        k = min(NEIGHBOURS, len(among) - 1)
        best = np.argpartition(-near, k - 1, axis=1)[:, :k]
        weight = np.exp(8.0 * np.take_along_axis(near, best, axis=1))
        weight /= weight.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("pk,pkm->pm", weight, targets[among][best]))

    return fit


def _shared_and_own(values: F64) -> tuple[F64, F64]:
    """Split a view into the part shared by all models and each model's own; both (P, M)."""
    shared = np.broadcast_to(values.mean(axis=1, keepdims=True), values.shape)
    return shared, values - shared


def design_matrix(graded: Graded, seen: Vectors, learn: Bools) -> F64:
    """Design matrix (P, d): observation vectors, lengths, groups, standardised, and a constant."""
    lengths = np.log1p(np.stack([graded.n_chars, seen.tokens], axis=1))
    columns = [seen.text, seen.stats, lengths]
    if 1 < seen.groups <= 64:
        columns.append(np.eye(seen.groups)[seen.group])
    raw = np.column_stack(columns).astype(np.float64)
    centre, scale = raw[learn].mean(axis=0), raw[learn].std(axis=0)
    varies = scale > 1e-6
    standard = np.clip((raw - centre)[:, varies] / scale[varies], -5.0, 5.0)
    return np.column_stack([standard, np.ones(len(standard))])
