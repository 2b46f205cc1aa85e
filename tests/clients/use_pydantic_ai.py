"""pydantic-ai: an agent with a tool on OpenAIChatModel and on OpenAIResponsesModel."""

from __future__ import annotations

from typing import Any

import openai
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from steps import HELLO, KEY, SESSION, STORY, URL, refused, step

client = openai.AsyncOpenAI(base_url=URL + "/v1", api_key=KEY, default_headers=SESSION)
provider = OpenAIProvider(openai_client=client)
MODELS: dict[str, Any] = {
    "chat": OpenAIChatModel("auto", provider=provider),
    "responses": OpenAIResponsesModel("auto", provider=provider),
}


class Forecast(BaseModel):
    """The structured answer that is asked for."""

    city: str
    degrees: int


def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def turns(api: str, model: Any) -> None:
    """The steps of one API."""

    @step(api, "whole")
    async def _() -> str:
        return str((await Agent(model).run(HELLO)).output)

    @step(api, "stream")
    async def _() -> str:
        async with Agent(model).run_stream(HELLO) as answer:
            return "".join([piece async for piece in answer.stream_text(delta=True)])

    @step(api, "tools")
    async def _() -> str:
        answer = await Agent(model, tools=[get_weather]).run(HELLO)
        assert any(part.part_kind == "tool-return" for message in answer.all_messages() for part in message.parts)
        return str(answer.output)

    @step(api, "streamed tools")
    async def _() -> str:
        async with Agent(model, tools=[get_weather]).run_stream(HELLO) as answer:
            return "".join([piece async for piece in answer.stream_text(delta=True)])

    @step(api, "structured")
    async def _() -> str:
        return (await Agent(model, output_type=Forecast).run(HELLO)).output.city


for name, one in MODELS.items():
    turns(name, one)
for name, one in MODELS.items():
    refused(name)(lambda one=one: Agent(one).run(STORY))
