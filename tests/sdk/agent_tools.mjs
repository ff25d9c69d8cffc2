// An agent's own tools by the Agent SDK: one in this process, and the shell of its CLI; then a turn without any.
import { load } from "./checks.mjs";

const { createSdkMcpServer, query, tool } = await load("@anthropic-ai/claude-agent-sdk");
const { z } = await load("zod");

const add = tool("add", "Adds two numbers.", { a: z.number(), b: z.number() }, async ({ a, b }) => {
  console.log("added:", a + b);
  return { content: [{ type: "text", text: String(a + b) }] };
});
let next = () => {};

async function* prompts() {
  for (const content of [
    '[[tool:mcp__caller__mcp__calc__add {"a":17,"b":25}]]',
    '[[tool:mcp__caller__Bash {"command":"echo shell > proof","description":"writes"}]]',
    "[[say:done]]",
  ]) {
    const done = new Promise((resolve) => { next = resolve; });
    yield { type: "user", message: { role: "user", content }, parent_tool_use_id: null };
    await done;
  }
}

const options = {
  pathToClaudeCodeExecutable: process.env.AGENT_CLI,
  mcpServers: { calc: createSdkMcpServer({ name: "calc", tools: [add] }) },
  allowedTools: ["mcp__calc__add", "Bash(echo:*)"],
  permissionMode: "acceptEdits",
};
for await (const message of query({ prompt: prompts(), options })) {
  if (message.type !== "result") continue;
  if (message.is_error) throw new Error(JSON.stringify(message));
  console.log("result:", message.result);
  next();
}
