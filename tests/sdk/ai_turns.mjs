// The AI SDK, unmodified, with each of its providers.

import { equal, key, load, model, newUser, pids, raises, run, url } from "./checks.mjs";

const { APICallError, Output, generateObject, generateText, stepCountIs, streamObject, streamText, tool } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createAnthropic } = await load("@ai-sdk/anthropic");
const { z } = await load("zod");

const options = (user, more) => ({ baseURL: `${url}/v1`, apiKey: key, headers: { "x-pilotlight-user": user, ...more } });
const ways = {
  anthropic: (user, more) => createAnthropic(options(user, more))(model),
  chat: (user, more) => createOpenAI(options(user, more)).chat(model),
  // The default of that provider: the Responses API.
  responses: (user, more) => createOpenAI(options(user, more))(model),
};
const numbers = Array.from({ length: 9 }, (_, number) => `${String(number).padStart(3, "0")} `).join("");

async function converses(way) {
  const user = newUser();
  const messages = [{ role: "user", content: "one" }];
  const first = await generateText({ model: way(user), system: "be brief", messages });
  equal([first.text, first.finishReason], ["echo 1: one", "stop"]);
  if (!(first.usage.inputTokens > 0 && first.usage.outputTokens > 0)) throw new Error(JSON.stringify(first.usage));
  messages.push(...first.response.messages, { role: "user", content: "[[deltas:9]]" });
  const stream = streamText({ model: way(user), system: "be brief", messages });
  const pieces = [];
  for await (const piece of stream.textStream) pieces.push(piece);
  equal(pieces.join(""), numbers);
  if (pieces.length < 2) throw new Error("it came in one piece");
  messages.push(...(await stream.response).messages, { role: "user", content: "[[system]]" });
  equal((await generateText({ model: way(user), system: "be brief", messages })).text, "be brief");
  equal((await pids(user)).size, 1);
}

const add = (called) => tool({
  description: "Adds two numbers.",
  inputSchema: z.object({ a: z.number(), b: z.number() }),
  execute: async ({ a, b }) => {
    called.push([a, b]);
    return String(a + b);
  },
});
const prompt = '[[tool:mcp__caller__add {"a":17,"b":25}]]';

async function callsTools(way) {
  for (const ask of [generateText, (asked) => streamText(asked)]) {
    const user = newUser();
    const called = [];
    const answer = await ask({ model: way(user), tools: { add: add(called) }, stopWhen: stepCountIs(5), prompt });
    const text = await answer.text;
    equal([text, called], ["TOOLS:ok 42", [[17, 25]]]);
    equal((await answer.steps).map((step) => step.finishReason), ["tool-calls", "stop"]);
    equal((await pids(user)).size, 1);
  }
}

async function isStructured(way) {
  const schema = z.object({ name: z.string(), age: z.number() });
  const { object } = await generateObject({ model: way(newUser()), schema, prompt: '[[output:{"name":"Ada","age":36}]]' });
  equal(object, { name: "Ada", age: 36 });
}

const ada = '[[output:{"name":"Ada","age":36}]]';

async function isStructuredInPieces(way) {
  const schema = z.object({ name: z.string(), age: z.number() });
  const stream = streamObject({ model: way(newUser()), schema, prompt: ada });
  const seen = [];
  for await (const partial of stream.partialObjectStream) seen.push(partial);
  equal(seen.at(-1), { name: "Ada", age: 36 });
  equal(await stream.object, { name: "Ada", age: 36 });
}

async function isStructuredAfterTools(way) {
  const called = [];
  const output = Output.object({ schema: z.object({ name: z.string() }) });
  const asked = { model: way(newUser()), tools: { add: add(called) }, stopWhen: stepCountIs(5), output, prompt: prompt + '[[output:{"name":"Ada"}]]' };
  const answer = await generateText(asked);
  equal([answer.output, called], [{ name: "Ada" }, [[17, 25]]]);
}

async function isAnArray(way) {
  const schema = z.object({ n: z.number() });
  const { object } = await generateObject({ model: way(newUser()), output: "array", schema, prompt: '[[output:{"elements":[{"n":1},{"n":2}]}]]' });
  equal(object, [{ n: 1 }, { n: 2 }]);
}

async function isForced(way) {
  const called = [];
  for (const toolChoice of ["required", { type: "tool", toolName: "add" }]) {
    const answer = await generateText({ model: way(newUser()), tools: { add: add(called) }, toolChoice, prompt });
    equal([answer.finishReason, answer.toolCalls.length], ["tool-calls", 1]);
  }
}

async function refuses(way) {
  const call = () => generateText({ model: way(newUser(), { "x-pilotlight-tools": "some" }), prompt: "hello", maxRetries: 0 });
  equal((await raises(APICallError, call)).statusCode, 400);
}

await run({
  anthropic_provider_converses: () => converses(ways.anthropic),
  anthropic_provider_calls_tools: () => callsTools(ways.anthropic),
  anthropic_provider_is_structured: () => isStructured(ways.anthropic),
  anthropic_provider_is_refused: () => refuses(ways.anthropic),
  openai_chat_converses: () => converses(ways.chat),
  openai_chat_calls_tools: () => callsTools(ways.chat),
  openai_chat_is_structured: () => isStructured(ways.chat),
  openai_chat_is_refused: () => refuses(ways.chat),
  openai_provider_converses: () => converses(ways.responses),
  openai_provider_calls_tools: () => callsTools(ways.responses),
  openai_provider_is_structured: () => isStructured(ways.responses),
  openai_provider_is_refused: () => refuses(ways.responses),
  anthropic_provider_streams_objects: () => isStructuredInPieces(ways.anthropic),
  anthropic_provider_is_structured_after_tools: () => isStructuredAfterTools(ways.anthropic),
  anthropic_provider_gives_arrays: () => isAnArray(ways.anthropic),
  anthropic_provider_forces_calls: () => isForced(ways.anthropic),
  openai_chat_streams_objects: () => isStructuredInPieces(ways.chat),
  openai_chat_is_structured_after_tools: () => isStructuredAfterTools(ways.chat),
  openai_chat_gives_arrays: () => isAnArray(ways.chat),
  openai_chat_forces_calls: () => isForced(ways.chat),
  openai_provider_streams_objects: () => isStructuredInPieces(ways.responses),
  openai_provider_is_structured_after_tools: () => isStructuredAfterTools(ways.responses),
  openai_provider_gives_arrays: () => isAnArray(ways.responses),
  openai_provider_forces_calls: () => isForced(ways.responses),
  unknown_models_are_structured_by_a_tool: async () => {
    const schema = z.object({ name: z.string() });
    const asked = { schema, prompt: '[[tool:mcp__caller__json {"name":"Ada"}]]' };
    const { object } = await generateObject({ model: createAnthropic(options(newUser()))("sonnet"), ...asked });
    equal(object, { name: "Ada" });
  },
});
