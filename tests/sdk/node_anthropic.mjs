// The official `@anthropic-ai/sdk`, unmodified: conversations, tools by its helpers, structured answers.

import { equal, key, load, model, newUser, pids, raises, run, url } from "./checks.mjs";

const { default: Anthropic } = await load("@anthropic-ai/sdk");
const { betaZodTool } = await load("@anthropic-ai/sdk/helpers/beta/zod");
const { zodOutputFormat } = await load("@anthropic-ai/sdk/helpers/zod");
const { z } = await load("zod");

const clientOf = (user) => new Anthropic({ baseURL: url, apiKey: key, defaultHeaders: { "x-pilotlight-user": user } });
const asked = (messages, more) => ({ model, max_tokens: 1000, messages, ...more });
const textOf = (message) => message.content.map((block) => block.text ?? "").join("");
const call = '[[tool:mcp__caller__add {"a":17,"b":25}]]';
const ada = '[[output:{"name":"Ada","age":36}]]';
const input_schema = { type: "object", properties: { a: { type: "number" }, b: { type: "number" } }, required: ["a", "b"] };
const tools = [{ name: "add", description: "Adds.", input_schema }];

const created = (client, messages, more) => client.messages.create(asked(messages, more));
const streamed = (client, messages, more) => client.messages.stream(asked(messages, more)).finalMessage();

async function converses(ask) {
  const user = newUser();
  const client = clientOf(user);
  const messages = [{ role: "user", content: "one" }];
  for (const [turn, next] of ["two", "three", "four"].entries()) {
    const message = await ask(client, messages);
    equal(textOf(message), `echo ${turn + 1}: ${messages.at(-1).content}`);
    messages.push({ role: "assistant", content: message.content }, { role: "user", content: next });
  }
  equal((await pids(user)).size, 1);
}

async function callsTools(ask) {
  const user = newUser();
  const client = clientOf(user);
  const messages = [{ role: "user", content: call }];
  const called = await ask(client, messages, { tools });
  equal([called.stop_reason, called.content[0].name, called.content[0].input], ["tool_use", "add", { a: 17, b: 25 }]);
  const result = { type: "tool_result", tool_use_id: called.content[0].id, content: "42" };
  messages.push({ role: "assistant", content: called.content }, { role: "user", content: [result] });
  equal(textOf(await ask(client, messages, { tools })), "TOOLS:ok 42");
  equal((await pids(user)).size, 1);
}

await run({
  create_converses: () => converses(created),
  stream_converses: () => converses(streamed),
  stream_comes_in_pieces: async () => {
    const pieces = [];
    const stream = clientOf(newUser()).messages.stream(asked([{ role: "user", content: "[[deltas:9]]" }]));
    stream.on("text", (piece) => pieces.push(piece));
    const message = await stream.finalMessage();
    equal(pieces.join(""), textOf(message));
    if (pieces.length < 9) throw new Error(`${pieces.length} pieces`);
  },
  create_calls_tools: () => callsTools(created),
  stream_calls_tools: () => callsTools(streamed),
  tool_runner_runs_functions: async () => {
    for (const stream of [false, true]) {
      const user = newUser();
      const sums = [];
      const run = ({ a, b }) => String(sums[sums.push(a + b) - 1]);
      const inputSchema = z.object({ a: z.number(), b: z.number() });
      const add = betaZodTool({ name: "add", description: "Adds.", inputSchema, run });
      const runner = clientOf(user).beta.messages.toolRunner({ ...asked([{ role: "user", content: call }]), tools: [add], stream });
      equal([textOf(await runner.runUntilDone()), sums], ["TOOLS:ok 42", [42]]);
      equal((await pids(user)).size, 1);
    }
  },
  parse_gives_an_object: async () => {
    const format = zodOutputFormat(z.object({ name: z.string(), age: z.number() }));
    const message = await clientOf(newUser()).messages.parse(asked([{ role: "user", content: ada }], { output_config: { format } }));
    equal(message.parsed_output, { name: "Ada", age: 36 });
  },
  refusals_are_its_exceptions: async () => {
    const wrong = { headers: { "x-pilotlight-tools": "some" } };
    const refused = () => clientOf(newUser()).messages.create(asked([{ role: "user", content: "hello" }]), wrong);
    equal((await raises(Anthropic.BadRequestError, refused)).status, 400);
  },
});
