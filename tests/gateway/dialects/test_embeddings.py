"""The embeddings dialect, both ways."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse

from gateway.dialects.embeddings import decoded, parse_embeddings, rendered_embeddings, vectors_of
from gateway.dialects.request import ChatRequest
from gateway.errors import InvalidRequest


def request(**fields: Any) -> ChatRequest:
    return parse_embeddings({"model": "e", "input": "x", **fields}, b"body")[0]


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_every_shape_of_input(given: Any, inputs: list[Any]) -> None:
    assert request(input=given).params["input"] == inputs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a"] * 3000}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"input_type": 1}, "input_type"),
        ({"truncate": "x" * 65}, "truncate"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
    ],
)
def test_what_is_malformed_is_refused_with_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request(**fields)
    assert refusal.value.param == param


def test_vectors_come_back_in_order_and_in_the_encoding_asked_for() -> None:
    body = {"data": [{"index": 1, "embedding": [0.5, -2.0]}, {"index": 0, "embedding": [1.0, 0.25]}]}
    vectors = vectors_of(body, 2)
    assert vectors == [[1.0, 0.25], [0.5, -2.0]]
    made = rendered_embeddings(vectors, "e", 5, as_base64=False)
    CreateEmbeddingResponse.model_validate(made)
    assert [entry["embedding"] for entry in made["data"]] == [[1.0, 0.25], [0.5, -2.0]]
    packed = rendered_embeddings(vectors, "e", 5, as_base64=True)["data"][0]["embedding"]
    assert decoded(packed) == [1.0, 0.25]


def test_a_provider_s_base64_is_read() -> None:
    packed = rendered_embeddings([[1.0, 0.25]], "e", 5, as_base64=True)["data"][0]["embedding"]
    assert vectors_of({"data": [{"index": 0, "embedding": packed}]}, 1) == [[1.0, 0.25]]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": []},
        {"data": [{"index": 0, "embedding": []}]},
        {"data": [{"index": 0, "embedding": ["x"]}]},
        {"data": [{"index": 3, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": "?"}]},
        {"data": ["x"]},
    ],
)
def test_an_answer_without_a_vector_for_each_input_is_none(body: dict[str, Any]) -> None:
    assert vectors_of(body, 1) is None


def test_what_is_not_passed_on_is_named() -> None:
    told = request(mood="query", input_type="query", user="u")
    assert (told.dropped, told.params["input_type"]) == (("mood",), "query")
