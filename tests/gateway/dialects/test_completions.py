"""The legacy completions dialect as chat and back."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion

from gateway.dialects.completions import completion_id, text_completion, to_chat
from gateway.errors import InvalidRequest
from tests.gateway.dialects.events import delta, whole

IDENTITY = {"id": completion_id("dec_1"), "created": 7, "model": "small"}
ENTRY = {"token": "Hi", "logprob": -0.1, "top_logprobs": [{"token": "Hi", "logprob": -0.1}]}


@pytest.mark.parametrize("prompt", ["Say hi", ["Say hi"]])
def test_a_prompt_is_what_the_user_says(prompt: Any) -> None:
    made = to_chat({"model": "m", "prompt": prompt, "stop": ["."], "temperature": 0, "logprobs": 2, "best_of": 1})
    assert made.chat == {
        "model": "m", "messages": [{"role": "user", "content": "Say hi"}], "stop": ["."], "temperature": 0,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    assert made.prefix == ""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 99}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"model": None}, "model"),
        ({"messages": [{"role": "user", "content": "q"}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        to_chat({"model": "m", "prompt": "p", **fields})
    assert refusal.value.param == param


def test_a_request_that_names_text_alone_is_served() -> None:
    assert to_chat({"model": "m", "prompt": "p", "modalities": ["text"]}).chat["modalities"] == ["text"]


def test_an_answer_is_a_text_completion() -> None:
    answer = whole("length", content="Hi")
    answer["choices"][0]["logprobs"] = {"content": [ENTRY]}
    made = text_completion(answer, IDENTITY, "Say ")
    Completion.model_validate(made)
    assert made["choices"] == [
        {
            "text": "Say Hi", "index": 0, "finish_reason": "length",
            "logprobs": {
                "tokens": ["Hi"], "token_logprobs": [-0.1], "top_logprobs": [{"Hi": -0.1}], "text_offset": [4],
            },
        }
    ]  # fmt: skip


def test_a_picture_is_named_in_the_text() -> None:
    shown = {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}
    inline = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    text = text_completion(whole("stop", content="Here:", images=[shown, inline]), IDENTITY, "")["choices"][0]["text"]
    assert text.startswith("Here:\n\n![picture](https://x.test/a.png)\n\n[A picture (image/png, 3 bytes)")
    alone = text_completion(delta(images=[shown]), IDENTITY, "")["choices"][0]["text"]
    assert alone == "![picture](https://x.test/a.png)"


def test_chunks_are_chunks_of_text() -> None:
    made = [
        text_completion(chunk, IDENTITY, "") for chunk in (delta(role="assistant"), delta(content="Hi"), delta("stop"))
    ]
    assert [chunk["choices"][0]["text"] for chunk in made] == ["", "Hi", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in made] == [None, None, "stop"]
    assert {chunk["object"] for chunk in made} == {"text_completion"}
