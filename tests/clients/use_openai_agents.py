"""openai-agents with its default, Responses, and with its model for chat completions."""

from __future__ import annotations

from typing import Any

import openai
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from pydantic import BaseModel
from steps import HELLO, KEY, SESSION, STORY, URL, refused, step

client = openai.AsyncOpenAI(base_url=URL + "/v1", api_key=KEY, default_headers=SESSION)
set_default_openai_client(client)
set_tracing_disabled(True)  # traces would go to OpenAI, with this key
MODELS: dict[str, Any] = {"responses": "auto", "chat": OpenAIChatCompletionsModel("auto", client)}


class Forecast(BaseModel):
    """The structured answer that is asked for."""

    city: str
    degrees: int


@function_tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def turns(api: str, model: Any) -> None:
    """The steps of one API."""
    plain: Any = Agent(name="assistant", model=model)
    forecaster: Any = Agent(name="forecaster", model=model, tools=[get_weather])
    desk: Any = Agent(name="desk", model=model, handoffs=[forecaster])

    @step(api, "whole")
    async def _() -> str:
        return str((await Runner.run(plain, HELLO)).final_output)

    @step(api, "stream")
    async def _() -> str:
        run = Runner.run_streamed(plain, HELLO)
        events = [event async for event in run.stream_events()]
        assert any(getattr(getattr(event, "data", None), "type", "").endswith("text.delta") for event in events)
        return str(run.final_output)

    @step(api, "tools")
    async def _() -> str:
        run = await Runner.run(forecaster, HELLO)
        assert any(item.type == "tool_call_output_item" for item in run.new_items)
        return str(run.final_output)

    @step(api, "streamed tools")
    async def _() -> str:
        run = Runner.run_streamed(forecaster, HELLO)
        kinds = [event.name async for event in run.stream_events() if event.type == "run_item_stream_event"]
        assert "tool_output" in kinds
        return str(run.final_output)

    @step(api, "hand-off")
    async def _() -> str:
        run = await Runner.run(desk, HELLO)
        assert run.last_agent.name == "forecaster"
        return str(run.final_output)

    @step(api, "structured")
    async def _() -> str:
        run = await Runner.run(Agent(name="caster", model=model, output_type=Forecast), HELLO)
        return str(run.final_output.city)


for name, one in MODELS.items():
    turns(name, one)
for name, one in MODELS.items():
    refused(name)(lambda one=one: Runner.run(Agent(name="teller", model=one), STORY))
