"""LlamaIndex: OpenAILike on chat and on completions, a FunctionAgent, and embeddings."""

from __future__ import annotations

from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from steps import HELLO, KEY, SESSION, STORY, URL, refused, step

SETTINGS: dict[str, Any] = {"api_base": URL + "/v1", "api_key": KEY, "default_headers": SESSION}
chat = OpenAILike(
    model="auto", is_chat_model=True, is_function_calling_model=True, should_use_structured_outputs=True, **SETTINGS
)
plain = OpenAILike(model="auto", **SETTINGS)  # its default is /v1/completions
MESSAGES = [ChatMessage(role="user", content=HELLO)]


class Forecast(BaseModel):
    """The structured answer that is asked for."""

    city: str
    degrees: int


def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


@step("chat", "whole")
def _() -> str:
    return str(chat.chat(MESSAGES).message.content)


@step("chat", "stream")
def _() -> str:
    return "".join(piece.delta or "" for piece in chat.stream_chat(MESSAGES))


@step("chat", "streamed tools")
async def _() -> str:
    answer = await FunctionAgent(tools=[get_weather], llm=chat).run(HELLO)
    assert answer.tool_calls, "the tool was not called"
    return str(answer)


@step("chat", "tools")
async def _() -> str:
    answer = await FunctionAgent(tools=[get_weather], llm=chat, streaming=False).run(HELLO)
    assert answer.tool_calls, "the tool was not called"
    return str(answer)


@step("chat", "structured")
def _() -> str:
    answer: Any = chat.as_structured_llm(Forecast).chat(MESSAGES)
    return str(answer.raw.city)


@step("completions", "whole")
def _() -> str:
    return plain.complete(HELLO).text


@step("completions", "stream")
def _() -> str:
    return "".join(piece.delta or "" for piece in plain.stream_complete(HELLO))


@step("embeddings", "whole")
def _() -> list[float]:
    return OpenAILikeEmbedding(model_name="vectors", **SETTINGS).get_text_embedding(HELLO)


@refused("chat")
def _() -> Any:
    return chat.chat([ChatMessage(role="user", content=STORY)])


@refused("completions")
def _() -> Any:
    return plain.complete(STORY)
