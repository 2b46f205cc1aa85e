"""Simulated log of composed sessions as `Episodes`: the training data of `ours`.

The gateway's default rule plays, exploring, under budgets; every turn is encoded as the gateway encodes it. Unlike a
real log, this one has every model's score and bill: `scores` and `bills_usd`. A session ends in the log where its money
ended: cut or unanswered turns are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policy import batch
from policy.arrays import F64, I64
from policy.exploration import Exploration
from policy.features import CANDIDATE_DIM, STATE_DIM, Encoded, Horizon, encode
from policy.rules import ReSolving
from train.log.episodes import Episodes, blank_episodes
from train.replay.served import observation, turn_batch
from train.replay.simulator import Mode, SessionBatch, Turn, play
from train.replay.vectors import Vectors

EXPLORATION = 0.1
TENANT = "replay"


def log_episodes(
    board: SessionBatch,
    seen: Vectors,
    tasks: I64,
    budget_usd: F64,
    mode: Mode,
    horizon: Horizon,
    *,
    seed: int,
) -> Episodes:
    """Play the default rule on a board and log it. `tasks` (P,) is each prompt's task.

    `budget_usd` (S,). Deterministic given the seed.
    """
    s, t, k = board.shape
    names = tuple(f"s{seed}-{i:05d}" for i in range(s))
    policy = ReSolving(horizon=horizon, exploration=Exploration(floor=EXPLORATION))
    episodes = blank_episodes(
        names, (TENANT,) * s, board.models, (policy.policy_id,), (s, t, k, STATE_DIM, CANDIDATE_DIM)
    )

    def recording(turn: Turn) -> I64:
        shares = batch.probabilities(policy, turn_batch(turn, seen))
        chosen = batch.draw_rows(shares, turn.uniform)
        for n in range(len(turn.at)):
            _keep(episodes, turn, n, encode(observation(turn, n, seen)), shares[n], float(shares[n, chosen[n]]))
        return chosen

    played = play(board, recording, budget_usd, mode, horizon, seed)
    fine = (played.action >= 0) & ~played.cut
    episodes.valid[:] = np.logical_and.accumulate(fine, axis=1)
    episodes.action[:] = np.maximum(played.action, 0)
    episodes.reward[:] = np.where(episodes.valid, played.quality, np.nan)
    episodes.cost_usd[:] = played.cost_usd
    episodes.budget_usd[:] = budget_usd[:, None]
    episodes.scores[:] = board.quality
    episodes.task[:] = tasks[np.maximum(board.sessions.rows, 0)]
    episodes.route[:] = seen.route[np.maximum(board.sessions.rows, 0)]
    return episodes


def concatenate(parts: Sequence[Episodes]) -> Episodes:
    """Concatenate several logs of one catalogue; shorter sessions are padded."""
    longest = max(part.valid.shape[1] for part in parts)
    first = parts[0]
    total = blank_episodes(
        tuple(name for part in parts for name in part.session_ids),
        tuple(name for part in parts for name in part.tenant_ids),
        first.models,
        first.policy_ids,
        (sum(part.sessions for part in parts), longest, *first.candidates.shape[2:3], STATE_DIM, CANDIDATE_DIM),
    )
    start = 0
    for part in parts:
        for name in Episodes.__dataclass_fields__:
            value = getattr(part, name)
            if isinstance(value, np.ndarray):
                getattr(total, name)[start : start + part.sessions, : value.shape[1]] = value
        start += part.sessions
    return total


def _keep(episodes: Episodes, turn: Turn, n: int, encoded: Encoded, shares: F64, propensity: float) -> None:
    """Write one turn to the log; bills of all models include the context they would have read."""
    i, j = int(turn.at[n]), turn.index
    episodes.state[i, j] = encoded.state
    episodes.candidates[i, j] = encoded.candidates
    episodes.cost_quantiles_usd[i, j] = encoded.cost_quantiles_usd
    episodes.mask[i, j] = True
    episodes.offered[i, j] = encoded.mask
    episodes.model[i, j] = np.arange(len(encoded.mask))
    episodes.prior_quality[i, j] = turn.board.average
    episodes.probabilities[i, j] = shares
    episodes.propensity[i, j] = propensity
    episodes.remaining_usd[i, j] = turn.remaining_usd[n]
    episodes.expected_turns[i, j] = turn.declared[n]
    episodes.bills_usd[i, j] = turn.board.cost_usd[i, j] + turn.board.context_usd(j, turn.last[n : n + 1])[0]
