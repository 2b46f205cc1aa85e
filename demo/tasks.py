"""Questions of the demo, generated from a seed, with ground truth and grading.

Five kinds (`demo.models.KINDS`). A question's difficulty, from 0 to 1, is visible in its text only indirectly, by the
number of steps, digits, rows and keys. The truth is computed with the question; the simulated models never see it, they
read the prompt (`demo/solver.py`).

A question may depend on the session: the table at its start, updates to it, the answer to an earlier question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

INSTRUCTIONS = (
    "You answer numbered questions about a table and about small computations. Explain your steps briefly, then "
    "finish with one line that starts with 'Answer:' followed by the answer alone."
)
"""The system message of every session."""

ITEMS = (
    "brass hinge",
    "copper pipe",
    "steel bolt",
    "oak board",
    "glass pane",
    "rubber seal",
    "cotton rope",
    "clay tile",
    "zinc bucket",
    "iron nail",
    "wool blanket",
    "cork plug",
    "paper roll",
    "wax candle",
    "tin kettle",
    "pine shelf",
    "leather strap",
    "marble slab",
    "nylon net",
    "velvet curtain",
    "bamboo pole",
    "chalk box",
    "felt pad",
    "lead dot",
)
CITIES = ("Lyon", "Graz", "Porto", "Turku", "Gdansk", "Bergen")
SURNAMES = ("Lopez", "Novak", "Okafor", "Tanaka", "Weber", "Silva", "Murray", "Haddad")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
THINGS = ("crates", "barrels", "parcels", "pallets", "bales")


@dataclass(frozen=True, slots=True)
class Task:
    """One question; `difficulty` is the generator's target, unknown to checkers and models.

    `form` decides how the answer is compared: `number`, `text` or `json`. `truth` is its canonical text.
    """

    kind: str
    prompt: str
    truth: str
    form: str
    difficulty: float


@dataclass(slots=True)
class Row:
    """One line of the inventory table; stock in pieces, price in whole euros."""

    item: str
    city: str
    stock: int
    price: int


@dataclass(slots=True)
class Notebook:
    """State of a session during generation: the updated table and the numeric answers so far."""

    rows: list[Row]
    numbers: dict[int, int] = field(default_factory=dict)


def grade(task: Task, answer: str) -> float:
    """Score the text after the last `Answer:` from 0 to 1; 0 without one.

    A JSON answer scores the share of right keys, less additional ones.
    """
    given = final_answer(answer)
    if given is None:
        return 0.0
    if task.form == "number":
        number = _integer(given)
        return 1.0 if number is not None and number == int(task.truth) else 0.0
    if task.form == "text":
        return 1.0 if given.strip(" .'\"").casefold() == task.truth.casefold() else 0.0
    return _grade_json(json.loads(task.truth), given)


def final_answer(text: str) -> str | None:
    """The text after the last `Answer:` at the start of a line, or None."""
    found = list(re.finditer(r"^Answer:[ \t]*", text, re.MULTILINE))
    return (text[found[-1].end() :].strip() or None) if found else None


def _integer(text: str) -> int | None:
    cleaned = text.strip().rstrip(".").replace(",", "")
    return int(cleaned) if re.fullmatch(r"-?\d{1,18}", cleaned) else None


def _grade_json(truth: dict[str, object], given: str) -> float:
    try:
        parsed = json.loads(given)
    except ValueError:
        return 0.0
    if not isinstance(parsed, dict):
        return 0.0
    right = sum(1 for key, value in truth.items() if key in parsed and _same(parsed[key], value))
    extra = len(parsed.keys() - truth.keys())
    return max(0.0, (right - extra) / len(truth))


def _same(left: object, right: object) -> bool:
    return type(left) is type(right) and left == right


def make_rows(rng: Random, count: int) -> list[Row]:
    """An inventory table of `count` distinct items (at most len(ITEMS)) with distinct prices."""
    prices = rng.sample(range(3, 60), count)
    return [
        Row(item, rng.choice(CITIES), rng.randint(5, 90), price)
        for item, price in zip(rng.sample(ITEMS, count), prices, strict=True)
    ]


def table_text(rows: list[Row]) -> str:
    """The table as Markdown."""
    lines = ["| item | city | stock | price |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {r.item} | {r.city} | {r.stock} | {r.price} |" for r in rows])


def make_task(rng: Random, kind: str, difficulty: float, number: int, notebook: Notebook) -> Task:
    """Make question `number` of a session; updates `notebook`."""
    body, truth, form = MAKERS[kind](rng, difficulty, notebook)
    if form == "number":
        notebook.numbers[number] = int(truth)
    return Task(kind, f"Question {number}. {body}", truth, form, difficulty)


def _count(rng: Random, low: float, high: float, difficulty: float, jitter: float = 0.5) -> int:
    """A whole number that grows with difficulty from `low` to `high`, with random jitter."""
    return max(int(low), round(low + (high - low) * difficulty + rng.uniform(-jitter, jitter)))


def _arithmetic(rng: Random, difficulty: float, notebook: Notebook) -> tuple[str, str, str]:
    operators = _count(rng, 1, 7, difficulty)
    top = (12, 40, 120, 400)[min(3, _count(rng, 0, 3, difficulty))]
    expression, value = _operand(rng, top)
    for _ in range(operators):
        operand, size = _operand(rng, top)
        sign = rng.choice("+-*") if abs(value) < 10**7 else rng.choice("+-")
        if sign == "*":
            expression, value = (f"({expression})" if _is_sum(expression) else expression), value * size
            expression = f"{expression} * {operand}"
        else:
            value = value + size if sign == "+" else value - size
            expression = f"{expression} {sign} {operand}"
    opening = rng.choice(("Compute", "Work out", "Give the value of"))
    return f"{opening} {expression}.", str(value), "number"


def _operand(rng: Random, top: int) -> tuple[str, int]:
    value = rng.randint(2, top)
    return str(value), value


def _is_sum(expression: str) -> bool:
    """True when a + or - is outside all parentheses, so that a product needs parentheses."""
    while "(" in expression:
        expression = re.sub(r"\([^()]*\)", "", expression)
    return "+" in expression or "-" in expression


def _lookup(rng: Random, difficulty: float, notebook: Notebook) -> tuple[str, str, str]:
    updates = "".join(_update(rng, notebook) for _ in range(_count(rng, 0, 3, difficulty)))
    level = min(4, _count(rng, 0, 4, difficulty))
    question, truth, form = _lookup_question(rng, level, notebook.rows)
    return f"{updates}In the inventory table, {question}?", truth, form


def _update(rng: Random, notebook: Notebook) -> str:
    row = rng.choice(notebook.rows)
    if rng.random() < 0.5:
        row.stock = rng.randint(5, 90)
        return f"Update to the table: the stock of {row.item} is now {row.stock}. "
    row.city = rng.choice(CITIES)
    return f"Update to the table: {row.item} is now kept in {row.city}. "


def _lookup_question(rng: Random, level: int, rows: list[Row]) -> tuple[str, str, str]:
    row = rng.choice(rows)
    if level == 0:
        column = rng.choice(("stock", "price"))
        return f"what is the {column} of {row.item}", str(row.stock if column == "stock" else row.price), "number"
    here = [r for r in rows if r.city == row.city]
    if level == 1:
        word = rng.choice(("highest", "lowest"))
        best = max(here, key=lambda r: r.price) if word == "highest" else min(here, key=lambda r: r.price)
        return f"which item kept in {row.city} has the {word} price", best.item, "text"
    if level == 2:
        return f"what is the total stock of the items kept in {row.city}", str(sum(r.stock for r in here)), "number"
    floor = rng.randint(8, 30)
    if level == 3:
        total = sum(r.stock for r in here if r.price > floor)
        words = f"what is the total stock of the items kept in {row.city} with a price above {floor}"
        return words, str(total), "number"
    other = rng.choice([city for city in CITIES if city != row.city])
    chosen = [r for r in rows if r.city in (row.city, other) and r.price > floor]
    words = f"what is the total of stock times price over the items kept in {row.city} or {other} with a price above"
    return f"{words} {floor}", str(sum(r.stock * r.price for r in chosen)), "number"


def _code(rng: Random, difficulty: float, notebook: Notebook) -> tuple[str, str, str]:
    rounds, body = _count(rng, 2, 9, difficulty, 1), _count(rng, 1, 6, difficulty)
    lines, total, step, limit = [], rng.randint(1, 9), rng.randint(1, 4), rng.randint(40, 99)
    lines += [f"total = {total}", f"for i in range({rounds}):"]
    steps: list[tuple[str, int, int]] = []
    for _ in range(body):
        shape = rng.choice(("add", "times", "odd", "big"))
        amount, modulus = rng.randint(2, 9), rng.randint(2, 4)
        steps.append((shape, amount, modulus))
        lines += {
            "add": [f"    total += i * {amount}"],
            "times": [f"    total = total * {modulus} - {amount}"],
            "odd": [f"    if (total + i) % {modulus} == 0:", f"        total -= {amount}"],
            "big": [f"    if total > {limit}:", f"        total = total % {limit} + {step}"],
        }[shape]
    lines += [f"    total = total % {limit * 3}", "print(total)"]
    for i in range(rounds):
        for shape, amount, modulus in steps:
            if shape == "add":
                total += i * amount
            elif shape == "times":
                total = total * modulus - amount
            elif shape == "odd" and (total + i) % modulus == 0:
                total -= amount
            elif shape == "big" and total > limit:
                total = total % limit + step
        total %= limit * 3
    program = "\n".join(lines)
    return f"What does this Python program print?\n```python\n{program}\n```", str(total), "number"


def _format(rng: Random, difficulty: float, notebook: Notebook) -> tuple[str, str, str]:
    surname, item, city = rng.choice(SURNAMES), rng.choice(ITEMS), rng.choice(CITIES)
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(2027, 2035)
    quantity, price = rng.randint(2, 90), rng.randint(3, 60)
    specifications: list[tuple[str, str, object]] = [
        ("item", "the item as written", item),
        ("quantity", "the number of pieces, as a number", quantity),
        ("customer", "the customer's name in capital letters", surname.upper()),
        ("date", "the date as YYYY-MM-DD", f"{year:04d}-{month:02d}-{day:02d}"),
        ("total", "quantity times unit price, as a number", quantity * price),
        ("code", "first three letters of the item in capitals, a hyphen, the quantity in four digits; it must match "
                 "the regular expression ^[A-Z]{3}-[0-9]{4}$", f"{item[:3].upper()}-{quantity:04d}"),
        ("slug", "item and city in small letters, joined by hyphens, no spaces",
         f"{item} {city}".lower().replace(" ", "-")),
        ("month_end", "true if the day is after the 20th, else false", day > 20),
        ("reversed", "the city spelt backwards in small letters", city.lower()[::-1]),
    ]  # fmt: skip
    keys = min(len(specifications), _count(rng, 1, 8, difficulty))
    chosen = sorted(rng.sample(range(min(len(specifications), keys + 2)), keys))
    wanted = "\n".join(f"- {specifications[i][0]}: {specifications[i][1]}" for i in chosen)
    order = f"{surname} ordered {quantity} pieces of {item} at {price} euros each on {day} {MONTHS[month - 1]} {year}"
    body = (
        f"Write this order as one JSON object on the answer line, with exactly these keys:\n{wanted}\n"
        f"Order: {order}, to be delivered to {city}."
    )
    return body, json.dumps({specifications[i][0]: specifications[i][2] for i in chosen}), "json"


def _story(rng: Random, difficulty: float, notebook: Notebook) -> tuple[str, str, str]:
    things = rng.choice(THINGS)
    carried = [n for n, value in notebook.numbers.items() if 30 <= value <= 3000]
    if carried and rng.random() < 0.4:
        source = carried[-1]
        held = notebook.numbers[source]
        sentences = [f"A depot holds as many {things} as your answer to question {source}."]
    else:
        held = rng.randint(40, 200)
        sentences = [f"A depot holds {held} {things}."]
    for _ in range(_count(rng, 1, 9, difficulty)):
        sentence, held = _story_step(rng, held, things)
        sentences.append(sentence)
    return f"{' '.join(sentences)} How many {things} are there in the end?", str(held), "number"


def _story_step(rng: Random, held: int, things: str) -> tuple[str, int]:
    several, amount = rng.randint(2, 6), rng.randint(3, 15)
    steps: list[tuple[str, int]] = [
        (f"A truck brings {amount} more {things}.", held + amount),
        (f"Each of {several} villages sends {amount} {things}.", held + several * amount),
        (f"On {several} days in a row, {amount} {things} arrive.", held + several * amount),
    ]
    if held > several * amount:
        steps += [
            (f"Each of {several} shops takes {amount} {things}.", held - several * amount),
            (f"A fire destroys {amount} {things}.", held - amount),
            (f"Half of the {things}, rounded down, are sent away.", held - held // 2),
        ]
    if held < 400:
        steps.append((f"The number of {things} then grows {several} times as large.", held * several))
    return rng.choice(steps)


MAKERS: dict[str, Callable[[Random, float, Notebook], tuple[str, str, str]]] = {
    "arithmetic": _arithmetic,
    "lookup": _lookup,
    "code": _code,
    "format": _format,
    "story": _story,
}
