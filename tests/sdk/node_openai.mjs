// The official `openai` SDK for Node, unmodified: conversations, tools by its helpers, structured answers, Responses.

import { equal, key, load, model, newUser, pids, raises, run, url } from "./checks.mjs";

const { default: OpenAI } = await load("openai");
const { zodResponseFormat, zodTextFormat } = await load("openai/helpers/zod");
const { z } = await load("zod");

const clientOf = (user) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key, defaultHeaders: { "x-pilotlight-user": user } });
const call = '[[tool:mcp__caller__add {"a":17,"b":25}]]';
const ada = '[[output:{"name":"Ada","age":36}]]';
const Ada = z.object({ name: z.string(), age: z.number() });
const parameters = { type: "object", properties: { a: { type: "number" }, b: { type: "number" } }, required: ["a", "b"] };
const tools = [{ type: "function", function: { name: "add", description: "Adds.", parameters } }];

const created = async (client, messages, more) => (await client.chat.completions.create({ model, messages, ...more })).choices[0];
const streamed = async (client, messages, more) =>
  (await client.chat.completions.stream({ model, messages, ...more }).finalChatCompletion()).choices[0];

async function converses(ask) {
  const user = newUser();
  const client = clientOf(user);
  const messages = [{ role: "user", content: "one" }];
  for (const [turn, next] of ["two", "three", "four"].entries()) {
    const { message } = await ask(client, messages);
    equal(message.content, `echo ${turn + 1}: ${messages.at(-1).content}`);
    messages.push(message, { role: "user", content: next });
  }
  equal((await pids(user)).size, 1);
}

async function callsTools(ask) {
  const user = newUser();
  const client = clientOf(user);
  const messages = [{ role: "user", content: call }];
  const { finish_reason, message } = await ask(client, messages, { tools });
  const [made] = message.tool_calls;
  equal([finish_reason, made.function.name, JSON.parse(made.function.arguments)], ["tool_calls", "add", { a: 17, b: 25 }]);
  messages.push(message, { role: "tool", tool_call_id: made.id, content: "42" });
  equal((await ask(client, messages, { tools })).message.content, "TOOLS:ok 42");
  equal((await pids(user)).size, 1);
}

await run({
  create_converses: () => converses(created),
  stream_converses: () => converses(streamed),
  stream_comes_in_pieces: async () => {
    const pieces = [];
    const messages = [{ role: "user", content: "[[deltas:9]]" }];
    const stream = await clientOf(newUser()).chat.completions.create({ model, messages, stream: true });
    for await (const chunk of stream) pieces.push(chunk.choices[0]?.delta.content ?? "");
    equal(pieces.join(""), Array.from({ length: 9 }, (_, number) => `${String(number).padStart(3, "0")} `).join(""));
    if (pieces.length < 9) throw new Error(`${pieces.length} pieces`);
  },
  create_calls_tools: () => callsTools(created),
  stream_calls_tools: () => callsTools(streamed),
  run_tools_runs_functions: async () => {
    for (const stream of [false, true]) {
      const user = newUser();
      const sums = [];
      const add = ({ a, b }) => String(sums[sums.push(a + b) - 1]);
      const runnable = { type: "function", function: { function: add, parse: JSON.parse, ...tools[0].function } };
      const messages = [{ role: "user", content: call }];
      const runner = clientOf(user).chat.completions.runTools({ model, messages, tools: [runnable], stream });
      equal([await runner.finalContent(), sums], ["TOOLS:ok 42", [42]]);
      equal((await pids(user)).size, 1);
    }
  },
  parse_gives_an_object: async () => {
    const messages = [{ role: "user", content: ada }];
    const response_format = zodResponseFormat(Ada, "person");
    const answer = await clientOf(newUser()).chat.completions.parse({ model, messages, response_format });
    equal(answer.choices[0].message.parsed, { name: "Ada", age: 36 });
  },
  responses_converse: async () => {
    const user = newUser();
    const client = clientOf(user);
    const first = await client.responses.create({ model, input: "one" });
    equal(first.output_text, "echo 1: one");
    const stream = client.responses.stream({ model, input: "two", previous_response_id: first.id });
    equal((await stream.finalResponse()).output_text, "echo 2: two");
    equal((await pids(user)).size, 1);
  },
  responses_call_tools: async () => {
    const user = newUser();
    const client = clientOf(user);
    const offered = [{ type: "function", strict: false, ...tools[0].function }];
    const called = await client.responses.create({ model, input: call, tools: offered });
    const made = called.output.find((item) => item.type === "function_call");
    equal([made.name, JSON.parse(made.arguments)], ["add", { a: 17, b: 25 }]);
    const input = [{ type: "function_call_output", call_id: made.call_id, output: "42" }];
    const answer = await client.responses.create({ model, input, tools: offered, previous_response_id: called.id });
    equal(answer.output_text, "TOOLS:ok 42");
    equal((await pids(user)).size, 1);
  },
  responses_parse_gives_an_object: async () => {
    const answer = await clientOf(newUser()).responses.parse({ model, input: ada, text: { format: zodTextFormat(Ada, "person") } });
    equal(answer.output_parsed, { name: "Ada", age: 36 });
  },
  refusals_are_its_exceptions: async () => {
    const wrong = { headers: { "x-pilotlight-tools": "some" } };
    const messages = [{ role: "user", content: "hello" }];
    const refused = () => clientOf(newUser()).chat.completions.create({ model, messages }, wrong);
    equal((await raises(OpenAI.BadRequestError, refused)).status, 400);
  },
});
