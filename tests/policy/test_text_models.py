"""Text vectors of models: wordllama's files as they are, and a tiny ONNX encoder written here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from policy.text import TEXT_DIM, TEXT_VERSION, embed_conversation
from policy.text_models import TextUnavailable, onnx_space, projection, static_space
from tests.harness.onnx_files import WORDS, write_encoder, write_tokenizer

ODD = ("", "   \n", "\ud800", "日本語の質問です", "\x00\x01", "🙂" * 3000, "x" * 100_000)


def test_static_vectors_put_words_of_one_meaning_together() -> None:
    space = static_space()
    cat, kitten, invoice = (space.embed(text) for text in ("a small cat", "the little kitten", "pay this invoice"))
    assert float(cat @ kitten) > 0.2 + float(cat @ invoice)
    assert space.version.startswith("static-1-")
    assert space.version == static_space().version != TEXT_VERSION
    assert embed_conversation(["a small cat"], space.embed) == pytest.approx(cat)


@pytest.mark.parametrize("text", ODD)
def test_any_text_gives_a_finite_vector_of_length_one_or_zero(text: str, tmp_path: Path) -> None:
    encoder = onnx_space(write_encoder(tmp_path / "e.onnx", 8), write_tokenizer(tmp_path / "t.json"))
    for space in (static_space(), encoder):
        vector = space.embed(text)
        assert vector.shape == (TEXT_DIM,)
        assert vector.dtype == np.float32
        assert float(vector @ vector) == pytest.approx(1.0 if text.strip() else 0.0, abs=1e-5)


def test_an_encoder_s_tokens_are_averaged_and_padded(tmp_path: Path) -> None:
    space = onnx_space(write_encoder(tmp_path / "e.onnx", 8), write_tokenizer(tmp_path / "t.json"))
    of_token = np.random.default_rng(8).standard_normal((len(WORDS), 8)).astype(np.float32)
    mean = of_token[[1, 2]].mean(axis=0)
    assert space.embed("red blue") == pytest.approx(np.pad(mean / np.linalg.norm(mean), (0, TEXT_DIM - 8)), abs=1e-6)
    assert not space.embed("").any()


def test_a_wide_encoder_is_projected_alike_everywhere_and_keeps_what_is_near(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "t.json")
    made = [onnx_space(write_encoder(tmp_path / f"{i}.onnx", 384), tokenizer) for i in (1, 2)]
    assert made[0].embed("red") == pytest.approx(made[1].embed("red"))
    assert made[0].version == made[1].version
    assert made[0].version != onnx_space(write_encoder(tmp_path / "3.onnx", 385), tokenizer).version
    one, other = np.random.default_rng(1).standard_normal((2, 384)).astype(np.float32)
    near = one + np.float32(0.1) * other
    project = projection(384)
    assert float(project(one) @ project(near)) > 0.98 > 0.3 > abs(float(project(one) @ project(other)))
    assert not project(np.full(384, np.nan, np.float32)).any()


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, tokens = write_encoder(tmp_path / "e.onnx", 8), write_tokenizer(tmp_path / "t.json")
    (tmp_path / "broken").write_bytes(b"{")
    asking = write_encoder(tmp_path / "asking.onnx", 8, names=("input_ids", "pixels"))
    flat = write_encoder(tmp_path / "flat.onnx", 8, flat=True)
    for model, tokenizer, part, words in (
        (tmp_path / "none.onnx", tokens, "model", "expected an ONNX model"),
        (tmp_path / "broken", tokens, "model", "expected an ONNX model"),
        (good, tmp_path / "broken", "tokenizer", "expected a tokenizer.json"),
        (asking, tokens, "model", "got input_ids, pixels"),
        (flat, tokens, "model", r"expected a first output of \(1, D\) or \(1, tokens, D\), got \(2, 1\)"),
    ):
        with pytest.raises(TextUnavailable, match=words) as found:
            onnx_space(model, tokenizer)
        assert found.value.part == part
        assert "\n" not in str(found.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TextUnavailable, match=r"seqroute\[onnx-text\]"):
        onnx_space(good, tokens)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TextUnavailable, match=r"seqroute\[static-text\]"):
        static_space()
