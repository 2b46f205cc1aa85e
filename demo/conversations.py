"""Generated sessions of the demo: a table, then questions of varying kind and difficulty.

Most sessions start easy and end hard, so money spent on the first turns is missing on the last; some start hard, some
are even. A session's theme decides the mix of kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from demo.models import KINDS
from demo.tasks import Notebook, Task, make_rows, make_task, table_text

PROFILES: dict[str, float] = {"growing": 0.6, "early-hard": 0.2, "flat": 0.2}
"""Courses of difficulty over the turns, and their share of sessions."""

THEMES: dict[str, tuple[float, ...]] = {
    "stock-keeping": (0.20, 0.45, 0.00, 0.05, 0.30),
    "engineering": (0.15, 0.05, 0.50, 0.30, 0.00),
    "office": (0.20, 0.20, 0.20, 0.20, 0.20),
}
"""Weights over KINDS."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One session: `tasks[t]` is asked at turn t, after `opening` (the table) at turn 0.

    `budget_scale` scales the demo's session budget, so that budgets differ between sessions.
    """

    name: str
    profile: str
    theme: str
    opening: str
    tasks: tuple[Task, ...]
    budget_scale: float

    def user_message(self, turn: int) -> str:
        """The user's message at a turn, from 0."""
        return f"{self.opening}\n\n{self.tasks[turn].prompt}" if turn == 0 else self.tasks[turn].prompt


def make_conversation(seed: int, split: str, index: int, turns: int) -> Conversation:
    """Conversation `index` of a split ("learn", "held-out"), determined by the arguments."""
    rng = Random(f"{seed}/{split}/{index}/{turns}")
    profile = rng.choices(tuple(PROFILES), tuple(PROFILES.values()))[0]
    theme = rng.choice(tuple(THEMES))
    rows = make_rows(rng, rng.randint(10, 24))
    opening = f"Here is the inventory table.\n\n{table_text(rows)}"
    notebook = Notebook(rows)
    level = rng.uniform(0.25, 0.75)
    tasks = tuple(
        make_task(
            rng, rng.choices(KINDS, THEMES[theme])[0], _difficulty(rng, profile, turn, turns, level), turn + 1, notebook
        )
        for turn in range(turns)
    )
    return Conversation(f"{split}-{index:04d}", profile, theme, opening, tasks, rng.choice((0.5, 0.75, 1.0, 1.3, 1.7)))


def _difficulty(rng: Random, profile: str, turn: int, turns: int, level: float) -> float:
    share = turn / max(1, turns - 1)
    aim = {"growing": 0.97 * share, "early-hard": 0.97 - 0.97 * share, "flat": level}[profile]
    return min(1.0, max(0.0, aim + rng.gauss(0.0, 0.08)))
