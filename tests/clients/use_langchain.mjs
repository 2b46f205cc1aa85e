// LangChain for JavaScript: ChatOpenAI on chat and Responses, ChatAnthropic, an agent with a tool, and embeddings.
import { ChatAnthropic } from "@langchain/anthropic";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { createAgent, tool } from "langchain";
import { z } from "zod";
import { HELLO, KEY, SESSION, STORY, URL_, refused, step } from "./steps.mjs";

const openai = { model: "auto", apiKey: KEY, configuration: { baseURL: `${URL_}/v1`, defaultHeaders: SESSION } };
const anthropic = { anthropicApiUrl: URL_, clientOptions: { defaultHeaders: SESSION }, maxTokens: 4000 };
const models = {
  chat: new ChatOpenAI(openai),
  responses: new ChatOpenAI({ ...openai, useResponsesApi: true }),
  messages: new ChatAnthropic({ model: "auto", apiKey: KEY, ...anthropic }),
};
const weather = tool(({ city }) => `sunny in ${city}`, {
  name: "get_weather",
  description: "Tell the weather in a city.",
  schema: z.object({ city: z.string() }),
});
const messages = [{ role: "user", content: HELLO }];

for (const [api, model] of Object.entries(models)) {
  await step(api, "whole", async () => (await model.invoke(HELLO)).text);
  await step(api, "stream", async () => {
    let said = "";
    for await (const chunk of await model.stream(HELLO)) said += chunk.text;
    return said;
  });
  await step(api, "tools", async () => {
    const answer = await createAgent({ model, tools: [weather] }).invoke({ messages });
    if (!answer.messages.some((message) => message.type === "tool")) throw new Error("the tool was not called");
    return answer.messages.at(-1).text;
  });
  await step(api, "streamed tools", async () => {
    const kinds = new Set();
    let said = "";
    const stream = await createAgent({ model, tools: [weather] }).stream({ messages }, { streamMode: "messages" });
    for await (const [message] of stream) {
      kinds.add(message.type);
      if (message.type === "ai") said += message.text;
    }
    if (!kinds.has("tool")) throw new Error("the tool was not called");
    return said;
  });
  await step(api, "structured", async () => {
    const forecast = z.object({ city: z.string() });
    return (await model.withStructuredOutput(forecast, { method: "jsonSchema" }).invoke(HELLO)).city;
  });
}
await step("embeddings", "many", async () => {
  const vectors = new OpenAIEmbeddings({ ...openai, model: "vectors" });
  return (await vectors.embedDocuments([HELLO, STORY]))[1].length;
});
for (const [api, model] of Object.entries(models)) await refused(api, () => model.invoke(STORY));
