"""LangChain: ChatOpenAI on chat and Responses, an agent with a tool, and embeddings."""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from steps import HELLO, KEY, SESSION, STORY, URL, refused, step

SETTINGS: dict[str, Any] = {"base_url": URL + "/v1", "api_key": KEY, "default_headers": SESSION}
MODELS = {
    "chat": ChatOpenAI(model="auto", **SETTINGS),
    "responses": ChatOpenAI(model="auto", use_responses_api=True, **SETTINGS),
}


class Forecast(BaseModel):
    """The structured answer that is asked for."""

    city: str
    degrees: int


@tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def turns(api: str, model: Any) -> None:
    """The steps of one API."""

    @step(api, "whole")
    def _() -> str:
        return str(model.invoke(HELLO).text)

    @step(api, "stream")
    def _() -> str:
        return "".join(chunk.text for chunk in model.stream(HELLO))

    @step(api, "tools")
    def _() -> str:
        answer = create_agent(model, [get_weather]).invoke({"messages": [{"role": "user", "content": HELLO}]})
        assert any(message.type == "tool" for message in answer["messages"]), "the tool was not called"
        return str(answer["messages"][-1].text)

    @step(api, "streamed tools")
    def _() -> str:
        seen = create_agent(model, [get_weather]).stream(
            {"messages": [{"role": "user", "content": HELLO}]}, stream_mode="messages"
        )
        messages = [message for message, _ in seen]
        assert any(message.type == "tool" for message in messages), "the tool was not called"
        return "".join(message.text for message in messages if message.type == "AIMessageChunk")

    @step(api, "structured")
    def _() -> str:
        return str(model.with_structured_output(Forecast, method="json_schema").invoke(HELLO).city)


for name, one in MODELS.items():
    turns(name, one)


@step("embeddings", "whole")
def _() -> list[float]:
    return OpenAIEmbeddings(model="vectors", **SETTINGS).embed_query(HELLO)


@step("embeddings", "many")
def _() -> list[float]:
    vectors = OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False, **SETTINGS)
    return vectors.embed_documents([HELLO, STORY])[1]


for name, one in MODELS.items():
    refused(name)(lambda one=one: one.invoke(STORY))
