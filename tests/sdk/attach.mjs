// An Agent SDK whose CLI is a child of the server: tools, hooks, permissions, interrupt, resume.
import assert from "node:assert";

const { query, tool, createSdkMcpServer } = await import(process.env.AGENT_SDK);
const pathToClaudeCodeExecutable = process.env.AGENT_CLI;

const seen = { added: 0, asked: [], hooked: [] };
const add = tool("add", "adds", {}, async () => {
  seen.added += 1;
  return { content: [{ type: "text", text: "3" }] };
});

let next = () => {};
let running;
async function* prompts() {
  const texts = ["[[say:one]]", "[[tool:mcp__me__add {}]]", '[[tool:Bash {"command":"touch made"}]]', "[[hang]]", "[[say:two]]"];
  for (const content of texts) {
    const done = new Promise((resolve) => { next = resolve; });
    running = content;
    yield { type: "user", message: { role: "user", content }, parent_tool_use_id: null };
    await done;
  }
}

const options = {
  pathToClaudeCodeExecutable,
  includePartialMessages: true,
  systemPrompt: "speak like a lighthouse keeper",
  canUseTool: async (name, input) => {
    seen.asked.push(name);
    return { behavior: "allow", updatedInput: input };
  },
  hooks: { PreToolUse: [{ hooks: [async (given) => { seen.hooked.push(given.tool_name); return {}; }] }] },
  mcpServers: { me: createSdkMcpServer({ name: "me", tools: [add] }) },
  allowedTools: ["mcp__me__add"],
};
// The table of docs/clients.md has these words.
const ok = (what) => console.log("ok", what);
const results = [];
let pieces = 0;
let session;
const all = query({ prompt: prompts(), options });
for await (const message of all) {
  if (message.type === "stream_event") pieces += 1;
  if (message.type === "system" && message.subtype === "init" && running === "[[hang]]") await all.interrupt();
  if (message.type === "result") {
    results.push(message.result ?? message.subtype);
    session = message.session_id;
    next();
  }
}
assert.deepEqual(results, ["one", "TOOLS:ok", "TOOLS:ok", "error_during_execution", "two"]);
ok("interrupt ends a turn");
assert.deepEqual(seen, { added: 1, asked: ["Bash"], hooked: ["mcp__me__add", "Bash"] });
ok("an SDK MCP server answers");
ok("canUseTool decides");
ok("hooks are called");
assert.ok(pieces > 0);
ok("answers come in pieces");

pieces = 0;
let recalled;
for await (const message of query({ prompt: "[[recall]]", options: { pathToClaudeCodeExecutable, resume: session } })) {
  if (message.type === "stream_event") pieces += 1;
  if (message.type === "result") recalled = message.result;
}
assert.ok(recalled.includes("[[say:one]]"), recalled);
assert.equal(pieces, 0);
ok("resume goes on");
console.log("done");
