// Three turns of one conversation by the Agent SDK, with the answers in pieces.
import { load } from "./checks.mjs";

const { query } = await load("@anthropic-ai/claude-agent-sdk");

let next = () => {};
const answered = () => new Promise((resolve) => { next = resolve; });

async function* prompts() {
  for (const word of ["one", "two", "three"]) {
    const done = answered();
    yield { type: "user", message: { role: "user", content: `[[say:${word}]]` }, parent_tool_use_id: null };
    await done;
  }
}

const options = { pathToClaudeCodeExecutable: process.env.AGENT_CLI, includePartialMessages: true };
for await (const message of query({ prompt: prompts(), options })) {
  const text = message.type === "stream_event" ? message.event.delta?.text : undefined;
  if (text) console.log("delta:", text);
  if (message.type === "result") {
    if (message.is_error) throw new Error(JSON.stringify(message));
    console.log("result:", message.result);
    next();
  }
}
