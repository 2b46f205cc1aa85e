// OpenAI's JavaScript SDK: chat, Responses, completions and embeddings in one session with one budget.
import OpenAI from "openai";
import { HELLO, KEY, SESSION, STORY, URL_, refused, step } from "./steps.mjs";

const client = new OpenAI({ baseURL: `${URL_}/v1`, apiKey: KEY, defaultHeaders: SESSION });
const messages = [{ role: "user", content: HELLO }];
const schema = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const weather = {
  type: "function",
  function: { name: "get_weather", parameters: schema, parse: JSON.parse, function: ({ city }) => `sunny in ${city}` },
};
const flat = { type: "function", name: "get_weather", parameters: schema, strict: true };

await step("chat", "whole", async () => {
  const answer = await client.chat.completions.create({ model: "auto", messages });
  return answer.choices[0].message.content;
});
await step("chat", "stream", async () => {
  let said = "";
  for await (const chunk of await client.chat.completions.create({ model: "auto", messages, stream: true })) {
    said += chunk.choices[0]?.delta?.content ?? "";
  }
  return said;
});
await step("chat", "tools", async () => {
  const run = client.chat.completions.runTools({ model: "auto", messages, tools: [weather] });
  const said = await run.finalContent();
  return (await run.finalFunctionToolCallResult()) && said;
});
await step("chat", "streamed tools", async () => {
  const run = client.chat.completions.runTools({ model: "auto", messages, tools: [weather], stream: true });
  const said = await run.finalContent();
  return (await run.finalFunctionToolCallResult()) && said;
});
await step("chat", "structured", async () => {
  const answer = await client.chat.completions.parse({
    model: "auto",
    messages,
    response_format: { type: "json_schema", json_schema: { name: "forecast", schema, strict: true } },
  });
  return JSON.parse(answer.choices[0].message.content).city;
});
await step("completions", "whole", async () => {
  const answer = await client.completions.create({ model: "auto", prompt: HELLO });
  return answer.choices[0].text;
});
await step("responses", "whole", async () => {
  const first = await client.responses.create({ model: "auto", input: HELLO });
  const asked = { model: "auto", input: "And tomorrow?", previous_response_id: first.id };
  return (await client.responses.create(asked)).output_text;
});
await step("responses", "stream", async () => {
  const stream = client.responses.stream({ model: "auto", input: HELLO });
  let said = "";
  for await (const event of stream) if (event.type === "response.output_text.delta") said += event.delta;
  if ((await stream.finalResponse()).output_text !== said) throw new Error("the deltas are not the answer");
  return said;
});
await step("responses", "tools", async () => {
  const asked = await client.responses.create({ model: "auto", input: HELLO, tools: [flat] });
  const call = asked.output.find((item) => item.type === "function_call");
  const result = { type: "function_call_output", call_id: call.call_id, output: "sunny" };
  const more = { model: "auto", input: [result], previous_response_id: asked.id, tools: [flat] };
  return (await client.responses.create(more)).output_text;
});
await step("responses", "streamed tools", async () => {
  const stream = client.responses.stream({ model: "auto", input: HELLO, tools: [flat] });
  const call = (await stream.finalResponse()).output.find((item) => item.type === "function_call");
  return JSON.parse(call.arguments).city;
});
await step("embeddings", "whole", async () => {
  const answer = await client.embeddings.create({ model: "vectors", input: [HELLO, STORY] });
  return answer.data[1].embedding.length;
});
await refused("chat", () =>
  client.chat.completions.create({ model: "auto", messages: [{ role: "user", content: STORY }] }),
);
await refused("responses", () => client.responses.create({ model: "auto", input: STORY }));
