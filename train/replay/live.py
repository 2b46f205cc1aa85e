"""Inputs as the gateway has them: its features, forecasts of bills, and least holds.

Every prompt is put as a request to the gateway, after the earlier turns of its own conversation. What follows is the
path of a turn (gateway/turn/decide.py): `Observer.observe` makes the features, the nightly head of answer lengths or
the gateway's own forecast the quantiles of the answer, `estimate` the quantiles of the bill and the least hold.

Three things are replay's. Answers that the data hold are known by their length alone, as is a text that they withhold,
for which the embedding stands in where there is one. An answer's length is what its bill pays for beside the prompt at
the list price: of an agent's whole session, everything after the prompt. And the head is fitted without the length of
the context, which differs between cells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import orjson
from msgspec import structs

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.models import Model
from gateway.catalog.prices import Prices
from gateway.catalog.tokens import PromptTokens, TokenCounter
from gateway.config.settings import LimitSettings, RouterSettings
from gateway.dialects.request import ChatRequest, parse_chat
from gateway.ledger.types import Balance
from gateway.money import NANOUSD_PER_USD
from gateway.providers.cooldown import Breaker
from gateway.routing.estimates import Estimate, TurnTerms, estimate
from gateway.routing.guard import AUTO, Eligibility
from gateway.routing.observe import Observer
from gateway.routing.session import SessionMemory
from policy.answer_lengths import AnswerLengths
from policy.arrays import F32, F64, I64
from policy.features import encode_turn
from policy.mdp import COST_LEVELS, Observation
from policy.text import HASHED, TEXT_DIM, TextSpace
from train.fit.answer_lengths import Lengths, fit_answer_lengths
from train.replay.dataset import Graded
from train.replay.predict import Bills, folds_of_tasks
from train.replay.vectors import Vectors, project_directions, unit_rows

FOLDS = 3
"""Parts of the training half whose answers are forecast by the others': each costs a fit of the head."""
FILLER = "word "
"""Stands for a token of a text that the data withhold."""
LONGEST_TOKENS = 10**9
"""Some sources' turns are whole sessions of an agent, longer than any model's context."""
DISCOUNTED = 0.5
"""Bills below this share of the list price are those of a discount, which an operator would have configured."""
FEMTOUSD_PER_USD_PER_M = 10**9
"""Femto-USD per token at one USD per million tokens."""


@dataclass(frozen=True)
class LiveVectors(Vectors):
    """Vectors with the requests behind them, their counted lengths, and states for the head."""

    requests: tuple[ChatRequest, ...]
    counted: tuple[PromptTokens, ...]
    state: F32  # (P, STATE_DIM)


@dataclass(frozen=True)
class Forecaster:
    """A gateway's knowledge of its models' answers: those it saw, and the nightly head."""

    forecast: OutputForecast
    head: AnswerLengths | None
    breaker: Breaker

    def lengths(self, seen: LiveVectors, i: int) -> Mapping[str, tuple[float, ...]]:
        """The head's quantiles of the answers to prompt i, by model."""
        return self.head.by_model(seen.state[i]) if self.head is not None else {}

    def estimate(self, seen: LiveVectors, i: int, model: Model, lengths: Mapping[str, tuple[float, ...]]) -> Estimate:
        """The gateway's estimate of prompt i on a model, with no money left.

        Its hold is then the least with which the model is offered.
        """
        terms = TurnTerms(
            chat=seen.requests[i],
            memory=SessionMemory(),
            prompt=seen.counted[i],
            at_ms=0,
            available_nanousd=0,
            over_budget="degrade",
        )
        option = Eligibility(model, model.deployments, "")
        return estimate(option, terms, self.forecast, self.breaker, lengths.get(model.name))


def live_vectors(graded: Graded, training: I64, space: TextSpace = HASHED) -> LiveVectors:
    """The gateway's features of every prompt.

    An embedding stands in for the text where there is none at all.
    """
    requests = tuple(parse_chat(body, LimitSettings()) for body in bodies(graded))
    observer = Observer(space)
    turns = [observe(observer, chat) for chat in requests]
    counted = count(requests, graded)
    kind = "text" if any(graded.text) else "lengths"
    text = np.stack([turn.text for turn in turns])
    if kind != "text" and graded.embedding is not None:
        kind, text = "embedding", project_directions(unit_rows(graded.embedding), training, TEXT_DIM)
    shown = [structs.replace(turn, text=row) for turn, row in zip(turns, text, strict=True)]
    return LiveVectors(
        text=text,
        stats=np.stack([turn.text_stats for turn in turns]),
        content=text if kind != "lengths" else None,
        kind=kind,
        tokens=np.array([prompt.estimate for prompt in counted], np.float64),
        group=np.zeros(graded.prompts, np.int64),
        groups=1,
        route=np.array([turn.route for turn in turns], np.int64),
        requests=requests,
        counted=counted,
        state=np.stack([encode_turn(turn, 0, len(graded.models)) for turn in shown]),
    )


def live_bills(graded: Graded, seen: LiveVectors, training: I64, seed: int, *, learned: bool = True) -> Bills:
    """The gateway's forecast of every bill.

    Out of fold on the training half, by all of it on the other. Without `learned` there is no head: every model's own
    distribution is all that is known.
    """
    graded = as_billed(graded, training)
    models, answers = catalogue_models(graded, training), answer_tokens(graded, seen.tokens)
    shape = (graded.prompts, len(models))
    quantiles_usd, unseen_usd = np.zeros((*shape, len(COST_LEVELS))), np.zeros((*shape, len(COST_LEVELS)))
    least_usd, output_tokens = np.zeros(shape), np.zeros(shape)
    for rows, learned_from in parts(graded, training, seed):
        known = forecaster(graded, seen, answers, learned_from, seed, learned)
        ignorant = [without(known, graded, answers, learned_from, k, seed) for k in range(len(models))]
        for i in rows.tolist():
            lengths = known.lengths(seen, i)
            for k, model in enumerate(models):
                found = known.estimate(seen, i, model, lengths)
                quantiles_usd[i, k] = found.view.cost_quantiles_usd
                least_usd[i, k] = found.hold_nanousd / NANOUSD_PER_USD
                output_tokens[i, k] = found.view.output_tokens_mean
                unseen_usd[i, k] = ignorant[k].estimate(seen, i, model, {}).view.cost_quantiles_usd
    return Bills(quantiles_usd, least_usd, output_tokens, unseen_usd)


def parts(graded: Graded, training: I64, seed: int) -> Iterator[tuple[I64, I64]]:
    """Pairs (prompts to forecast, prompts whose answers were seen).

    The test half, and each fold of the training half.
    """
    yield np.setdiff1d(np.arange(graded.prompts), training), training
    fold = folds_of_tasks(graded, seed, FOLDS)[training]
    for f in np.unique(fold):
        yield training[fold == f], training[fold != f]


def forecaster(
    graded: Graded, seen: LiveVectors, answers: F64, learned_from: I64, seed: int, learned: bool
) -> Forecaster:
    """A gateway after a night that learned from these prompts' answers."""
    every = list(range(len(graded.models)))
    return Forecaster(
        observed(graded, answers, learned_from, every, seed),
        head_of(graded, seen, answers, learned_from, seed) if learned else None,
        Breaker(lambda: 0.0, RouterSettings),
    )


def without(known: Forecaster, graded: Graded, answers: F64, learned_from: I64, model: int, seed: int) -> Forecaster:
    """A gateway that saw every answer but this model's."""
    others = [k for k in range(len(graded.models)) if k != model]
    return replace(known, forecast=observed(graded, answers, learned_from, others, seed), head=None)


def observed(graded: Graded, answers: F64, learned_from: I64, models: Sequence[int], seed: int) -> OutputForecast:
    """The gateway's forecast after these prompts' answers by these models, in random order."""
    forecast = OutputForecast()
    for i in np.random.default_rng(seed).permutation(learned_from).tolist():
        for k in models:
            forecast.observe(graded.models[k], round(answers[i, k]))
    return forecast


def head_of(graded: Graded, seen: LiveVectors, answers: F64, learned_from: I64, seed: int) -> AnswerLengths | None:
    """The head that a night would publish from these prompts' answers; None if it does not help."""
    models = len(graded.models)
    turns = Lengths(
        state=np.repeat(seen.state[learned_from], models, axis=0),
        model=np.tile(np.arange(models), len(learned_from)),
        log_tokens=np.log(answers[learned_from]).ravel(),
        session=np.repeat(graded.task[learned_from], models),
    )
    return fit_answer_lengths(turns, graded.models, seed)[0]


def as_billed(graded: Graded, training: I64) -> Graded:
    """The source with prices lowered to the bills where these are less than DISCOUNTED."""
    read_usd = graded.n_tokens[training].sum() * graded.usd_in_per_m * 1e-6
    listed_usd = read_usd + graded.out_tokens[training].sum(axis=0) * graded.usd_out_per_m * 1e-6
    share = graded.cost_usd[training].sum(axis=0) / np.where(listed_usd > 0.0, listed_usd, np.inf)
    share = np.where((share > 0.0) & (share < DISCOUNTED), share, 1.0)
    return replace(graded, usd_in_per_m=graded.usd_in_per_m * share, usd_out_per_m=graded.usd_out_per_m * share)


def answer_tokens(graded: Graded, prompt_tokens: F64) -> F64:
    """Length of every answer by its bill at the list price, (P, M), at least one token."""
    price = graded.usd_out_per_m * 1e-6
    beside = graded.cost_usd - prompt_tokens[:, None] * graded.usd_in_per_m * 1e-6
    billed = np.where(price > 0.0, beside / np.where(price > 0.0, price, 1.0), graded.out_tokens)
    return np.asarray(np.maximum(np.round(billed), 1.0))


def catalogue_models(graded: Graded, training: I64) -> list[Model]:
    """The source's models as the gateway's catalogue would hold them."""
    return [
        Model(
            name=name,
            mode="chat",
            prices=Prices(round(usd_in * FEMTOUSD_PER_USD_PER_M), round(usd_out * FEMTOUSD_PER_USD_PER_M)),
            max_input_tokens=LONGEST_TOKENS,
            max_output_tokens=LONGEST_TOKENS,
            capabilities=frozenset(),
            quality_prior=float(prior),
            deployments=(),
        )
        for name, usd_in, usd_out, prior in zip(
            graded.models,
            graded.usd_in_per_m.tolist(),
            graded.usd_out_per_m.tolist(),
            graded.quality[training].mean(axis=0).tolist(),
            strict=True,
        )
    ]


def bodies(graded: Graded) -> Iterator[bytes]:
    """The request of every prompt, with the earlier turns of its own conversation."""
    first: dict[tuple[int, int], int] = {}
    for i, place in enumerate(zip(graded.task.tolist(), graded.turn.tolist(), strict=True)):
        first.setdefault(place, i)
    for i in range(graded.prompts):
        task, turn = int(graded.task[i]), int(graded.turn[i])
        earlier = [first[task, j] for j in range(turn) if (task, j) in first]
        messages = []
        for j in earlier:
            answer = FILLER * max(round(float(graded.out_tokens[j].mean())), 1)
            messages += [{"role": "user", "content": text_of(graded, j)}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": text_of(graded, i)})
        yield orjson.dumps({"model": AUTO, "messages": messages})


def text_of(graded: Graded, i: int) -> str:
    """A prompt's text, or a filler of its length."""
    return graded.text[i] or FILLER * round(float(graded.n_chars[i]) / len(FILLER))


def observe(observer: Observer, chat: ChatRequest) -> Observation:
    """The gateway's observation of a request, before money and candidates."""
    return observer.observe(
        chat,
        SessionMemory(),
        None,
        Balance(0, 0, 0),
        budget_nanousd=0,
        left_nanousd=0,
        expected_turns=None,
        lambda_per_usd=0.0,
        at_ms=0,
    )


def count(requests: Sequence[ChatRequest], graded: Graded) -> tuple[PromptTokens, ...]:
    """The gateway's count of every request; of a withheld text the data's own."""
    return asyncio.run(_count(requests, graded))


async def _count(requests: Sequence[ChatRequest], graded: Graded) -> tuple[PromptTokens, ...]:
    counter, found = TokenCounter(), []
    try:
        for i, chat in enumerate(requests):
            if graded.text[i]:
                found.append(await counter.count(chat.messages, chat.params))
            else:
                found.append(PromptTokens(round(float(graded.n_tokens[i])), round(float(graded.n_tokens[i]))))
    finally:
        await counter.close()
    return tuple(found)
