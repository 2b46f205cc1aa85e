// Anthropic's JavaScript SDK: Messages in one session with one budget.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { HELLO, KEY, SESSION, STORY, URL_, refused, step } from "./steps.mjs";

const client = new Anthropic({ baseURL: URL_, apiKey: KEY, defaultHeaders: SESSION });
const messages = [{ role: "user", content: HELLO }];
const weather = betaZodTool({
  name: "get_weather",
  description: "Tell the weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  run: async ({ city }) => `sunny in ${city}`,
});
const tools = [{ name: weather.name, description: weather.description, input_schema: weather.input_schema }];
const asked = { model: "auto", max_tokens: 500, messages };
const textOf = (message) => message.content.map((block) => (block.type === "text" ? block.text : "")).join("");

/** The answer after the tool that `message` calls has said its word. */
async function finished(message) {
  const call = message.content.find((block) => block.type === "tool_use");
  const result = { type: "tool_result", tool_use_id: call.id, content: await weather.run(call.input) };
  const history = [
    ...messages,
    { role: "assistant", content: message.content },
    { role: "user", content: [result] },
  ];
  return textOf(await client.messages.create({ ...asked, messages: history, tools }));
}

await step("messages", "whole", async () => textOf(await client.messages.create(asked)));
await step("messages", "stream", async () => {
  let said = "";
  const stream = client.messages.stream(asked).on("text", (text) => (said += text));
  if (textOf(await stream.finalMessage()) !== said) throw new Error("the deltas are not the answer");
  return said;
});
await step("messages", "tools", async () => finished(await client.messages.create({ ...asked, tools })));
await step("messages", "streamed tools", async () =>
  finished(await client.messages.stream({ ...asked, tools }).finalMessage()),
);
await step("messages", "tool runner", async () =>
  textOf(await client.beta.messages.toolRunner({ ...asked, tools: [weather] })),
);
await step("messages", "structured", async () => {
  const format = zodOutputFormat(z.object({ city: z.string() }));
  return (await client.messages.parse({ ...asked, output_config: { format } })).parsed_output.city;
});
await step("messages", "count_tokens", async () => {
  const { input_tokens } = await client.messages.countTokens({ model: "auto", messages });
  return input_tokens;
});
await refused("messages", () =>
  client.messages.create({ ...asked, max_tokens: 4000, messages: [{ role: "user", content: STORY }] }),
);
