"""The report as a page: complete, self-contained, and harmless whatever names the log brings."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from train.nightly.page import page
from train.nightly.text_report import describe

SCORE = {"mean": 0.5, "low": 0.25, "high": 0.75}
REPORT: dict[str, Any] = {
    "date": "2026-11-02",
    "outcome": "promote",
    "candidate": "run-learned",
    "run_id": "2026-11-02-1",
    "reasons": ["gain +0.0500 per turn"],
    "published": {"stage": "canary", "note": ""},
    "seconds": 12.3,
    "training_sessions": 60,
    "untouched_sessions": 40,
    "log": {
        "sessions": 100,
        "turns": 1234,
        "excluded": {"failed": 7, "pinned": 2},
        "labels": {"turn": 900},
        "models": {"<script>alert(1)</script>": 1234},
        "policies": {"rule:resolving": 1234},
        "graded": {"sim-mid": 0.731},
    },
    "evaluation": {
        "sessions": 4040,
        "turns": 20200,
        "incumbent": {"policy_id": "rule:resolving"},
        "policies": {
            "incumbent": {"score": SCORE, "cost_usd_per_turn": SCORE, "starved_rate": 0.01, "effective_turns": 99.0,
                          "overlap": 1.0},
        },
        "gain": {"run-learned": {**SCORE, "second_opinion": {"mean": None, "low": None, "high": None}}},
    },
    "health": {
        "recent_sessions": 120,
        "compared": True,
        "calibration": {"cost_ratio": 3.0, "quality_bias": None},
        "findings": [{"kind": "price", "text": "prices of sim-mid fell"}],
        "notes": ["prices of sim-mid fell", "a&b is new"],
    },
    "config": {"seed": 0},
}  # fmt: skip


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]


def text(made: str) -> str:
    return re.sub(r"<[^>]+>", " ", made)


def test_the_page_has_verdict_numbers_exclusions_and_drift() -> None:
    shown = text(page(REPORT))
    for part in ("promote run-learned", "gain +0.0500", "published as canary", "0.5000 [0.2500, 0.7500]", "unknown",
                 "rule:resolving (incumbent)", "failed", "prices of sim-mid fell", "a&amp;b is new", "1,234", "1.0%",
                 "quality bias", "73.1%", "4,040 sessions"):  # fmt: skip
        assert part in shown


def test_nothing_of_the_log_becomes_markup_and_nothing_is_fetched() -> None:
    tags = Tags()
    tags.feed(page(REPORT))
    assert "script" not in tags.seen
    assert tags.links == []
    assert "&lt;script&gt;" in page(REPORT)


def test_a_night_without_a_fit_has_a_page_too() -> None:
    few = {"outcome": "not enough data", "date": "2026-11-02", "reasons": ["5 of 250"], "evaluation": {}, "fit": {}}
    assert "5 of 250" in page(few)


def test_in_words_a_sample_of_the_untouched_sessions_is_called_one() -> None:
    behaviour = {"behaviour": {"mean": 0.7}}
    lines = describe({**REPORT, "evaluation": REPORT["evaluation"] | behaviour, "untouched_sessions": 40_096})
    assert "evaluated on 4,040 of 40,096 held-out sessions; the log itself earned 0.700 per turn" in lines
