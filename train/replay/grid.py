"""Which cells there are: catalogues, turns, budgets, modes and contexts; presets, and what the options narrow.

A cell is one test set under one budget. Its orderings are played mixed in one set and reported apart and together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from train.config import GateConfig, PlanConfig, TrainConfig
from train.fit.seqroute_paper import PublishedConfig
from train.replay.baselines import Ends, ends
from train.replay.compose import ORDERINGS
from train.replay.dataset import Graded
from train.replay.simulator import KEPT_TOKENS, NO_CONTEXT, Context, Mode, SessionBatch

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Value = TypeVar("Value")

MOST_MODELS = 8
THINNED_MODELS = 6
PHIS = (0.05, 0.15, 0.2, 0.35, 0.5, 0.7)
TRAINING_PHIS = (0.05, 0.2, 0.5)
"""Policies are trained under these budgets alone; the other half of PHIS is new to them."""
TRADING = GateConfig(starved_worth=1.0)
"""Here the gate knows every return, and a starved session has a price: docs/decisions/0023."""
BASE_TOKENS = (0, 1500, 8000, 30000)
CACHED_PRICES = (0.1, 0.5)
RANDOM = "random"
POLICIES = (
    *("weakest", "strongest", "best-fixed", "random", "threshold", "tuned-lambda", "pacing", "re-solving"),
    *("behaviour-cloning", "published", "published-safe", "gateway-default", "ours", "ours-ungated", "ours-calibrated"),
    *(
        "ours-network",
        "ours-pretrained",
        "ours-blind",
        "ours-not-offered",
        "ours-trained",
        "dp-predicted",
        "dp-perfect",
        "knapsack",
    ),
)
"""Whose rows may be asked for (docs/replay.md)."""


class OptionError(ValueError):
    """An option outside of what there is; the message names it and what was expected."""


@dataclass(frozen=True)
class Grid:
    """What is played. `turns` None stands for a random number; prompt-cache cells, newcomers and fronts have the first.
    `budgets` "warm-mid" cells cost what staying on the middle model does; they are the prompt-cache cells, one for each
    of `contexts`. Newcomers join in the plain cells of `newcomer_phis`."""

    turns: tuple[int | None, ...]
    phis: tuple[float, ...]
    newcomer_phis: tuple[float, ...]
    modes: tuple[Mode, ...]
    orderings: tuple[str, ...]
    contexts: tuple[Context, ...]
    training_sessions: int
    """Sessions of the training half that every baseline is tuned on, in each cell."""
    test_sessions: int
    resamples: int
    log_sessions: int
    """Sessions of each log at least: that of `ours` holds every prompt it may learn from."""
    gate_sessions: int
    """Sessions of each rehearsal's prompts that the gate sees, in each cell: enough to see one in a hundred starve."""
    sweep_sessions: int
    """Test sessions of the fronts and the starvation curves."""
    training: TrainConfig
    published: PublishedConfig


@dataclass(frozen=True)
class Cell:
    """One budget: `phi` is None where the budget is the warm cost of the middle model."""

    turns: int | None
    phi: float | None
    mode: Mode
    context: Context


def quick() -> Grid:
    return Grid(
        turns=(8,),
        phis=(0.2, 0.5),
        newcomer_phis=(0.2,),
        modes=("cut", "degrade"),
        orderings=ORDERINGS,
        contexts=(_growing(8000, 0.1),),
        training_sessions=200,
        test_sessions=200,
        resamples=400,
        log_sessions=300,
        gate_sessions=500,
        sweep_sessions=100,
        training=TrainConfig(gate=TRADING, plan=PlanConfig(lambdas=(0.15,))),
        published=PublishedConfig(steps=600),
    )


def full() -> Grid:
    return Grid(
        turns=(8, 4, 12, 16, None),
        phis=PHIS,
        newcomer_phis=PHIS,
        modes=("cut", "degrade"),
        orderings=ORDERINGS,
        contexts=tuple(_growing(base, price) for base in BASE_TOKENS for price in CACHED_PRICES),
        training_sessions=400,
        test_sessions=600,
        resamples=1000,
        log_sessions=600,
        gate_sessions=500,
        sweep_sessions=300,
        training=TrainConfig(gate=TRADING),
        published=PublishedConfig(steps=2000),
    )


PRESETS = {"quick": quick, "full": full}


def narrowed(
    grid: Grid,
    *,
    turns: Sequence[str] = (),
    phis: Sequence[str] = (),
    modes: Sequence[str] = (),
    orderings: Sequence[str] = (),
    base_contexts: Sequence[str] = (),
) -> Grid:
    """The grid with what the options name, and all of it where they name nothing. Raises OptionError."""
    changes: dict[str, object] = {}
    if turns:
        changes["turns"] = _each(None if word == RANDOM else _whole("--turns", word, 1) for word in turns)
    if phis:
        chosen = _each(_share("--phi", word) for word in phis)
        changes["phis"] = chosen
        changes["newcomer_phis"] = tuple(phi for phi in chosen if phi in grid.newcomer_phis) or chosen[:1]
    if modes:
        changes["modes"] = _each(_one_of("--mode", word, ("cut", "degrade")) for word in modes)
    if orderings:
        changes["orderings"] = _each(_one_of("--ordering", word, ORDERINGS) for word in orderings)
    if base_contexts:
        bases = _each(_whole("--base-context", word, 0) for word in base_contexts)
        prices = sorted({context.cached_price for context in grid.contexts})
        changes["contexts"] = tuple(_growing(base, price) for base in bases for price in prices)
    return replace(grid, **changes)  # type: ignore[arg-type]


def cells(grid: Grid) -> list[Cell]:
    """Plain cells for every number of turns, phi and mode; prompt-cache cells for the first number of turns alone."""
    plain = [Cell(t, phi, mode, NO_CONTEXT) for t in grid.turns for phi in grid.phis for mode in grid.modes]
    cached = [Cell(grid.turns[0], None, mode, context) for context in grid.contexts for mode in grid.modes[-1:]]
    return plain + cached


def newcomer_cells(grid: Grid) -> list[Cell]:
    """Where the middle model joins: plain cells of the first number of turns and the first mode."""
    return [Cell(grid.turns[0], phi, grid.modes[0], NO_CONTEXT) for phi in grid.newcomer_phis]


def catalogues(graded: Graded, training: I64, wanted: Sequence[str]) -> list[Graded]:
    """The catalogue to play, and the pair weakest - strongest when that is another one."""
    quality, cost = graded.quality[training].mean(axis=0), graded.cost_usd[training].mean(axis=0)
    if wanted:
        first = graded.with_models(_each(wanted))
    elif len(graded.models) <= MOST_MODELS:
        first = graded
    else:
        first = graded.with_models([graded.models[k] for k in front(quality, cost)])
    at = np.array([graded.models.index(name) for name in first.models])
    named = ends(quality[at], cost[at])
    pair = [first.models[k] for k in sorted({named.weak, named.strong})]
    return [first] if len(first.models) <= 2 or len(pair) < 2 else [first, first.with_models(pair)]


def front(quality: F64, cost: F64, most: int = THINNED_MODELS) -> list[int]:
    """Models that none beats in both, and the cheapest; of more than `most` an even spread over the costs."""
    order = np.lexsort((-quality, cost))
    kept = [int(order[0])]
    for k in order[1:]:
        if quality[k] > quality[kept[-1]]:
            kept.append(int(k))
    if len(kept) > most:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, most).round().astype(int)]
    return sorted(kept)


def session_cost_usd(board: SessionBatch, average_cost_usd: F64) -> F64:
    """What a session costs that stays on one model, its context cold once and warm from then on, (S, K)."""
    lengths = board.sessions.lengths
    per_turn = np.zeros((board.shape[1], len(board.models)))
    for t in range(board.shape[1]):
        reading = board.context.tokens(t) - (1 - board.context.cached_price) * board.context.warm_tokens(t)
        per_turn[t] = average_cost_usd + reading * board.usd_in_per_m * 1e-6
    return np.asarray(np.cumsum(per_turn, axis=0)[lengths - 1])


def budgets_usd(board: SessionBatch, average_cost_usd: F64, named: Ends, phi: float | None) -> F64:
    """B = T (c_weak + phi (c_strong - c_weak)) of every session, (S,); without phi what the middle model costs warm."""
    cost = session_cost_usd(board, average_cost_usd)
    if phi is None:
        return np.asarray(cost[:, middle(average_cost_usd)])
    return np.asarray(cost[:, named.weak] + phi * (cost[:, named.strong] - cost[:, named.weak]))


def middle(average_cost_usd: F64) -> int:
    """The middle of the catalogue by cost: of an even number the upper one, of a pair the dearer."""
    return int(np.argsort(average_cost_usd, kind="stable")[len(average_cost_usd) // 2])


def phi_of(budget_usd: F64, cost: F64, named: Ends) -> float:
    """The phi at which the formula gives this budget."""
    weak, strong = cost[:, named.weak].mean(), cost[:, named.strong].mean()
    return float((budget_usd.mean() - weak) / (strong - weak)) if strong > weak else 0.0


def _growing(base_tokens: int, cached_price: float) -> Context:
    return Context(base_tokens, KEPT_TOKENS, cached_price)


def known_policies(words: Sequence[str]) -> tuple[str, ...]:
    """Names of policies. Raises OptionError for one that there is not."""
    return _each(_one_of("--policies", word, POLICIES) for word in words)


def _each(values: Iterable[Value]) -> tuple[Value, ...]:
    """What was named, once."""
    return tuple(dict.fromkeys(values))


def _whole(option: str, word: str, least: int) -> int:
    if not word.isdigit() or int(word) < least:
        raise OptionError(f"{option}: expected whole numbers from {least}, got {word!r}")
    return int(word)


def _share(option: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 10.0:
        raise OptionError(f"{option}: expected numbers from 0 to 10, got {word!r}")
    return value


def _one_of(option: str, word: str, known: Sequence[str]) -> str:
    if word not in known:
        raise OptionError(f"{option}: expected one of {', '.join(known)}, got {word!r}")
    return word
