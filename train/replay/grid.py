"""Grid of cells: catalogues, turns, budgets, modes, contexts; presets and options.

A cell is one test set under one budget. Its orderings are played mixed in one set and reported separately and together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from policy.arrays import F64, I64
from train.config import GateConfig, PlanConfig, TrainConfig
from train.fit.seqroute_paper import PublishedConfig
from train.replay.baselines import Ends, ends
from train.replay.compose import ORDERINGS
from train.replay.dataset import Graded
from train.replay.inputs import KINDS, Inputs
from train.replay.simulator import KEPT_TOKENS, NO_CONTEXT, Context, Mode, SessionBatch

Value = TypeVar("Value")

MOST_MODELS = 8
THINNED_MODELS = 6
PHIS = (0.05, 0.15, 0.2, 0.35, 0.5, 0.7)
TRAINING_PHIS = (0.05, 0.2, 0.5)
"""Training budgets; the other half of PHIS is new to the policies."""
TRADING = GateConfig(starved_worth=1.0)
"""The gate of replay knows every return and gives a starved session a price: docs/decisions/0023."""
BASE_TOKENS = (0, 1500, 8000, 30000)
CACHED_PRICES = (0.1, 0.5)
WRITE_PRICE = 1.25
"""Price of writing to a prompt cache, over the list price: Anthropic's for five minutes."""
RANDOM = "random"
POLICIES = (
    *("weakest", "strongest", "best-fixed", "random", "threshold", "tuned-lambda", "pacing", "re-solving"),
    *(
        "safe-tuned",
        "behaviour-cloning",
        "published",
        "published-safe",
        "gateway-default",
        "ours",
        "ours-ungated",
        "ours-calibrated",
    ),
    *(
        "ours-network",
        "ours-pretrained",
        "ours-blind",
        "ours-ungated-list-price",
        "ours-network-list-price",
        "gateway-default-list-price",
        "ours-not-offered",
        "ours-trained",
        "dp-predicted",
        "dp-perfect",
        "knapsack",
    ),
)
"""Policies whose rows may be requested (docs/replay.md)."""


class OptionError(ValueError):
    """An invalid option; the message names it and what was expected."""


@dataclass(frozen=True)
class Grid:
    """Grid to play. `turns` None is a random number.

    Prompt-cache cells, newcomers and fronts have the first number of turns. `budgets` "warm-mid" cells cost as much as
    staying on the middle model; they are the prompt-cache cells, one for each of `contexts`. Newcomers join in the
    plain cells of `newcomer_phis`.
    """

    turns: tuple[int | None, ...]
    phis: tuple[float, ...]
    newcomer_phis: tuple[float, ...]
    modes: tuple[Mode, ...]
    orderings: tuple[str, ...]
    contexts: tuple[Context, ...]
    training_sessions: int
    """Training sessions for tuning every baseline, in each cell."""
    test_sessions: int
    resamples: int
    log_sessions: int
    """Least sessions of each log; that of `ours` contains every training prompt."""
    gate_sessions: int
    """Sessions of each rehearsal for the gate, in each cell: enough to detect one starved in a hundred."""
    sweep_sessions: int
    """Test sessions of the fronts and the starvation curves."""
    training: TrainConfig
    published: PublishedConfig


@dataclass(frozen=True)
class Cell:
    """One budget; `phi` is None where the budget is the warm cost of the middle model."""

    turns: int | None
    phi: float | None
    mode: Mode
    context: Context


def quick() -> Grid:
    """The preset for a check in minutes."""
    return Grid(
        turns=(8,),
        phis=(0.2, 0.5),
        newcomer_phis=(0.2,),
        modes=("cut", "degrade"),
        orderings=ORDERINGS,
        contexts=(_growing(8000, 0.1), _growing(8000, 0.1, WRITE_PRICE)),
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
    """The preset of the published results."""
    return Grid(
        turns=(8, 4, 12, 16, None),
        phis=PHIS,
        newcomer_phis=PHIS,
        modes=("cut", "degrade"),
        orderings=ORDERINGS,
        contexts=(
            *(_growing(base, price) for base in BASE_TOKENS for price in CACHED_PRICES),
            *(_growing(base, CACHED_PRICES[0], WRITE_PRICE) for base in BASE_TOKENS),
        ),
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


def narrow(
    grid: Grid,
    *,
    turns: Sequence[str] = (),
    phis: Sequence[str] = (),
    modes: Sequence[str] = (),
    orderings: Sequence[str] = (),
    base_contexts: Sequence[str] = (),
) -> Grid:
    """Restrict the grid to the given options; empty ones keep all. Raises OptionError."""
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
        prices = sorted({(context.write_price, context.cached_price) for context in grid.contexts})
        changes["contexts"] = tuple(_growing(base, cached, written) for base in bases for written, cached in prices)
    return replace(grid, **changes)  # type: ignore[arg-type]


def cells(grid: Grid) -> list[Cell]:
    """All cells: every number of turns, phi and mode, and the prompt-cache cells."""
    plain = [Cell(t, phi, mode, NO_CONTEXT) for t in grid.turns for phi in grid.phis for mode in grid.modes]
    cached = [Cell(grid.turns[0], None, mode, context) for context in grid.contexts for mode in grid.modes[-1:]]
    return plain + cached


def newcomer_cells(grid: Grid) -> list[Cell]:
    """Cells in which the middle model joins: those of the first number of turns and mode."""
    return [Cell(grid.turns[0], phi, grid.modes[0], NO_CONTEXT) for phi in grid.newcomer_phis]


def catalogues(graded: Graded, training: I64, wanted: Sequence[str]) -> list[Graded]:
    """The catalogue to play, and the pair weakest - strongest if it differs."""
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
    """Pareto-optimal models and the cheapest; of more than `most` an even spread over the costs."""
    order = np.lexsort((-quality, cost))
    kept = [int(order[0])]
    for k in order[1:]:
        if quality[k] > quality[kept[-1]]:
            kept.append(int(k))
    if len(kept) > most:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, most).round().astype(int)]
    return sorted(kept)


def session_cost_usd(board: SessionBatch, average_cost_usd: F64) -> F64:
    """Cost of each session on each model alone, its context cold once and then warm, (S, K)."""
    lengths = board.sessions.lengths
    per_turn = np.zeros((board.shape[1], len(board.models)))
    for t in range(board.shape[1]):
        context, warm = board.context, board.context.warm_tokens(t)
        reading = (context.tokens(t) - warm) * context.write_price + warm * context.cached_price
        per_turn[t] = average_cost_usd + reading * board.usd_in_per_m * 1e-6
    return np.asarray(np.cumsum(per_turn, axis=0)[lengths - 1])


def budgets_usd(board: SessionBatch, average_cost_usd: F64, named: Ends, phi: float | None) -> F64:
    """Budget of every session, (S,): T (c_weak + phi (c_strong - c_weak)).

    Without phi the warm cost of the middle model.
    """
    cost = session_cost_usd(board, average_cost_usd)
    if phi is None:
        return np.asarray(cost[:, middle(average_cost_usd)])
    return np.asarray(cost[:, named.weak] + phi * (cost[:, named.strong] - cost[:, named.weak]))


def middle(average_cost_usd: F64) -> int:
    """Index of the middle of the catalogue by cost; of an even number the upper one."""
    return int(np.argsort(average_cost_usd, kind="stable")[len(average_cost_usd) // 2])


def phi_of(budget_usd: F64, cost: F64, named: Ends) -> float:
    """The phi at which the formula gives this budget."""
    weak, strong = cost[:, named.weak].mean(), cost[:, named.strong].mean()
    return float((budget_usd.mean() - weak) / (strong - weak)) if strong > weak else 0.0


def _growing(base_tokens: int, cached_price: float, write_price: float = 1.0) -> Context:
    return Context(base_tokens, KEPT_TOKENS, cached_price, write_price)


def known_policies(words: Sequence[str]) -> tuple[str, ...]:
    """Validate names of policies. Raises OptionError for an unknown one."""
    return _each(_one_of("--policies", word, POLICIES) for word in words)


def known_inputs(words: Sequence[str]) -> tuple[Inputs, ...]:
    """Validate kinds of inputs; none mean the gateway's. Raises OptionError for an unknown one."""
    named: dict[str, Inputs] = {kind: kind for kind in KINDS}
    return _each(named[_one_of("--inputs", word, KINDS)] for word in words) or KINDS[:1]


def _each(values: Iterable[Value]) -> tuple[Value, ...]:
    """The values without repeats."""
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
