// Vercel's AI SDK: @ai-sdk/openai on chat and on Responses, openai-compatible, @ai-sdk/anthropic, and embeddings.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { HELLO, KEY, SESSION, STORY, URL_, refused, step } from "./steps.mjs";

const settings = { baseURL: `${URL_}/v1`, apiKey: KEY, headers: SESSION };
const openai = createOpenAI(settings);
const models = {
  chat: openai.chat("auto"),
  "chat (compatible)": createOpenAICompatible({
    ...settings, name: "seqroute", includeUsage: true, supportsStructuredOutputs: true,
  })("auto"),
  responses: openai("auto"),
  messages: createAnthropic(settings)("auto"),
};
const tools = {
  get_weather: tool({
    description: "Tell the weather in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  }),
};
const stopWhen = stepCountIs(3);

for (const [api, model] of Object.entries(models)) {
  await step(api, "whole", async () => (await generateText({ model, prompt: HELLO })).text);
  await step(api, "stream", async () => told(streamText({ model, prompt: HELLO, onError: () => {} })));
  await step(api, "tools", async () => {
    const { steps, text } = await generateText({ model, prompt: HELLO, tools, stopWhen });
    if (steps[0].toolResults.length === 0) throw new Error("the tool was not called");
    return text;
  });
  await step(api, "streamed tools", async () => {
    const run = streamText({ model, prompt: HELLO, tools, stopWhen, onError: () => {} });
    const text = await told(run);
    if ((await run.steps)[0].toolResults.length === 0) throw new Error("the tool was not called");
    return text;
  });
  await step(api, "structured", async () => {
    const output = Output.object({ schema: z.object({ city: z.string(), degrees: z.number().int() }) });
    return (await generateText({ model, prompt: HELLO, output })).output.city;
  });
}
await step("embeddings", "whole", async () => {
  const { embeddings } = await embedMany({ model: openai.embedding("vectors"), values: [HELLO, STORY] });
  return embeddings[1].length;
});
for (const [api, model] of Object.entries(models)) {
  await refused(api, () => generateText({ model, prompt: STORY }));
}

/** The text of a stream; an error in it is thrown, where the SDK would only log it. */
async function told(run) {
  let said = "";
  for await (const part of run.fullStream) {
    if (part.type === "text-delta") said += part.text;
    if (part.type === "error") throw part.error;
  }
  return said;
}
