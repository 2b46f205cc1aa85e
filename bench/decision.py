"""How long a decision takes: `python -m bench.decision [--candidates 8] [--rounds 2000] [--json]`.

Times each part on one thread, in milliseconds: text features, encoding, the default rule, the learned policy with the
network at its served size. Targets: a decision under .5 ms without text, under 1 ms with it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from policy import features, text
from policy.baselines import Resolving, TunedLambda
from policy.exploration import Exploration
from policy.guarded import Guarded, check_decision
from policy.mdp import Observation
from policy.reload import synthetic_observation

SHORT = "Write a Python function that merges two sorted lists, and explain why it is linear. " * 2
LONG = "The quick brown fox jumps over 13 lazy dogs; def f(x): return x + 1. Why? " * 30


def learned(exploration: Exploration) -> Callable[[Observation], object]:
    """The learned policy at its default size; the parameters' values do not matter to the clock."""
    import jax

    from policy import network
    from policy.actor import LearnedPolicy, NetworkValues

    params = jax.tree.map(np.asarray, network.init(jax.random.key(0)))
    policy = LearnedPolicy("bench", NetworkValues(params), exploration=exploration)
    guarded = Guarded(policy, Resolving(), deadline_s=1.0, clock=time.perf_counter)
    return lambda observation: guarded.decide(observation, 0.5)


def timed(call: Callable[[], object], rounds: int) -> dict[str, float]:
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    observation = synthetic_observation(options.candidates)
    exploration = Exploration(0.05)
    resolving, greedy = Resolving(exploration=exploration), TunedLambda(exploration=exploration)
    network = learned(exploration)
    decision = resolving.decide(observation, 0.5)

    def with_text(words: str) -> object:
        return network(replace(observation, text=text.embed(words), text_stats=text.stats(words)))

    rows = {
        f"text, {len(SHORT)} chars": lambda: (text.embed(SHORT), text.stats(SHORT)),
        f"text, {len(LONG)} chars": lambda: (text.embed(LONG), text.stats(LONG)),
        "encode": lambda: features.encode(observation),
        "check of a decision": lambda: check_decision(observation, decision),
        "decide: tuned lambda": lambda: greedy.decide(observation, 0.5),
        "decide: re-solving": lambda: resolving.decide(observation, 0.5),
        "decide: learned, guarded": lambda: network(observation),
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
