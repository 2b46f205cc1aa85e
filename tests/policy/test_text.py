from __future__ import annotations

import numpy as np
import pytest

from policy import text
from policy.arrays import F32
from policy.text import TEXT_DIM


@pytest.mark.parametrize("words", ["", "   \n", "\ud800", "日本語の質問です", "x" * 100_000, "\x00\x01", "🙂" * 3000])
def test_any_text_gives_a_finite_vector_of_length_one_or_zero(words: str) -> None:
    vector = text.embed(words)
    assert vector.shape == (text.TEXT_DIM,)
    assert vector.dtype == np.float32
    assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-5) or not vector.any()
    assert np.isfinite(text.stats(words)).all()
    assert text.stats(words).shape == (len(text.STAT_NAMES),)


def test_the_embedding_is_the_same_in_every_process() -> None:
    vector = text.embed("Sort a list in Python, please")
    assert np.flatnonzero(vector)[:4].tolist() == [41, 56, 76, 90]  # a change here is a new TEXT_VERSION
    assert np.array_equal(vector, text.embed("Sort a list in Python, please"))


def test_related_texts_are_nearer_than_unrelated_ones() -> None:
    one = text.embed("write a python function that sorts a list of numbers")
    related = text.embed("write a python function that reverses a list of words")
    unrelated = text.embed("who was emperor of rome when vesuvius buried pompeii")
    assert one @ related > 0.3 > one @ unrelated


def test_the_order_of_words_matters_and_the_value_of_a_number_does_not() -> None:
    assert not np.array_equal(text.embed("dog bites man"), text.embed("man bites dog"))
    assert np.array_equal(text.embed("add 17 and 25"), text.embed("add 94 and 38"))


def test_only_both_ends_of_a_long_text_are_read() -> None:
    head, tail = "alpha beta " * 300, "gamma delta " * 300
    assert np.array_equal(text.embed(head + "hidden " * 5000 + tail), text.embed(head + "other " * 9000 + tail))


def test_older_turns_of_a_conversation_weigh_half_as_much_each() -> None:
    a, b = text.embed("first question"), text.embed("second one entirely different")
    expected = b + 0.5 * a
    assert text.embed_conversation(["first question", "second one entirely different"]) == pytest.approx(
        expected / np.linalg.norm(expected), abs=1e-6
    )
    assert not text.embed_conversation([]).any()
    assert not text.embed_conversation(["", " "]).any()


def test_another_embedder_may_take_the_default_ones_place() -> None:
    def constant(text: str) -> F32:
        return np.full(TEXT_DIM, len(text), np.float32)

    assert text.embed_conversation(["ab"], constant) == pytest.approx(np.full(text.TEXT_DIM, 1 / 16))


def test_stats_read_what_they_name() -> None:
    found = dict(
        zip(
            text.STAT_NAMES,
            text.stats(
                "Why? Explain:\n```\ndef f(): return 1+2;\n```\n- ÄÖ",
                history_chars=50,
                tools=2,
                images=1,
                json_output=True,
            ),
            strict=True,
        )
    )
    assert found["question_marks"] == pytest.approx(np.log1p(1) / 3)
    assert found["code_fence"] == 1.0
    assert found["code_marks"] == pytest.approx(np.log1p(4) / 5)  # "()", ";", "def", "return"
    assert found["math_marks"] == pytest.approx(np.log1p(1) / 4)
    assert found["reasoning_words"] == pytest.approx(np.log1p(2) / 3)
    assert found["list_items"] == pytest.approx(np.log1p(1) / 4)
    assert found["non_ascii_share"] == pytest.approx(2 / 47)
    assert found["tools"] == pytest.approx(np.log1p(2) / 4)
    assert found["images"] == pytest.approx(np.log1p(1) / 3)
    assert found["json_output"] == 1.0
