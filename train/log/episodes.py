"""Episodes: sessions as padded arrays, the input of all training.

Shapes: S sessions, T turns (padded, `valid`), K candidates (padded, `mask` False), L cost levels. Money is float USD
here: learning needs no ledger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F32, I32, I64, Bools
from policy.mdp import COST_LEVELS


@dataclass(frozen=True)
class Episodes:
    """Sessions as arrays. `actions` index the candidates; `reward` is NaN without a grade.

    A log knows the grade and the bill of the logged action only. Where others are known too, `scores` and `bills_usd`
    hold them: of every candidate where every model was called, or the grade of a second answer. `task` identifies what
    was asked: turns of one task are never on both sides of a cross-fit, in whichever session; -1 where a session's
    turns are its own.
    """

    session_ids: tuple[str, ...]
    root_ids: tuple[str, ...]
    """The topmost session of each one's tree; its own id if it has no parent."""
    tenant_ids: tuple[str, ...]
    models: tuple[str, ...]
    valid: Bools  # (S, T)
    state: F32  # (S, T, D)
    candidates: F32  # (S, T, K, C)
    cost_quantiles_usd: F32  # (S, T, K, L)
    mask: Bools  # (S, T, K) candidates that nothing but money may exclude
    offered: Bools  # (S, T, K) those that the budget allowed too
    model: I32  # (S, T, K) index into `models`, -1 for padding
    prior_quality: F32  # (S, T, K) predicted by the serving policy
    probabilities: F32  # (S, T, K) of the serving policy's draw
    action: I32  # (S, T)
    propensity: F32  # (S, T)
    reward: F32  # (S, T)
    implied: Bools  # (S, T) turns with an implicit signal, which grades each of them
    cost_usd: F32  # (S, T)
    remaining_usd: F32  # (S, T) before the turn
    budget_usd: F32  # (S, T)
    lambda_per_usd: F32  # (S, T)
    expected_turns: I32  # (S, T), 0 when the client declared none
    policy: I32  # (S, T) index into `policy_ids`
    scores: F32  # (S, T, K) grades of any action, NaN where not known
    bills_usd: F32  # (S, T, K) bills of any action, NaN where not known
    task: I64  # (S, T)
    output_tokens: F32  # (S, T) reported for the answer, NaN where not known
    cached_tokens: F32  # (S, T) reported as read from the prompt cache, NaN where not known
    route: I64  # (S, T) of the observation
    policy_ids: tuple[str, ...] = ()

    @property
    def sessions(self) -> int:
        """Number of sessions."""
        return len(self.session_ids)

    @property
    def trees(self) -> I64:
        """Number of each session's tree, (S,), in order of appearance: independent samples."""
        number: dict[tuple[str, str], int] = {}
        names = zip(self.tenant_ids, self.root_ids, strict=True)
        return np.array([number.setdefault(name, len(number)) for name in names], np.int64)

    @property
    def turns(self) -> int:
        """Number of valid turns."""
        return int(self.valid.sum())

    @property
    def lengths(self) -> I32:
        """Turns of each session, (S,)."""
        return np.asarray(self.valid.sum(axis=1), np.int32)

    @property
    def graded(self) -> Bools:
        """Turns with a grade, (S, T)."""
        return np.asarray(np.isfinite(self.reward) & self.valid)

    @property
    def graded_share(self) -> float:
        """Graded share of the turns without an implicit signal; 0 where every turn has one.

        Implicit signals tell of poor answers only, and grade all turns that have one. So a grade of another turn has
        the reciprocal of this share as its weight, and an implicit one has 1. With one weight for all, a log without
        feedback would be one of poor answers.
        """
        quiet = self.valid & ~self.implied
        return float((self.graded & quiet).sum() / max(int(quiet.sum()), 1))

    def known_scores(self) -> F32:
        """All known grades, (S, T, K): `scores`, and `reward` at the logged action; else NaN."""
        at = np.arange(self.mask.shape[-1]) == self.action[..., None]
        return np.where(at & np.isfinite(self.reward)[..., None], self.reward[..., None], self.scores)

    @property
    def whole(self) -> Bools:
        """Turns of which every candidate's grade is known, (S, T)."""
        return np.asarray((np.isfinite(self.scores) | (self.model < 0)).all(axis=-1) & self.valid)

    def known_bills_usd(self) -> F32:
        """All known bills, (S, T, K): `bills_usd`, and `cost_usd` at the logged action; else NaN."""
        at = np.arange(self.mask.shape[-1]) == self.action[..., None]
        return np.where(at, self.cost_usd[..., None], self.bills_usd)

    def take(self, rows: NDArray[np.int64] | Bools) -> Episodes:
        """A selection of the sessions; consecutive ones share memory with these."""
        chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else np.asarray(rows)
        together = len(chosen) > 0 and bool((np.diff(chosen) == 1).all())
        index = slice(int(chosen[0]), int(chosen[-1]) + 1) if together else chosen
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                values[item.name] = value[index]
            elif item.name in ("session_ids", "root_ids", "tenant_ids"):
                values[item.name] = tuple(value[i] for i in chosen)
            else:
                values[item.name] = value
        return Episodes(**values)

    def digest(self) -> str:
        """Content digest; with the config's digest it identifies a run."""
        names = json.dumps([self.session_ids, self.root_ids, self.models, self.policy_ids])
        total = hashlib.sha256(names.encode())
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                total.update(np.ascontiguousarray(value).tobytes())
        return total.hexdigest()[:16]


def blank_episodes(
    session_ids: Iterable[str],
    tenant_ids: Iterable[str],
    models: tuple[str, ...],
    policy_ids: tuple[str, ...],
    sizes: tuple[int, int, int, int, int],
    *,
    root_ids: Iterable[str] | None = None,
) -> Episodes:
    """Arrays of the sizes (S, T, K, D, C), all invalid, to be filled by the caller.

    `root_ids` None: no session has a parent.
    """
    s, t, k, d, c = sizes
    names = tuple(session_ids)
    return Episodes(
        session_ids=names,
        root_ids=names if root_ids is None else tuple(root_ids),
        tenant_ids=tuple(tenant_ids),
        models=models,
        policy_ids=policy_ids,
        valid=np.zeros((s, t), np.bool_),
        state=np.zeros((s, t, d), np.float32),
        candidates=np.zeros((s, t, k, c), np.float32),
        cost_quantiles_usd=np.zeros((s, t, k, len(COST_LEVELS)), np.float32),
        mask=np.zeros((s, t, k), np.bool_),
        offered=np.zeros((s, t, k), np.bool_),
        model=np.full((s, t, k), -1, np.int32),
        prior_quality=np.full((s, t, k), np.nan, np.float32),
        probabilities=np.zeros((s, t, k), np.float32),
        action=np.zeros((s, t), np.int32),
        propensity=np.ones((s, t), np.float32),
        reward=np.full((s, t), np.nan, np.float32),
        implied=np.zeros((s, t), np.bool_),
        cost_usd=np.zeros((s, t), np.float32),
        remaining_usd=np.zeros((s, t), np.float32),
        budget_usd=np.zeros((s, t), np.float32),
        lambda_per_usd=np.zeros((s, t), np.float32),
        expected_turns=np.zeros((s, t), np.int32),
        policy=np.zeros((s, t), np.int32),
        scores=np.full((s, t, k), np.nan, np.float32),
        bills_usd=np.full((s, t, k), np.nan, np.float32),
        task=np.full((s, t), -1, np.int64),
        output_tokens=np.full((s, t), np.nan, np.float32),
        cached_tokens=np.full((s, t), np.nan, np.float32),
        route=np.zeros((s, t), np.int64),
    )


def split_by_tree(episodes: Episodes, holdout_fraction: float, seed: int) -> tuple[Episodes, Episodes]:
    """Split into (training part, held-out part) by a hash of each tree's root and the seed."""
    held = np.array(
        [
            session_fraction(tenant, root, seed) < holdout_fraction
            for tenant, root in zip(episodes.tenant_ids, episodes.root_ids, strict=True)
        ],
        np.bool_,
    ).reshape(episodes.sessions)
    return episodes.take(~held), episodes.take(held)


def session_fraction(tenant_id: str, session_id: str, seed: int) -> float:
    """A hash in [0, 1) of the names and the seed."""
    digest = hashlib.sha256(f"{seed}\0{tenant_id}\0{session_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
