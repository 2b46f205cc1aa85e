"""Replay's live inputs are the gateway's: the same code makes them, and one turn is shown alike by both."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.live import Configuration
from gateway.catalog.models import Model
from gateway.catalog.tokens import PromptTokens
from gateway.config.settings import Settings
from gateway.dialects.message_digests import messages_digest
from gateway.ledger.types import Balance
from gateway.metrics import Metrics
from gateway.money import NANOUSD_PER_USD
from gateway.routing.exploration import ExplorationBudget
from gateway.routing.guard import Eligibility
from gateway.routing.observe import Observer
from gateway.routing.router import Router
from gateway.routing.session import SessionMemory, WarmPrefix
from gateway.turn.context import RoutingDecision, TurnContext
from gateway.turn.decide import Decider, Estimator
from gateway.turn.funds import AvailableFunds
from gateway.turn.waiting import HeldMoney
from policy.features import Horizon, encode
from policy.reload import CheckpointRef, LoadedPolicy, ServingPolicies
from policy.rules import Cheapest
from tests.gateway.turn.turns import context as turn_context
from tests.gateway.turn.turns import session_row
from tests.harness.models import catalog
from tests.train.replay.folders import MODELS, USD_OUT_PER_M, write_folder
from train.replay.compose import compose, group_difficulty
from train.replay.dataset import Graded, read_folder
from train.replay.live import (
    Forecaster,
    LiveVectors,
    answer_tokens,
    as_billed,
    bodies,
    catalogue_models,
    forecaster,
    live_bills,
    live_vectors,
)
from train.replay.predict import predict
from train.replay.served import CONTEXT_LIMIT_TOKENS, SECONDS_BETWEEN_TURNS, observation
from train.replay.simulator import NO_CONTEXT, Context, SessionBatch, Turn, make_board, play
from train.replay.split import Halves, halves

REPLAY = Path(__file__).parents[3] / "train" / "replay"
HORIZON = Horizon((0.1, 0.2))
GROWING = Context(4000, 250, 0.1)
AT_MS = round(SECONDS_BETWEEN_TURNS * 1000)
TASKS = 400


def hard_answers_are_long(folder: Path) -> Graded:
    """Text tells the length of the answer: cities in 20 tokens, sums in 300, give or take a fifth."""
    generator = np.random.default_rng(1)
    out = [int((300 if task % 2 else 20) * generator.uniform(0.8, 1.2)) for task in range(TASKS) for _ in MODELS]
    bills = [tokens * USD_OUT_PER_M[MODELS[i % 3]] * 1e-6 for i, tokens in enumerate(out)]
    (graded,) = read_folder(write_folder(folder, tasks=TASKS, out_tok=out, cost_usd=bills))
    prices = np.array([2.0, 1.0, 0.5])
    read_usd = np.full((graded.prompts, 1), 15.0) * prices * 1e-6
    return replace(graded, usd_in_per_m=prices, cost_usd=graded.cost_usd + read_usd)


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Graded:
    return hard_answers_are_long(tmp_path_factory.mktemp("lengths"))


@pytest.fixture(scope="module")
def split(graded: Graded) -> Halves:
    return halves(graded, 0)


@pytest.fixture(scope="module")
def seen(graded: Graded, split: Halves) -> LiveVectors:
    return live_vectors(graded, split.training)


@pytest.fixture(scope="module")
def known(graded: Graded, split: Halves, seen: LiveVectors) -> Forecaster:
    return forecaster(graded, seen, answer_tokens(graded, seen.tokens), split.training, 0, True)


@pytest.fixture(scope="module")
def sessions(graded: Graded, split: Halves, seen: LiveVectors) -> SessionBatch:
    predictions = predict(graded, seen, live_bills(graded, seen, split.training, 0), split.training, 0)
    drawn = compose(
        graded, split.test, group_difficulty(graded, split.training, 2),
        sessions=12, turns=4, generator=np.random.default_rng(0),
    )  # fmt: skip
    return make_board(graded, predictions, drawn)


def gateway_decider(known: Forecaster) -> Decider:
    """The gateway's own decision path, with what a night on the training half would have taught it."""
    settings = Settings(models=())
    configuration = Configuration(settings, catalog())
    champion = LoadedPolicy(Cheapest(), CheckpointRef("cheapest-1"), {}, known.head)
    return Decider(
        estimator=Estimator(
            configuration=lambda: configuration, forecast=known.forecast, breaker=known.breaker, held=HeldMoney()
        ),
        observer=Observer(),
        router=Router(
            lambda: settings.policy, champion, lambda: ServingPolicies(champion), monotonic=lambda: 0.0,
            on_fault=lambda: None,
        ),
        exploring=ExplorationBudget(lambda: 0, lambda: 0.0),
        metrics=Metrics(), clock=lambda: 0.0, uniform=lambda: 0.5,
    )  # fmt: skip


def priced(model: Model, cached_price: float) -> Model:
    """The model with its cached price and the context limit that replay shows."""
    cached = round(model.prices.input_femtousd * cached_price)
    return replace(
        model, prices=replace(model.prices, cached_input_femtousd=cached), max_input_tokens=CONTEXT_LIMIT_TOKENS
    )


def as_the_gateway_has_it(turn: Turn, n: int, seen: LiveVectors, models: list[Model]) -> TurnContext:
    """The context of one turn of replay, as the gateway prepares it."""
    board = turn.board
    prompt = int(board.sessions.rows[turn.at[n], turn.index])
    read, warm = board.context.tokens(turn.index), board.context.warm_tokens(turn.index)
    last = board.models[turn.last[n]] if turn.last[n] >= 0 else None
    prefix = {last: WarmPrefix(0, messages_digest([]), warm, 0)} if last and warm else {}
    memory = SessionMemory(
        last_model=last,
        last_at_ms=0 if turn.index else None,
        tokens_so_far=int(turn.tokens_so_far[n]),
        warm=prefix,
    )
    row = session_row(
        Balance(10**12, 0, 0), turns=turn.index, expected_turns=int(turn.declared[n]) or None, memory="{}"
    )
    made = turn_context(models[0], row=row, memory=memory)
    return structs.replace(
        made,
        chat=seen.requests[prompt],
        prompt=seen.counted[prompt] + PromptTokens(read, read),
        options=[Eligibility(model, (), "") for model in models],
        started_ms=AT_MS,
    )


@pytest.mark.parametrize("context", [NO_CONTEXT, GROWING])
def test_replay_and_the_gateway_show_one_turn_alike(
    graded: Graded, split: Halves, seen: LiveVectors, known: Forecaster, sessions: SessionBatch, context: Context
) -> None:
    """State, candidates, cost quantiles and mask, of every turn; tight budgets exclude models."""
    assert known.head is not None
    decider = gateway_decider(known)
    models = [priced(model, context.cached_price) for model in catalogue_models(graded, split.training)]
    offered = []

    def comparing(turn: Turn) -> np.ndarray:
        for n in range(len(turn.at)):
            left = int(turn.remaining_usd[n] * NANOUSD_PER_USD)
            funds = AvailableFunds(left, "session", left)
            found = decider.decide(as_the_gateway_has_it(turn, n, seen, models), funds, patient=False)
            assert isinstance(found, RoutingDecision)
            theirs, ours = encode(found.observation), encode(observation(turn, n, seen))
            assert ours.state == pytest.approx(theirs.state, rel=1e-6, abs=1e-6)
            assert ours.candidates == pytest.approx(theirs.candidates, rel=1e-5, abs=1e-6)
            assert ours.cost_quantiles_usd == pytest.approx(theirs.cost_quantiles_usd, rel=1e-5)
            assert ours.mask.tolist() == theirs.mask.tolist()
            offered.append(tuple(ours.mask.tolist()))
        return np.asarray(np.argmin(np.where(turn.mask, turn.mean_usd, np.inf), axis=1))

    budget = 4 * sessions.cost_usd.mean(axis=(0, 1))[0] * np.geomspace(0.002, 1.0, 12)
    board = sessions.within(context)
    play(board, comparing, budget + 4 * context.tokens(4) * 0.5e-6, "cut", HORIZON, 3)
    assert len(set(offered)) > 1


def test_the_nightly_head_tells_long_answers_from_short_ones(
    graded: Graded, split: Halves, sessions: SessionBatch
) -> None:
    hard = graded.group[sessions.sessions.rows] == 1
    expected = sessions.output_tokens
    assert expected[hard].mean() > 3.0 * expected[~hard].mean()


def test_without_the_head_every_prompt_has_the_models_own_distribution(
    graded: Graded, split: Halves, seen: LiveVectors
) -> None:
    bills = live_bills(graded, seen, split.training, 0, learned=False)
    test = bills.output_tokens[split.test]
    assert np.ptp(test, axis=0).max() == 0.0


def test_a_model_without_answers_has_the_gateways_forecast_from_the_others(
    graded: Graded, split: Halves, seen: LiveVectors, known: Forecaster
) -> None:
    bills = live_bills(graded, seen, split.training, 0)
    assert bills.unseen_usd is not None
    i = int(split.test[0])
    forecast = OutputForecast()
    answers = answer_tokens(as_billed(graded, split.training), seen.tokens)
    for n in np.random.default_rng(0).permutation(split.training).tolist():
        for k in (1, 2):
            forecast.observe(graded.models[k], round(answers[n, k]))
    fresh = Forecaster(forecast, None, known.breaker)
    model = catalogue_models(graded, split.training)[0]
    expected = fresh.estimate(seen, i, model, {}).view.cost_quantiles_usd
    assert bills.unseen_usd[i, 0].tolist() == pytest.approx(list(expected))


def test_an_answers_length_is_what_its_bill_pays_for(graded: Graded) -> None:
    tokens = np.full(graded.prompts, 15.0)
    assert answer_tokens(graded, tokens) == pytest.approx(graded.out_tokens, abs=1.0)


def test_a_model_that_bills_far_below_its_list_price_is_priced_by_its_bills(graded: Graded, split: Halves) -> None:
    cheap = replace(graded, cost_usd=graded.cost_usd * np.array([0.1, 1.0, 1.0]))
    billed = as_billed(cheap, split.training)
    assert billed.usd_out_per_m[0] == pytest.approx(10.0, rel=0.05)
    assert billed.usd_out_per_m[1:].tolist() == [10.0, 1.0]
    assert as_billed(graded, split.training).usd_out_per_m.tolist() == [100.0, 10.0, 1.0]


def test_a_later_turn_is_asked_after_its_conversation(tmp_path: Path) -> None:
    (talk,) = read_folder(write_folder(tmp_path, tasks=12, turns=2))
    asked = [json.loads(body)["messages"] for body in bodies(talk)]
    later = int(np.flatnonzero(talk.turn == 1)[0])
    first = int(np.flatnonzero((talk.task == talk.task[later]) & (talk.turn == 0))[0])
    assert [message["role"] for message in asked[later]] == ["user", "assistant", "user"]
    assert asked[later][0]["content"] == talk.text[first]
    assert asked[later][2]["content"] == talk.text[later]
    assert [message["role"] for message in asked[first]] == ["user"]


@pytest.mark.parametrize(("content", "kind"), [("text", "text"), ("embedding", "embedding"), ("none", "lengths")])
def test_a_withheld_text_is_known_by_its_embedding_or_its_length_and_no_group_is_told(
    tmp_path: Path, content: str, kind: str
) -> None:
    (found,) = read_folder(write_folder(tmp_path, content=content))
    shown = live_vectors(found, halves(found, 0).training)
    assert (shown.kind, shown.groups) == (kind, 1)
    means = [shown.text[found.group == g].mean(axis=0) for g in (0, 1)]
    apart = np.linalg.norm(means[0] - means[1])
    assert apart > 0.3 if kind != "lengths" else apart < 0.2


# Only two files may make inputs, and the live ones only by the gateway's code.

MATH = {f"np.{name}" for name in ("log", "log1p", "exp", "expm1", "sqrt", "quantile", "percentile")}
TEXT_FEATURES = {"embed", "embed_conversation", "stats", "STAT_NAMES"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(REPLAY.glob("*.py")):
        yield file.stem, ast.parse(file.read_text(encoding="utf-8"))


def calls(tree: ast.AST) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imported(tree: ast.AST, source: str) -> set[str]:
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == source
        for alias in node.names
    }


def test_features_of_text_are_made_by_the_gateway_but_for_the_richer_column() -> None:
    users = {name for name, tree in modules() if imported(tree, "policy.text") & TEXT_FEATURES}
    assert users == {"richer"}


def test_only_two_files_of_replay_make_inputs() -> None:
    makers = {name for name, tree in modules() if {"Vectors", "LiveVectors", "Bills"} & set(calls(tree))}
    assert makers == {"live", "richer"}


def test_what_makes_and_shows_live_inputs_computes_none_of_its_own() -> None:
    """One logarithm is left: the lengths of answers, as the head's fit wants them."""
    found = {name: [call for call in calls(tree) if call in MATH] for name, tree in modules()}
    assert found["live"] == ["np.log"]
    assert found["served"] == found["inputs"] == found["vectors"] == []
