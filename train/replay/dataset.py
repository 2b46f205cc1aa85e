"""Reader of folders of graded answers (docs/replay.md) into arrays of prompts x models.

DataError    an invalid folder: which file, what was found, what was expected
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from policy.arrays import F32, F64, I64, Bools
from train.errors import kind_of, reason_of

FILES = ("prompts.parquet", "outcomes.parquet", "models.parquet")
CHARS_PER_TOKEN = 4.0
ENOUGH_PROMPTS = 200
LEAST_TASKS = 4
"""Two to train on, two to test on."""
NOMINAL_TOKENS = 1000.0
"""Tokens of an answer by which a model is priced that has neither a list price nor token counts."""
LEAST_USD = 1e-9
"""Cost of a free answer, the ledger's unit: prices of money and shares of a budget need a positive cost."""


class DataError(ValueError):
    """A folder that cannot be replayed; names the file, what was found and what was expected."""


@dataclass(frozen=True)
class Graded:
    """One source: P prompts answered by M models; rows of a `task` are a conversation in order.

    `quality` in 0..1, `cost_usd` and `out_tokens` are (P, M), without gaps; `in_tokens` is NaN where an answer's tokens
    are unknown. `text` is "" and `embedding` None where the source has none. Prices are USD per million tokens, (M,),
    NaN where the source has none until `with_prices`.
    """

    source: str
    models: tuple[str, ...]
    usd_in_per_m: F64
    usd_out_per_m: F64
    task: I64  # (P,) index into `task_ids`
    task_ids: tuple[str, ...]
    turn: I64  # (P,)
    group: I64  # (P,) index into `groups`
    groups: tuple[str, ...]
    n_chars: F64  # (P,)
    n_tokens: F64  # (P,)
    text: tuple[str, ...]
    embedding: F32 | None  # (P, E)
    quality: F64
    cost_usd: F64
    in_tokens: F64
    out_tokens: F64
    digest: str
    notes: tuple[str, ...] = ()

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return len(self.task)

    def with_models(self, names: Sequence[str]) -> Graded:
        """The same prompts with these models in this order. Raises DataError for unknown ones."""
        unknown = [name for name in names if name not in self.models]
        if unknown:
            raise DataError(f"{self.source}: no model {unknown[0]!r}; there are {', '.join(self.models)}")
        at = np.array([self.models.index(name) for name in names], np.int64)
        return _replace(
            self,
            models=tuple(names),
            usd_in_per_m=self.usd_in_per_m[at],
            usd_out_per_m=self.usd_out_per_m[at],
            quality=self.quality[:, at],
            cost_usd=self.cost_usd[:, at],
            in_tokens=self.in_tokens[:, at],
            out_tokens=self.out_tokens[:, at],
        )

    def with_prices(self, training: I64) -> Graded:
        """The source with missing list prices set to what the bills of these prompts imply."""
        price_in, price_out = completed_prices(
            self.cost_usd[training],
            np.stack([self.in_tokens[training], self.out_tokens[training]]),
            self.usd_in_per_m,
            self.usd_out_per_m,
        )
        return _replace(self, usd_in_per_m=price_in, usd_out_per_m=price_out)


def read_folder(folder: Path) -> list[Graded]:
    """Read every source of one folder, by name.

    Prompts that not every model answered are left out, with a note. Prompts without a source belong to one named like
    the folder; outcomes and prices without one belong to every source.
    """
    prompts, outcomes, models = (read_table(folder / name) for name in FILES)
    require(prompts, ("task_id",))
    require(outcomes, ("task_id", "model", "quality"))
    require(models, ("model", "usd_in_per_m", "usd_out_per_m"))
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in FILES)).hexdigest()[:16]
    source_of = words_of(prompts, "source", folder.name)
    if not any(words_of(prompts, "source", "")):
        return [_source(folder.name, prompts, outcomes, models, digest)]
    return [
        _source(
            source,
            prompts.filter(pa.array([name == source for name in source_of], pa.bool_())),
            of_source(outcomes, source),
            of_source(models, source),
            digest,
        )
        for source in sorted(set(source_of))
    ]


def named_apart(found: Sequence[tuple[Path, Graded]]) -> list[Graded]:
    """Sources of several folders; names that occur more than once become `source (folder)`."""
    times = Counter(graded.source for _, graded in found)
    named = [
        graded if times[graded.source] == 1 else _replace(graded, source=f"{graded.source} ({folder.name})")
        for folder, graded in found
    ]
    twice = [name for name, count in Counter(graded.source for graded in named).items() if count > 1]
    if twice:
        raise DataError(f"{twice[0]}: two folders of this name hold the same source")
    return named


def _source(source: str, prompts: pa.Table, outcomes: pa.Table, prices: pa.Table, digest: str) -> Graded:
    task_names, turn = words_of(prompts, "task_id", ""), numbers_of(prompts, "turn", 0.0).astype(np.int64)
    if "turn" not in outcomes.column_names and len(set(task_names)) == len(task_names):
        turn[:] = 0  # answers without turn numbers: each prompt has one turn
    answers = _answers(source, outcomes, prices, _places(prompts, task_names, turn))
    kept, task, task_ids = _whole_conversations(task_names, turn, answers.whole)
    if len(task_ids) < LEAST_TASKS:
        raise DataError(
            f"{_file(outcomes)}: {source}: {len(task_ids)} tasks were answered by every model, need {LEAST_TASKS}"
        )
    group_names, words = words_of(prompts, "group", ""), words_of(prompts, "text", "")
    groups = tuple(sorted({group_names[i] for i in kept}))
    text = tuple(words[i] for i in kept)
    n_chars = numbers_of(prompts, "n_chars", np.nan)[kept]
    n_chars = np.where(np.isfinite(n_chars), n_chars, [float(len(x)) for x in text])
    n_tokens = numbers_of(prompts, "n_tok", np.nan)[kept]
    dropped = len(task_names) - len(kept)
    left_out = [f"{dropped} of {len(task_names)} prompts left out: not answered by every model"] if dropped else []
    out_tokens = answers.grid["out_tok"][kept]
    return Graded(
        source=source,
        models=answers.models,
        usd_in_per_m=answers.usd_in_per_m,
        usd_out_per_m=answers.usd_out_per_m,
        task=task,
        task_ids=task_ids,
        turn=turn[kept],
        group=np.array([groups.index(group_names[i]) for i in kept], np.int64),
        groups=groups,
        n_chars=n_chars,
        n_tokens=np.where(np.isfinite(n_tokens), n_tokens, np.ceil(n_chars / CHARS_PER_TOKEN)),
        text=text,
        embedding=_embedding(prompts, kept),
        quality=np.clip(answers.grid["quality"][kept], 0.0, 1.0),
        cost_usd=np.maximum(answers.grid["cost_usd"][kept], LEAST_USD),
        in_tokens=np.where(np.isfinite(out_tokens), answers.grid["in_tok"][kept], np.nan),
        out_tokens=np.nan_to_num(out_tokens),
        digest=digest,
        notes=(*answers.notes, *left_out),
    )


class _Answers(NamedTuple):
    """Answers of the models that are kept; `grid` has (P, M), `whole` (P,) says that all of them answered."""

    models: tuple[str, ...]
    usd_in_per_m: F64
    usd_out_per_m: F64
    grid: dict[str, F64]
    whole: Bools
    notes: tuple[str, ...]


def _places(prompts: pa.Table, task_names: Sequence[str], turn: I64) -> dict[tuple[str, int], int]:
    """Row of each task and turn."""
    found = {key: i for i, key in enumerate(zip(task_names, turn.tolist(), strict=True))}
    if len(found) < len(task_names):
        raise DataError(f"{_file(prompts)}: {len(task_names) - len(found)} rows repeat a task_id and turn")
    return found


def _answers(source: str, outcomes: pa.Table, prices: pa.Table, place: Mapping[tuple[str, int], int]) -> _Answers:
    names = sorted(set(words_of(outcomes, "model", "")))
    price_in, price_out = _prices(prices, names, source)
    grid = _grid(outcomes, place, names, price_in, price_out)
    answered = np.isfinite(grid["quality"]) & np.isfinite(grid["cost_usd"])
    asked = _kept_models(answered)
    notes = [
        f"model {names[k]} has no list price: it has the one that its bills of the training half imply"
        for k in asked
        if np.isnan(price_in[k] + price_out[k])
    ]
    notes += [
        f"model {name} left out: it answered {int(answered[:, k].sum())} of {len(answered)} prompts"
        for k, name in enumerate(names)
        if k not in asked
    ]
    return _Answers(
        models=tuple(names[k] for k in asked),
        usd_in_per_m=price_in[asked],
        usd_out_per_m=price_out[asked],
        grid={name: values[:, asked] for name, values in grid.items()},
        whole=np.asarray(answered[:, asked].all(axis=1), np.bool_),
        notes=tuple(notes),
    )


def _whole_conversations(task_names: list[str], turn: I64, whole: Bools) -> tuple[I64, I64, tuple[str, ...]]:
    """Rows of the conversations without a gap, turn by turn; the task of each; the tasks' names."""
    broken = {task_names[i] for i in np.flatnonzero(~whole)}
    rows = [i for i, name in enumerate(task_names) if name not in broken]
    task_ids = tuple(dict.fromkeys(task_names[i] for i in rows))
    task_at = {name: i for i, name in enumerate(task_ids)}
    kept, task = np.array(rows, np.int64), np.array([task_at[task_names[i]] for i in rows], np.int64)
    order = np.lexsort((turn[kept], task))
    return kept[order], task[order], task_ids


def _kept_models(answered: Bools) -> list[int]:
    """Models to keep, given answers (P, M).

    While too few prompts are answered by all, the model with the fewest answers is dropped.
    """
    kept, wanted = list(range(answered.shape[1])), min(ENOUGH_PROMPTS, len(answered) / 2)
    while len(kept) > 2 and answered[:, kept].all(axis=1).sum() < wanted:
        kept.remove(min(kept, key=lambda k: int(answered[:, k].sum())))
    return kept


def _grid(
    outcomes: pa.Table,
    place: Mapping[tuple[str, int], int],
    names: Sequence[str],
    price_in: F64,
    price_out: F64,
) -> dict[str, F64]:
    """Arrays (P, M) of every model's results, NaN where missing; of several draws the first."""
    model_at = {name: i for i, name in enumerate(names)}
    keys = zip(words_of(outcomes, "task_id", ""), numbers_of(outcomes, "turn", 0.0).astype(int).tolist(), strict=True)
    asked = list(keys)
    row = np.array([place.get(key, -1) for key in asked], np.int64)
    column = np.array([model_at[name] for name in words_of(outcomes, "model", "")], np.int64)
    known = np.flatnonzero(row >= 0)[::-1]  # last to first, so that the first draw wins
    if not len(known):
        named = "; ".join(f"task_id {task!r}, turn {turn}" for task, turn in (*list(place)[:1], *asked[:1]))
        raise DataError(f"{_file(outcomes)}: no row belongs to a prompt of {FILES[0]} (the first of each: {named})")
    quality = numbers_of(outcomes, "quality", np.nan)
    given = quality[np.isfinite(quality)]
    if not len(given):
        raise DataError(f"{_file(outcomes)}: quality: expected numbers from 0 to 1, found none")
    if given.min() < -1e-6 or given.max() > 1 + 1e-6:
        raise DataError(f"{_file(outcomes)}: quality: expected 0 to 1, found {given.min():g} to {given.max():g}")
    in_tok, out_tok = numbers_of(outcomes, "in_tok", np.nan), numbers_of(outcomes, "out_tok", np.nan)
    cost = numbers_of(outcomes, "cost_usd", np.nan)
    cost = np.where(np.isfinite(cost), cost, (in_tok * price_in[column] + out_tok * price_out[column]) * 1e-6)
    billed = cost[np.isfinite(cost)]
    if not len(billed):
        raise DataError(f"{_file(outcomes)}: expected cost_usd, or in_tok and out_tok with prices in {FILES[2]}")
    if billed.min() < 0.0:
        raise DataError(f"{_file(outcomes)}: cost_usd: expected 0 or more, found {billed.min():g}")
    grid = {}
    for name, values in (("quality", quality), ("cost_usd", cost), ("in_tok", in_tok), ("out_tok", out_tok)):
        grid[name] = np.full((len(place), len(names)), np.nan)
        grid[name][row[known], column[known]] = values[known]
    return grid


def _prices(table: pa.Table, names: Sequence[str], source: str) -> tuple[F64, F64]:
    """USD per million input and output tokens of every model, from its first row; NaN where null.

    Raises DataError for a model without a row.
    """
    listed = words_of(table, "model", "")
    missing = [name for name in names if name not in listed]
    if missing:
        raise DataError(
            f"{_file(table)}: {source}: no price for model {missing[0]!r}, which {FILES[1]} has answers of; "
            f"there are {', '.join(dict.fromkeys(listed)) or 'none'}"
        )
    at = [listed.index(name) for name in names]
    price_in, price_out = (numbers_of(table, name, np.nan)[at] for name in ("usd_in_per_m", "usd_out_per_m"))
    for name, prices in (("usd_in_per_m", price_in), ("usd_out_per_m", price_out)):
        if (np.isinf(prices) | (prices < 0.0)).any():
            raise DataError(f"{_file(table)}: {name}: expected numbers from 0, or null, found {prices.tolist()}")
    return price_in, price_out


def completed_prices(cost_usd: F64, tokens: F64, price_in: F64, price_out: F64) -> tuple[F64, F64]:
    """Prices (M,) with missing ones set to what bills (N, M) of these tokens imply.

    `tokens` (2, N, M) are those of input and output.
    Where tokens are known, one price for input and output that gives the same sum as the bills; otherwise a bill is
    NOMINAL_TOKENS. A known price of the two is kept.
    """
    price_in, price_out = price_in.copy(), price_out.copy()
    for k in np.flatnonzero(np.isnan(price_in + price_out)).tolist():
        counted = np.isfinite(tokens[:, :, k]).all(axis=0)
        if tokens[:, counted, k].sum() > 0.0:
            paid, (read, written) = cost_usd[counted, k].sum() * 1e6, tokens[:, counted, k].sum(axis=1)
        else:
            paid, read, written = cost_usd[:, k].sum() * 1e6, 0.0, NOMINAL_TOKENS * len(cost_usd)
        if np.isfinite(price_in[k]):
            price_out[k] = max(paid - price_in[k] * read, 0.0) / max(written, 1.0)
        elif np.isfinite(price_out[k]):
            price_in[k] = max(paid - price_out[k] * written, 0.0) / max(read, NOMINAL_TOKENS)
        else:
            price_in[k] = price_out[k] = paid / max(read + written, 1.0)
    return price_in, price_out


def _embedding(prompts: pa.Table, kept: I64) -> F32 | None:
    """Embeddings (P, E), zero where a prompt has none; None where no prompt has any."""
    if "embedding" not in prompts.column_names:
        return None
    rows: list[Any] = [prompts["embedding"][int(i)].as_py() for i in kept]
    lengths = {len(row) for row in rows if row}
    if not lengths:
        return None
    if len(lengths) > 1:
        raise DataError(f"{_file(prompts)}: embedding: expected one length, found {sorted(lengths)}")
    width = lengths.pop()
    found = np.array([row or [0.0] * width for row in rows], np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"{_file(prompts)}: embedding: expected finite numbers")
    return found


def read_table(path: Path) -> pa.Table:
    """Read a file's rows; the table remembers its file for error messages."""
    try:
        found = pq.read_table(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; a data folder holds {', '.join(FILES)}") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: expected a Parquet file: {reason_of(error)}") from error
    if not found.num_rows:
        raise DataError(f"{path}: expected rows, found none")
    return found.replace_schema_metadata({"file": str(path)})


def _file(table: pa.Table) -> str:
    return str(table.schema.metadata[b"file"].decode())


def require(table: pa.Table, columns: Sequence[str]) -> None:
    """Raise DataError unless the columns exist."""
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise DataError(f"{_file(table)}: no column {missing[0]!r}; there are {', '.join(table.column_names)}")


def of_source(table: pa.Table, source: str) -> pa.Table:
    """Rows of one source and rows without a source."""
    if "source" not in table.column_names:
        return table
    return table.filter(pa.array([name in (None, source) for name in table["source"].to_pylist()], pa.bool_()))


def words_of(table: pa.Table, column: str, missing: str) -> list[str]:
    """A column as text, with `missing` for null."""
    if column not in table.column_names:
        return [missing] * table.num_rows
    return [missing if value is None else str(value) for value in table[column].to_pylist()]


def numbers_of(table: pa.Table, column: str, missing: float) -> F64:
    """A column as numbers, with `missing` for null. Raises DataError for anything else."""
    if column not in table.column_names:
        return np.full(table.num_rows, missing)
    values = table[column].to_pylist()
    try:
        return np.array([missing if value is None else float(value) for value in values], np.float64)
    except (TypeError, ValueError) as error:
        found = next(kind_of(value) for value in values if not isinstance(value, int | float | None))
        raise DataError(f"{_file(table)}: column {column!r}: expected numbers, found {found}") from error


def _replace(graded: Graded, **changes: Any) -> Graded:
    return Graded(**{name: changes.get(name, getattr(graded, name)) for name in Graded.__dataclass_fields__})
