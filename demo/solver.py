"""Solver of the demo's questions, from the text of the conversation alone.

`solve` finds the last question, computes its answer and steps, and measures its difficulty from the text (0 is easy,
about 1 is the hardest). It shares no code with `demo/tasks.py`; a test checks that the two agree on thousands of
questions, which validates the grades.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random

MAX_STEPS = 5_000
MAX_MAGNITUDE = 10**15


class Unsolvable(ValueError):
    """The prompt has no question of a known form, or one that cannot be solved."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, its content flattened to text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Solution:
    """The right answer, its steps, and a generator of plausible wrong answers.

    `steps` are short sentences. `difficulty` is measured from the text. `slip(rng)` gives a plausible wrong answer,
    never equal to `answer`.
    """

    kind: str
    answer: str
    steps: tuple[str, ...]
    difficulty: float
    slip: Callable[[Random], str]


def solve(messages: Sequence[Message]) -> Solution:
    """Solve the last user message in its conversation. Raises Unsolvable."""
    asked = next((m.text for m in reversed(messages) if m.role == "user"), "")
    for pattern, solver in SOLVERS:
        found = pattern.search(asked)
        if found:
            try:
                return solver(found, messages)
            except RecursionError as error:
                raise Unsolvable("nested too deeply") from error
    raise Unsolvable("no question of a known form in the last user message")


def _arithmetic(found: re.Match[str], messages: Sequence[Message]) -> Solution:
    expression = found["expression"].strip()
    steps: list[str] = []
    match _parsed(expression).body:
        case [ast.Expr(value=parsed)]:
            value = _evaluate(parsed, {}, steps)
        case _:
            raise Unsolvable("not one expression")
    numbers = re.findall(r"\d+", expression)
    operators = len(numbers) - 1
    digits = sum(len(n) for n in numbers) / len(numbers)
    difficulty = 0.14 * (operators - 1) + 0.14 * (digits - 1.3)
    return Solution("arithmetic", str(value), tuple(steps), difficulty, _number_slip(value, steps))


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, MemoryError) as error:
        raise Unsolvable("the text does not parse") from error


_BINARY: dict[type[ast.operator], tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Mod: ("%", operator.mod),
}
_COMPARE: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
}


def _evaluate(node: ast.expr, variables: dict[str, int], steps: list[str]) -> int:
    match node:
        case ast.Constant(value=int(value)) if abs(value) <= MAX_MAGNITUDE:
            return value
        case ast.Name(id=name) if name in variables:
            return variables[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            first, second = _evaluate(left, variables, steps), _evaluate(right, variables, steps)
            sign, compute = _BINARY[type(op)]
            if sign == "%" and second == 0:
                raise Unsolvable("division by zero")
            value = compute(first, second)
            if abs(value) > MAX_MAGNITUDE:
                raise Unsolvable("numbers too large")
            steps.append(f"{first} {sign} {second} = {value}")
            return value
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return int(_COMPARE[type(op)](_evaluate(left, variables, steps), _evaluate(right, variables, steps)))
    raise Unsolvable(f"cannot evaluate {type(node).__name__}")


def _code(found: re.Match[str], messages: Sequence[Message]) -> Solution:
    tree = _parsed(found["program"])
    run = _Run({}, [], [], 0)
    run.block(tree.body)
    if len(run.printed) != 1:
        raise Unsolvable("the program prints something other than one line")
    statements = sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) - 4
    rounds = max((int(n) for n in re.findall(r"range\((\d+)\)", found["program"])), default=0)
    difficulty = 0.085 * (statements - 1.5) + 0.06 * (rounds - 2)
    return Solution("code", str(run.printed[0]), tuple(run.trace), difficulty, _number_slip(run.printed[0], run.trace))


@dataclass(slots=True)
class _Run:
    """Interpreter of a small Python: integers, assignment, `for ... in range(n)`, `if`, `print`."""

    variables: dict[str, int]
    printed: list[int]
    trace: list[str]
    executed: int

    def block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self.executed += 1
            if self.executed > MAX_STEPS:
                raise Unsolvable("the program runs too long")
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.variables[name] = self.value(value)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                self.variables[name] = self.value(ast.BinOp(ast.Name(target.id), op, value))
            case ast.For(
                target=ast.Name(id=name),
                iter=ast.Call(func=ast.Name(id="range"), args=[ast.Constant(value=int(rounds))]),
                body=body,
                orelse=[],
            ):
                for self.variables[name] in range(min(rounds, MAX_STEPS)):
                    self.block(body)
                    self.trace.append(f"after {name} = {self.variables[name]}: " + self.state(name))
            case ast.If(test=test, body=body, orelse=orelse):
                self.block(body if self.value(test) else orelse)
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=[argument], keywords=[])):
                self.printed.append(self.value(argument))
            case _:
                raise Unsolvable(f"cannot run {type(node).__name__}")

    def value(self, node: ast.expr) -> int:
        return _evaluate(node, self.variables, [])

    def state(self, counter: str) -> str:
        return ", ".join(f"{name} = {value}" for name, value in self.variables.items() if name != counter)


_ROW = re.compile(r"^\| (?P<item>[a-z ]+) \| (?P<city>\w+) \| (?P<stock>\d+) \| (?P<price>\d+) \|$", re.MULTILINE)
_STOCK_UPDATE = re.compile(r"Update to the table: the stock of (?P<item>[a-z ]+) is now (?P<stock>\d+)\.")
_CITY_UPDATE = re.compile(r"Update to the table: (?P<item>[a-z ]+) is now kept in (?P<city>\w+)\.")


@dataclass(slots=True)
class _Line:
    city: str
    stock: int
    price: int


def _read_table(messages: Sequence[Message]) -> tuple[dict[str, _Line], int]:
    """The table after all user messages, and the number of updates."""
    table: dict[str, _Line] = {}
    updates = 0
    for message in messages:
        if message.role != "user":
            continue
        for row in _ROW.finditer(message.text):
            table[row["item"]] = _Line(row["city"], int(row["stock"]), int(row["price"]))
        found = sorted(
            (*_STOCK_UPDATE.finditer(message.text), *_CITY_UPDATE.finditer(message.text)), key=lambda m: m.start()
        )
        for update in found:
            line = table.get(update["item"])
            if line is None:
                continue
            updates += 1
            if update.re is _STOCK_UPDATE:
                line.stock = int(update["stock"])
            else:
                line.city = update["city"]
    if not table:
        raise Unsolvable("no table in the conversation")
    return table, updates


def _cell(found: re.Match[str], messages: Sequence[Message]) -> Solution:
    table, updates = _read_table(messages)
    line = table.get(found["item"])
    if line is None:
        raise Unsolvable("no such item in the table")
    value = line.stock if found["column"] == "stock" else line.price
    steps = [f"The row of {found['item']} says {found['column']} {value}."]
    return Solution("lookup", str(value), tuple(steps), 0.02 + _burden(messages, updates), _number_slip(value, []))


def _extreme(found: re.Match[str], messages: Sequence[Message]) -> Solution:
    table, updates = _read_table(messages)
    here = {item: line for item, line in table.items() if line.city == found["city"]}
    if not here:
        raise Unsolvable("nothing is kept in that city")
    pick = max if found["word"] == "highest" else min
    best = pick(here, key=lambda item: here[item].price)
    others = [item for item in table if item != best]
    steps = [f"{item} is kept in {found['city']} and costs {line.price}." for item, line in here.items()]

    def slip(rng: Random) -> str:
        near = [item for item in here if item != best] or others or [f"{best} set"]
        return rng.choice(near)

    return Solution("lookup", best, tuple(steps), 0.24 + _burden(messages, updates), slip)


def _total(found: re.Match[str], messages: Sequence[Message]) -> Solution:
    table, updates = _read_table(messages)
    cities = {found["city"], found["other"]}
    floor = int(found["floor"]) if found["floor"] else -1
    product = found["what"] == "stock times price"
    total, steps, sizes = 0, [], []
    for item, line in table.items():
        if line.city in cities and line.price > floor:
            size = line.stock * line.price if product else line.stock
            total += size
            sizes.append(size)
            steps.append(f"{item}: {line.stock} x {line.price} = {size}." if product else f"{item} adds {size}.")
    level = 0.47 + 0.22 * (floor >= 0) + 0.22 * product
    forgotten = [f"= {total - size}" for size in sizes]
    difficulty = level + _burden(messages, updates)
    return Solution("lookup", str(total), tuple(steps), difficulty, _number_slip(total, forgotten))


def _burden(messages: Sequence[Message], updates: int) -> float:
    """Added difficulty of updates, most for those in the last message."""
    asked = next(m.text for m in reversed(messages) if m.role == "user")
    return 0.03 * asked.count("Update to the table:") + 0.01 * min(6, updates) - 0.03


def _story(found: re.Match[str], messages: Sequence[Message]) -> Solution:
    text = found["story"]
    start = re.match(r"A depot holds (?:(?P<held>\d+) |as many \w+ as your answer to question (?P<source>\d+))", text)
    if start is None:
        raise Unsolvable("the story has no beginning")
    held = int(start["held"]) if start["held"] else _earlier_answer(messages, int(start["source"]))
    steps = [f"We begin with {held}."]
    sentences = re.split(r"(?<=\.) ", text.strip())[1:]
    for sentence in sentences:
        held = _story_step(sentence, held)
        steps.append(f"{sentence[:-1]}: now {held}.")
    difficulty = 0.125 * (len(sentences) - 1) + (0.0 if start["held"] else 0.05)
    return Solution("story", str(held), tuple(steps), difficulty, _number_slip(held, steps))


def _earlier_answer(messages: Sequence[Message], number: int) -> int:
    """The assistant's own answer to an earlier question, right or wrong."""
    asked = False
    for message in messages:
        if message.role == "user":
            asked = f"Question {number}." in message.text
        elif asked and message.role == "assistant":
            found = re.findall(r"^Answer: (-?\d+)", message.text, re.MULTILINE)
            if found:
                return int(found[-1])
    raise Unsolvable(f"question {number} has no numeric answer in the conversation")


_STORY_STEPS: tuple[tuple[re.Pattern[str], Callable[[int, tuple[int, ...]], int]], ...] = (
    (re.compile(r"A truck brings (\d+) more"), lambda held, n: held + n[0]),
    (re.compile(r"Each of (\d+) villages sends (\d+)"), lambda held, n: held + n[0] * n[1]),
    (re.compile(r"On (\d+) days in a row, (\d+) \w+ arrive"), lambda held, n: held + n[0] * n[1]),
    (re.compile(r"Each of (\d+) shops takes (\d+)"), lambda held, n: held - n[0] * n[1]),
    (re.compile(r"A fire destroys (\d+)"), lambda held, n: held - n[0]),
    (re.compile(r"Half of the \w+, rounded down, are sent away"), lambda held, n: held - held // 2),
    (re.compile(r"grows (\d+) times as large"), lambda held, n: held * n[0]),
)


def _story_step(sentence: str, held: int) -> int:
    for pattern, apply in _STORY_STEPS:
        found = pattern.search(sentence)
        if found:
            value = apply(held, tuple(int(n) for n in found.groups()))
            if abs(value) > MAX_MAGNITUDE:
                raise Unsolvable("numbers too large")
            return value
    raise Unsolvable("a sentence of the story is not understood")


_ORDER = re.compile(
    r"Order: (?P<customer>\w+) ordered (?P<quantity>\d+) pieces of (?P<item>[a-z ]+) at (?P<price>\d+) euros each "
    r"on (?P<date>\d+ \w+ \d+), to be delivered to (?P<city>\w+)\."
)


def _format(found: re.Match[str], messages: Sequence[Message]) -> Solution:
    order = _ORDER.search(found.string)
    if order is None:
        raise Unsolvable("no order to write down")
    try:
        date = datetime.strptime(order["date"] + " +0000", "%d %B %Y %z")
    except ValueError as error:
        raise Unsolvable("the order has no readable date") from error
    quantity, item = int(order["quantity"]), order["item"]
    values: dict[str, object] = {
        "item": item,
        "quantity": quantity,
        "customer": order["customer"].upper(),
        "date": date.strftime("%Y-%m-%d"),
        "total": quantity * int(order["price"]),
        "code": f"{item[:3].upper()}-{str(quantity).rjust(4, '0')}",
        "slug": "-".join([*item.split(), order["city"].lower()]),
        "month_end": date.day > 20,
        "reversed": "".join(reversed(order["city"].lower())),
    }
    keys = re.findall(r"^- (\w+):", found["keys"], re.MULTILINE)
    if not keys or any(key not in values for key in keys):
        raise Unsolvable("the order asks for unknown keys")
    right = {key: values[key] for key in keys}
    steps = [f"{key} is {json.dumps(value)}." for key, value in right.items()]
    difficulty = 0.14 * (len(keys) - 1)
    return Solution("format", json.dumps(right), tuple(steps), difficulty, lambda rng: _format_slip(right, rng))


def _format_slip(right: dict[str, object], rng: Random) -> str:
    """The same object with at least half of its values changed."""
    changed = set(rng.sample(list(right), max(1, round(rng.uniform(0.5, 1.0) * len(right)))))
    careless: dict[str, object] = {}
    for key, value in right.items():
        if key not in changed:
            careless[key] = value
        elif isinstance(value, bool):
            careless[key] = not value
        elif isinstance(value, int):
            careless[key] = str(value)
        else:
            careless[key] = f"{str(value).replace('-', '/').capitalize()} "
    return json.dumps(careless)


def _number_slip(value: int, steps: Sequence[str]) -> Callable[[Random], str]:
    """A wrong number: an intermediate result, a lost carry, swapped digits, off by one."""
    shown = [int(n) for step in steps for n in re.findall(r"(-?\d+)\.?$", step)]

    def slip(rng: Random) -> str:
        digits = list(str(abs(value)))
        if len(digits) > 1:
            at = rng.randrange(len(digits) - 1)
            digits[at], digits[at + 1] = digits[at + 1], digits[at]
        swapped = int("".join(digits)) * (1 if value >= 0 else -1)
        near = [value + 1, value - 1, value + 10, value - 10, swapped, *shown[-3:]]
        return str(rng.choice([number for number in near if number != value]))

    return slip


SOLVERS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Sequence[Message]], Solution]], ...] = (
    (re.compile(r"What does this Python program print\?\s*```python\n(?P<program>.*?)```", re.DOTALL), _code),
    (re.compile(r"as one JSON object .*?with exactly these keys:\n(?P<keys>(?:- .*\n)+)"), _format),
    (re.compile(r"(?:Compute|Work out|Give the value of) (?P<expression>[\d+\-*() ]{3,500})\."), _arithmetic),
    (re.compile(r"what is the (?P<column>stock|price) of (?P<item>[a-z ]+)\?"), _cell),
    (re.compile(r"which item kept in (?P<city>\w+) has the (?P<word>highest|lowest) price"), _extreme),
    (
        re.compile(
            r"what is the total (?:of )?(?P<what>stock times price|stock) (?:of|over) the items kept in (?P<city>\w+)"
            r"(?: or (?P<other>\w+))?(?: with a price above (?P<floor>\d+))?\?"
        ),
        _total,
    ),
    (re.compile(r"(?P<story>A depot holds .*?) How many \w+ are there in the end\?", re.DOTALL), _story),
)
"""Forms of question, tried in order."""
