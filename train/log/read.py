"""Reader of the decision log into episodes: the only code that knows the log's rows.

Streamed: every turn is reduced to its numbers, in pages of arrays that are freed as they are placed, so a log is held
once. Sessions are ordered by a hash of their names: the split, and any prefix, are fair samples of tenants and days,
and stay neighbours in memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any, NamedTuple, get_args

import numpy as np
import orjson
from msgspec import structs

from gateway.decisions.trainable import why_not_trained
from gateway.money import NANOUSD_PER_USD
from policy.arrays import I32
from policy.facts import Facts, LoggedColumns, observation_of, unpack
from policy.features import CANDIDATE_DIM, STATE_DIM, Encoded, decode, encode
from policy.mdp import COST_LEVELS, NOT_AFFORDABLE, Observation
from policy.text import HASHED_SPACE, TEXT_DIM
from train.config import LogConfig, TrainConfig
from train.log.episodes import Episodes, blank_episodes, session_fraction
from train.log.reward import Label, LabelKind, Signal, label, second_score
from train.log.source import Log, Score

MS_PER_DAY = 86_400_000
PAGE_TURNS = 4_096
KINDS: tuple[LabelKind, ...] = get_args(LabelKind)


@dataclass(frozen=True)
class LogReport:
    """Summary of a read: labels, and excluded turns by reason. Counts are turns unless named."""

    sessions: int
    turns: int
    excluded: Mapping[str, int]
    labels: Mapping[str, int]
    policies: Mapping[str, int]
    models: Mapping[str, int]
    graded: Mapping[str, float]
    """Share of each model's turns with a grade: very unequal shares suggest selective grading."""
    second_answers: Mapping[str, int]
    """Graded second answers by model."""


def read_episodes(
    log: Log, config: TrainConfig, *, now_ms: int, text_space: int = HASHED_SPACE
) -> tuple[Episodes, LogReport]:
    """Read the training log as a stream of sessions, the newest up to a limit.

    Turns whose text is of another space than `text_space` are read as turns without text.

    The gateway's own turns are no sessions; a second answer gives its grade to the turn that it answered. Excluded and
    counted: turns of operators, embeddings and moderations; turns that are pending, failed, truncated, cancelled or
    orphaned; pinned turns and fallbacks; turns of a later version's log; rows whose facts do not have the declared
    shape; turns of a session beyond `log.max_turns`, or beyond what fits into `log.memory_mb`.
    """
    since_ms = now_ms - int(config.log.since_days * MS_PER_DAY)
    of_turn, of_session = _signals(log.feedback(since_ms, now_ms))
    seconds = {each.of: each for each in log.second_answers(since_ms, now_ms)}
    excluded: Counter[str] = Counter()
    pages = Pages(config.log)
    rows = log.decisions(since_ms, now_ms, config.log.max_sessions)
    for key, group in groupby(rows, key=lambda row: (str(row["tenant_id"]), str(row["session_id"]))):
        together = list(group)
        said_after = _said_after(together)
        roots = (row["root_session_id"] for row in together if row["root_session_id"])
        pages.begin(*key, next(roots, key[1]))
        for row in together:
            reason = why_not_trained(row)
            turn = None if reason else _decode(row, text_space)
            if turn is None:
                excluded[reason or "malformed"] += 1
                continue
            implicit = {**_object(row["signals"]), **said_after.get(row["decision_id"], {})}
            spoken = of_turn.get(row["decision_id"], ())
            scored = label(spoken, of_session.get(key, ()), implicit, config.reward)
            added, second = pages.add(turn, scored), seconds.get(row["decision_id"])
            if added and second is not None:
                score = second_score(scored, spoken, of_turn.get(second.decision_id, ()), config.reward)
                pages.add_second(turn, second.model, score)
    episodes, kinds, dropped = pages.assemble(config.seed)
    if dropped:
        excluded[f"beyond turn {episodes.valid.shape[1]}"] += dropped
    return episodes, _report(episodes, kinds, excluded)


def _report(episodes: Episodes, kinds: I32, excluded: Mapping[str, int]) -> LogReport:
    """kinds (S, T): which kind of label each turn has."""
    chosen = np.take_along_axis(episodes.model, episodes.action[..., None], axis=-1)[..., 0][episodes.valid]
    served = np.bincount(chosen, minlength=len(episodes.models))
    graded = np.bincount(chosen[np.isfinite(episodes.reward[episodes.valid])], minlength=len(episodes.models))
    return LogReport(
        sessions=episodes.sessions,
        turns=episodes.turns,
        excluded=dict(excluded),
        labels=_counts_by_name(KINDS, np.bincount(kinds[episodes.valid], minlength=len(KINDS))),
        policies=_counts_by_name(episodes.policy_ids, np.bincount(episodes.policy[episodes.valid])),
        models=_counts_by_name(episodes.models, served),
        graded={name: int(graded[k]) / int(served[k]) for k, name in enumerate(episodes.models) if served[k]},
        second_answers=_counts_by_name(
            episodes.models,
            np.bincount(episodes.model[np.isfinite(episodes.scores)], minlength=len(episodes.models)),
        ),
    )


def _counts_by_name(names: tuple[str, ...], counts: np.ndarray[Any, Any]) -> dict[str, int]:
    return {name: int(count) for name, count in zip(names, counts, strict=False) if count}


def _signals(scores: Iterable[Score]) -> tuple[dict[str, list[Signal]], dict[tuple[str, str], list[Signal]]]:
    """Feedback by decision, and by session where it is about the whole session."""
    of_turn: dict[str, list[Signal]] = defaultdict(list)
    of_session: dict[tuple[str, str], list[Signal]] = defaultdict(list)
    for score in scores:
        if score.decision_id:
            of_turn[score.decision_id].append(score.signal)
        else:
            of_session[(score.tenant_id, score.session_id)].append(score.signal)
    return of_turn, of_session


_OF_THE_TURN_BEFORE = {"regenerates": "regenerated", "edits": "edited"}
"""Fields of the next turn that are signals on this one, and their names there."""


def _said_after(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """Signals from each decision's next turn."""
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in rows:
        signals = _object(row["signals"])
        for seen, name in _OF_THE_TURN_BEFORE.items():
            if signals.get(seen) and row["previous_decision_id"]:
                found[row["previous_decision_id"]][name] = True
    return found


def _object(text: str) -> Mapping[str, object]:
    value = orjson.loads(text)
    return value if isinstance(value, dict) else {}


class DecodedTurn(NamedTuple):
    """A decoded row of the log. `values` are fields of Episodes, per turn or per candidate."""

    names: list[str]
    policy_id: str
    action: int
    values: Mapping[str, Any]
    second: list[float]
    """Each candidate's probability to answer once more, unseen (gateway/turn/second_draw.py)."""


def observed_turn(row: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> Observation | None:
    """The observation of a logged turn of any version; None for invalid shapes."""
    quantiles = [tuple(c["cost_quantiles_nano_usd"]) for c in candidates]
    if any(len(levels) != len(COST_LEVELS) for levels in quantiles):
        return None
    columns = LoggedColumns(
        names=[candidate["model"] for candidate in candidates],
        cost_quantiles_usd=[tuple(nano / NANOUSD_PER_USD for nano in levels) for levels in quantiles],
        exclusions=["" if c["feasible"] else c["why_not"] or "infeasible" for c in candidates],
        budget_usd=row["session_budget_nanousd"] / NANOUSD_PER_USD,
        remaining_usd=row["remaining_before_nanousd"] / NANOUSD_PER_USD,
        expected_turns=row["expected_turns"],
        lambda_per_usd=row["lambda_per_usd"],
    )
    try:
        return observation_of(facts_of(row), columns)
    except ValueError:
        return None


def encoded_turn(observation: Observation, text_space: int | None = None) -> Encoded | None:
    """A logged turn with present features, without text of another space.

    None if it is not finite.
    """
    if text_space not in (None, observation.text_space):
        observation = structs.replace(observation, text=np.zeros(TEXT_DIM, np.float32))
    try:
        return encode(observation)
    except ValueError:
        return None


def facts_of(row: Mapping[str, Any]) -> Facts:
    """Facts of a logged turn. Raises ValueError when they do not have the declared shape."""
    if row["feature_version"] > 1:
        return unpack(row["features"], row["candidate_features"])
    state = np.frombuffer(row["features"], "<f4")
    flat = np.frombuffer(row["candidate_features"], "<f4")
    if state.size != STATE_DIM:
        raise ValueError(f"expected {STATE_DIM} features of the session, got {state.size}")
    return decode(state, flat.reshape(-1, CANDIDATE_DIM))


def _decode(row: Mapping[str, Any], text_space: int) -> DecodedTurn | None:
    """Decode a turn; None when its facts do not have the declared shape."""
    candidates = orjson.loads(row["candidates"])
    count, action = len(candidates), row["action"]
    if not 0 <= action < count or candidates[action]["model"] != row["model"]:
        return None
    observation = observed_turn(row, candidates)
    encoded = None if observation is None else encoded_turn(observation, text_space)
    if observation is None or encoded is None:
        return None
    values = {
        "state": encoded.state,
        "candidates": encoded.candidates,
        "cost_quantiles_usd": encoded.cost_quantiles_usd,
        "offered": encoded.mask,
        "mask": [c["feasible"] or c["why_not"] == NOT_AFFORDABLE for c in candidates],
        "probabilities": [candidate["probability"] or 0.0 for candidate in candidates],
        "prior_quality": [_number(candidate["quality"]) for candidate in candidates],
        "action": action,
        "propensity": row["propensity"],
        "cost_usd": row["cost_nanousd"] / NANOUSD_PER_USD,
        "remaining_usd": row["remaining_before_nanousd"] / NANOUSD_PER_USD,
        "budget_usd": row["session_budget_nanousd"] / NANOUSD_PER_USD,
        "lambda_per_usd": row["lambda_per_usd"],
        "expected_turns": row["expected_turns"] or 0,
        "route": observation.route,
        **{
            name: _number(row[name]) if row["usage_source"] == "reported" else float("nan")
            for name in ("output_tokens", "cached_tokens")
        },
    }
    names = [candidate["model"] for candidate in candidates]
    return DecodedTurn(names, row["policy_id"], action, values, [c.get("second") or 0.0 for c in candidates])


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


OF_CANDIDATES = frozenset({
    "candidates", "cost_quantiles_usd", "mask", "offered", "model", "prior_quality", "probabilities", "scores",
    "bills_usd",
})  # fmt: skip
"""Fields of Episodes with an axis of candidates, whose number differs between turns."""


@dataclass
class Page:
    """Up to a fixed number of turns as one-turn episodes, with session and position of each."""

    turns: Episodes
    session: I32
    place: I32
    kind: I32
    filled: int = 0

    def fits(self, turn: DecodedTurn) -> bool:
        """Tell whether the page has room for the turn."""
        return self.filled < len(self.session) and len(turn.names) <= self.turns.mask.shape[-1]


@dataclass
class Pages:
    """The turns read so far. Names of models and policies are numbered in order of appearance.

    A turn beyond the limit of turns per session is dropped at once, because the limit only shrinks with every session.
    """

    limits: LogConfig
    names: list[tuple[str, str]] = field(default_factory=list)
    """(tenant, session) of every started session."""
    roots: list[str] = field(default_factory=list)
    """The topmost session of each one's tree."""
    pages: list[Page] = field(default_factory=list)
    models: dict[str, int] = field(default_factory=dict)
    policies: dict[str, int] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    sessions: int = 0
    """Started sessions that have a turn."""
    dropped: int = 0
    turn_bytes: int = 1
    """Bytes of a padded turn, at the most candidates seen."""

    def begin(self, tenant_id: str, session_id: str, root_id: str) -> None:
        """Start a session: the turns added next belong to it."""
        self.names.append((tenant_id, session_id))
        self.roots.append(root_id)
        self.lengths.append(0)

    def room(self) -> int:
        """Current limit of turns per session, at least one, for arrays within `memory_mb`."""
        fitting = int(self.limits.memory_mb * 1e6 / (max(self.sessions, 1) * self.turn_bytes))
        return max(1, min(self.limits.max_turns, fitting))

    def add(self, turn: DecodedTurn, scored: Label) -> bool:
        """Add a turn with its label to the current session; False: it does not fit."""
        if self.lengths[-1] and self.lengths[-1] >= self.room():
            self.dropped += 1
            return False
        page = self._page_for(turn)
        at, e = page.filled, page.turns
        page.session[at], page.place[at] = len(self.names) - 1, self.lengths[-1]
        page.kind[at] = KINDS.index(scored.kind)
        count = len(turn.names)
        for name, value in turn.values.items():
            array = getattr(e, name)
            if name in OF_CANDIDATES:
                array[at, 0, :count] = value
            else:
                array[at, 0] = value
        e.model[at, 0, :count] = [self.models.setdefault(name, len(self.models)) for name in turn.names]
        e.policy[at, 0] = self.policies.setdefault(turn.policy_id, len(self.policies))
        e.mask[at, 0, turn.action] = e.offered[at, 0, turn.action] = True
        e.probabilities[at, 0, turn.action] = turn.values["propensity"]
        e.reward[at, 0], e.implied[at, 0] = scored.score, scored.implied
        page.filled += 1
        self.sessions += not self.lengths[-1]
        self.lengths[-1] += 1
        return True

    def add_second(self, turn: DecodedTurn, model: str, score: float) -> None:
        """Add the grade of the last turn's second answer, if this model could give one."""
        page = self.pages[-1]
        for k, chance in enumerate(turn.second):
            if turn.names[k] == model and chance > 0.0 and k != turn.action:
                page.turns.scores[page.filled - 1, 0, k] = score

    def _page_for(self, turn: DecodedTurn) -> Page:
        """The last page, or a new one when it is full or too narrow."""
        if not self.pages or not self.pages[-1].fits(turn):
            blank = blank_episodes((), (), (), (), (PAGE_TURNS, 1, len(turn.names), STATE_DIM, CANDIDATE_DIM))
            where = [np.zeros(PAGE_TURNS, np.int32) for _ in range(3)]
            self.pages.append(Page(blank, where[0], where[1], where[2]))
            self.turn_bytes = max(self.turn_bytes, bytes_of(blank) // PAGE_TURNS)
        return self.pages[-1]

    def assemble(self, seed: int) -> tuple[Episodes, I32, int]:
        """Build (episodes, label kinds (S, T), number of dropped turns), freeing pages on the way."""
        models, policy_ids = tuple(sorted(self.models)), tuple(sorted(self.policies))
        kept = [i for i, length in enumerate(self.lengths) if length]
        kept.sort(key=lambda i: (session_fraction(*self.names[i], seed), *self.names[i]))
        row_of = np.zeros(len(self.names), np.int32)
        row_of[kept] = np.arange(len(kept))
        k = max((page.turns.mask.shape[-1] for page in self.pages), default=1)
        t = min(max((self.lengths[i] for i in kept), default=1), self.room())
        e = blank_episodes(
            (self.names[i][1] for i in kept), (self.names[i][0] for i in kept), models, policy_ids,
            (len(kept), t, k, STATE_DIM, CANDIDATE_DIM), root_ids=(self.roots[i] for i in kept),
        )  # fmt: skip
        kinds = np.zeros((len(kept), t), np.int32)
        renumbered = (_renumber(self.models, models), _renumber(self.policies, policy_ids))
        dropped = self.dropped
        while self.pages:
            page = self.pages.pop()
            here = page.place[: page.filled] < t
            rows, places = row_of[page.session[: page.filled][here]], page.place[: page.filled][here]
            _place(e, page.turns, np.flatnonzero(here), rows, places, *renumbered)
            kinds[rows, places] = page.kind[: page.filled][here]
            dropped += int(page.filled - len(rows))
        return e, kinds, dropped


def _place(e: Episodes, page: Episodes, chosen: Any, rows: I32, places: I32, models: I32, policies: I32) -> None:
    """Copy the `chosen` turns of a page to their positions in the episodes."""
    for item in fields(page):
        value = getattr(page, item.name)
        if not isinstance(value, np.ndarray):
            continue
        target, source = getattr(e, item.name), value[chosen, 0]
        if item.name == "model":
            source = np.where(source >= 0, models[source], -1)
        if item.name == "policy":
            source = policies[source]
        if item.name in OF_CANDIDATES:
            target[rows, places, : source.shape[1]] = source
        else:
            target[rows, places] = source
    e.valid[rows, places] = True


def _renumber(met: Mapping[str, int], names: tuple[str, ...]) -> I32:
    """Map numbers in order of appearance to positions among the sorted names."""
    found = np.zeros(max(len(names), 1), np.int32)
    for place, name in enumerate(names):
        found[met[name]] = place
    return found


def bytes_of(episodes: Episodes) -> int:
    """Memory of the arrays, in bytes."""
    arrays = (getattr(episodes, item.name) for item in fields(episodes))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
