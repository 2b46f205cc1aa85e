"""Policies that learn from bills how much of a matching prefix was really cached."""

from __future__ import annotations

import numpy as np

from gateway.catalog.cache_hits import CacheHits
from policy.arrays import I64
from train.replay.blind import believing
from train.replay.served import SECONDS_BETWEEN_TURNS
from train.replay.simulator import Rule, Turn


def learning(rule: Rule, hits: CacheHits) -> Rule:
    """The rule told the warmth that the bills so far show of each model."""

    def told(turn: Turn) -> I64:
        board, chosen = turn.board, np.zeros(len(turn.at), np.int64)
        matching, cached = board.context.matching_tokens(turn.index), board.context.warm_tokens(turn.index)
        for last in np.unique(turn.last):
            rows, name = np.flatnonzero(turn.last == last), board.models[last]
            share = hits.share(name, matching, SECONDS_BETWEEN_TURNS) if matching else 1.0
            chosen[rows] = believing(rule, hit_share=share)(turn.take(rows))
        served = board.served_last(turn.last)[np.arange(len(chosen)), chosen]
        for last in turn.last[served]:
            hits.observe(board.models[last], matching, cached, SECONDS_BETWEEN_TURNS)
        return chosen

    return told
