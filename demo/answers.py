"""Answers of the simulated models: working, right or wrong, and a final line `Answer: ...`.

The chance of an error depends on the model's ability for the kind of question, the difficulty visible in the text, and
a hidden difficulty. All randomness is a hash of (seed, model, question), so that reruns and different policies get the
same answer from the same model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from random import Random
from typing import Any

from demo.models import CEILING, SLOPE, SimulatedModel
from demo.solver import Message, Solution, Unsolvable, solve

HIDDEN_DIFFICULTY = 0.06
"""Standard deviation of the hidden part of a question's difficulty."""

MAX_ANSWER_TOKENS = 900

REMARKS = (
    "I went through the question once more to be sure.",
    "Each line follows from the one before it.",
    "Nothing in the question changes this on the way.",
    "I keep the intermediate results apart so that none is counted twice.",
    "The order of the steps matters here, so I kept to it.",
    "A quick estimate gives the same order of magnitude.",
    "It helps to write the values down one by one.",
    "I checked the units; they stay the same throughout.",
    "This part is short, the next one takes longer.",
    "Reading the question backwards leads to the same place.",
    "The figures quoted above are the ones that count.",
    "I do not round anything before the end.",
    "No other condition in the text applies.",
    "What was said earlier in this conversation still holds.",
    "One could take another road here, with the same result.",
    "That settles this step.",
)


def chance_of_right(model: SimulatedModel, kind: str, difficulty: float) -> float:
    """P(right) of a model on a question of this kind and (total) difficulty."""
    return CEILING / (1.0 + math.exp((difficulty - model.ability[kind]) / SLOPE))


def draw(seed: int, *parts: str) -> Random:
    """A random stream that is a pure function of its arguments."""
    return Random(hashlib.sha256("\x1f".join((str(seed), *parts)).encode()).digest())


def answer_text(model: SimulatedModel, seed: int, messages: Sequence[Message], choice: int = 0) -> str:
    """The answer before any limit on its length; `choice` varies the draw for n > 1."""
    question = next((m.text for m in reversed(messages) if m.role == "user"), "")
    rng = draw(seed, model.name, question, str(choice))
    try:
        solution = solve(messages)
    except Unsolvable as unsolvable:
        return _small_talk(model, question, str(unsolvable), rng)
    difficulty = solution.difficulty + draw(seed, question).gauss(0.0, HIDDEN_DIFFICULTY)
    right = rng.random() < chance_of_right(model, solution.kind, difficulty)
    working = _working(model, solution, right, difficulty, rng)
    return f"{working}\nAnswer: {solution.answer if right else solution.slip(rng)}"


def _working(model: SimulatedModel, solution: Solution, right: bool, difficulty: float, rng: Random) -> str:
    """Steps of the solution and remarks, up to a heavy-tailed length. A wrong answer omits its last step."""
    tokens = model.verbosity * (16.0 + 90.0 * max(0.0, difficulty)) * math.exp(rng.gauss(0.0, 0.4))
    if rng.random() < 0.04:
        tokens *= rng.paretovariate(1.3)
    tokens = min(tokens, MAX_ANSWER_TOKENS)
    steps = list(solution.steps if right else solution.steps[:-1])
    sentences = [rng.choice(("Let me see.", "Step by step:", "Here is the working.", "First things first."))]
    length = 4.0
    remarks = rng.sample(REMARKS, len(REMARKS))
    while length < tokens:
        sentence = steps.pop(0) if steps else remarks[len(sentences) % len(remarks)]
        sentences.append(sentence)
        length += len(sentence) / 3.6
    return " ".join(sentences)


def _small_talk(model: SimulatedModel, question: str, reason: str, rng: Random) -> str:
    """A reply to a question that the simulator cannot solve."""
    if re.search(r"Question \d+\.", question):
        return f"I could not work this out: {reason}.\nAnswer: unknown"
    words = re.findall(r"[^\W\d_]{4,}", question)[:200]
    about = ", ".join(dict.fromkeys(rng.sample(words, min(4, len(words))))) or "nothing in particular"
    remarks = " ".join(rng.sample(REMARKS, 2 + round(3 * model.verbosity)))
    opening = f"I am {model.name}, a simulated model, and I only know the demo's questions."
    return f"{opening} You spoke of {about}. {remarks}"


def schema_example(schema: dict[str, Any], depth: int = 0) -> Any:
    """A minimal value that a JSON schema allows, for tool arguments and `response_format`."""
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties")
        if not isinstance(properties, dict) or depth > 8:
            return {}
        return {key: schema_example(value, depth + 1) for key, value in properties.items() if isinstance(value, dict)}
    if kind == "array":
        items = schema.get("items")
        return [schema_example(items, depth + 1)] if isinstance(items, dict) and depth <= 8 else []
    return {"string": "example", "integer": 1, "number": 1.5, "boolean": True}.get(str(kind))


def json_answer(response_format: dict[str, Any]) -> str:
    """A minimal answer that satisfies a JSON `response_format`."""
    described = response_format.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    return json.dumps(schema_example(schema) if isinstance(schema, dict) else {"reply": "a simulated model"})
