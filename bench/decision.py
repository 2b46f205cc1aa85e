"""Latency of a decision: `python -m bench.decision [--candidates 8] [--rounds 2000]`.

Times each part on one thread, in milliseconds: text features, encoding, the default rule, the learned policy with the
network at its served size, without and with a conversation that a prompt cache holds. Targets: a decision under .5 ms
without text, under 1 ms with it. As `seqroute serve` does, run it with OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from msgspec import structs

from policy import features, text
from policy.answer_lengths import AnswerLengths
from policy.catalogue_statistics import CatalogueStatistics
from policy.exploration import Exploration
from policy.fallback import WithFallback, check_decision
from policy.kernel import KernelQuality
from policy.mdp import COST_LEVELS, Observation
from policy.network_policy import NetworkPolicy
from policy.planned import Planner
from policy.reload import pretrained, synthetic_observation
from policy.rules import ReSolving, TunedLambda
from policy.valuetable import ValueTable

SHORT = "Write a Python function that merges two sorted lists, and explain why it is linear. " * 2
LONG = "The quick brown fox jumps over 13 lazy dogs; def f(x): return x + 1. Why? " * 30


def learned(exploration: Exploration, planner: Planner) -> Callable[[Observation], object]:
    """The network as published nightly: with the planner's reward model and model statistics."""
    shipped, quality = pretrained(exploration).policy, planner.quality
    assert isinstance(shipped, NetworkPolicy)
    assert isinstance(quality, KernelQuality)
    m, f32 = len(quality.models), np.float32
    columns = [np.linspace(0.1, 0.9, m).astype(f32)] * 5
    answers, margin = np.ones((m + 1, len(COST_LEVELS)), f32), np.zeros(m + 1, f32)
    statistics = CatalogueStatistics(quality.models, *[*columns, answers, margin, np.full(1, 250.0, f32)])
    policy = replace(shipped, quality=quality, statistics=statistics)
    guarded = WithFallback(policy, ReSolving(), deadline_s=1.0, clock=time.perf_counter)
    return lambda observation: guarded.decide(observation, 0.5)


def fresh(exploration: Exploration) -> Callable[[Observation], object]:
    """The shipped network, as a fresh install serves it."""
    policy = pretrained(exploration).policy
    return lambda observation: policy.decide(observation, 0.5)


def planned(exploration: Exploration, candidates: int) -> Planner:
    """The planner at default sizes: 512 landmarks, 16 turns, 40 budgets, 5 contexts, 4 lambdas."""
    names, r = tuple(f"model-{k}" for k in range(candidates)), 512
    f32 = np.float32
    quality = KernelQuality(
        models=names,
        centre=np.zeros(features.STATE_DIM, f32),
        scale=np.ones(features.STATE_DIM, f32),
        landmarks=np.random.default_rng(0).standard_normal((r, features.STATE_DIM)).astype(f32),
        width=np.full(1, 100.0, f32),
        means=np.full(candidates, 0.5, f32),
        weights=np.zeros((r, candidates + 1), f32),
        offset=np.zeros(candidates + 1, f32),
    )
    budgets_usd = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 39)])
    values = np.broadcast_to(budgets_usd, (4, 5, candidates + 1, 17, 40)).astype(f32)
    table = ValueTable(
        models=names,
        list_usd=np.ones(candidates, f32),
        lambdas_per_usd=np.array([0.0, 1.0, 10.0, 100.0], f32),
        contexts_tokens=np.array([0.0, 2e3, 8e3, 32e3, 128e3], f32),
        budgets_usd=budgets_usd.astype(f32),
        values=values,
        answers=np.ones((candidates + 1, len(COST_LEVELS)), f32),
    )
    return Planner("bench", quality, table, exploration=exploration)


def answer_lengths(candidates: int) -> AnswerLengths:
    """A head that knows every candidate."""
    names, rng, f32 = tuple(f"model-{k}" for k in range(candidates)), np.random.default_rng(0), np.float32
    quantiles = np.sort(rng.normal(5.0, 1.0, (candidates, len(COST_LEVELS))), axis=1)
    d = features.STATE_DIM
    numbers = {
        "centre": np.zeros(d), "scale": np.ones(d), "weights": 0.01 * rng.standard_normal((d, candidates)),
        "widths": np.zeros(d), "offset": np.zeros(1), "quantiles": quantiles, "known": np.ones(candidates),
    }  # fmt: skip
    return AnswerLengths.from_arrays(names, {name: x.astype(f32) for name, x in numbers.items()})


def timed(call: Callable[[], object], rounds: int) -> dict[str, float]:
    """Percentiles of the call's duration in milliseconds, after 20 warm-up calls."""
    for _ in range(20):
        call()
    times = np.empty(rounds)
    for k in range(rounds):
        started = time.perf_counter()
        call()
        times[k] = time.perf_counter() - started
    low, middle, high = np.percentile(times, [10, 50, 99]) * 1e3
    return {"p10_ms": float(low), "p50_ms": float(middle), "p99_ms": float(high)}


def main() -> None:
    """Print the latency of each part of a decision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    observation = synthetic_observation(options.candidates)
    exploration = Exploration(0.05)
    resolving, greedy = ReSolving(exploration=exploration), TunedLambda(exploration=exploration)
    planner, first = planned(exploration, options.candidates), fresh(exploration)
    network = learned(exploration, planner)
    decision = resolving.decide(observation, 0.5)

    cached = structs.replace(
        observation,
        candidates=tuple(structs.replace(c, input_tokens=6_000, warm_tokens=0) for c in observation.candidates),
    )

    def with_text(words: str) -> object:
        return network(structs.replace(observation, text=text.embed(words), text_stats=text.stats(words)))

    lengths = answer_lengths(options.candidates)
    rows = {
        f"text, {len(SHORT)} chars": lambda: (text.embed(SHORT), text.stats(SHORT)),
        f"text, {len(LONG)} chars": lambda: (text.embed(LONG), text.stats(LONG)),
        "encode": lambda: features.encode(observation),
        "lengths of the answers": lambda: lengths.by_model(features.encode_turn(observation, 400, options.candidates)),
        "check of a decision": lambda: check_decision(observation, decision),
        "decide: tuned lambda": lambda: greedy.decide(observation, 0.5),
        "decide: re-solving": lambda: resolving.decide(observation, 0.5),
        "decide: planner": lambda: planner.decide(observation, 0.5),
        "decide: shipped network, priors alone": lambda: first(observation),
        "decide: learned, guarded": lambda: network(observation),
        "decide: learned, guarded, long conversation": lambda: network(cached),
        f"decide: learned, with text of {len(SHORT)} chars": lambda: with_text(SHORT),
        f"decide: learned, with text of {len(LONG)} chars": lambda: with_text(LONG),
    }
    found = {name: timed(call, options.rounds) for name, call in rows.items()}
    if options.json:
        print(json.dumps({"candidates": options.candidates, "rounds": options.rounds, "rows": found}, indent=1))
        return
    print(f"{options.candidates} candidates, {options.rounds} rounds{'':28}p10 ms   p50 ms   p99 ms")
    for name, row in found.items():
        print(f"{name:<52}{row['p10_ms']:>8.3f} {row['p50_ms']:>8.3f} {row['p99_ms']:>8.3f}")


if __name__ == "__main__":
    main()
