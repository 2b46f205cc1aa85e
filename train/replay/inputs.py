"""Kinds of inputs: what policies know about a prompt, and the forecast of its bills.

`live` are the gateway's own, by its own code; `plain` the same without the learned head of answer lengths, to show its
worth; `richer` show what better ones would bring.
"""

from __future__ import annotations

from typing import Literal, get_args

from policy.arrays import I64
from policy.text import HASHED, TextSpace
from train.replay.dataset import Graded
from train.replay.live import LiveVectors, live_bills, live_vectors
from train.replay.predict import Bills
from train.replay.richer import richer_bills, richer_vectors
from train.replay.vectors import Vectors

Inputs = Literal["live", "plain", "richer"]
KINDS: tuple[Inputs, ...] = get_args(Inputs)


def vectors_of(inputs: Inputs, graded: Graded, training: I64, space: TextSpace = HASHED) -> Vectors:
    """Vectors of every prompt of a source; `space` is the gateway's text."""
    return richer_vectors(graded, training) if inputs == "richer" else live_vectors(graded, training, space)


def bills_of(inputs: Inputs, graded: Graded, seen: Vectors, training: I64, seed: int) -> Bills:
    """Forecast of every bill from these vectors."""
    if isinstance(seen, LiveVectors):
        return live_bills(graded, seen, training, seed, learned=inputs == "live")
    return richer_bills(graded, seen, training, seed)
