// What a page of another origin does in a browser: `fetch` with a stream, and the official SDKs as modules.

import Anthropic from "/modules/@anthropic-ai/sdk/index.mjs";
import OpenAI from "/modules/openai/index.mjs";

const model = "claude-opus-4-8";
const messages = [{ role: "user", content: "[[deltas:9]] [[delay:50]]" }];
const asked = { model, max_tokens: 1000, messages };

function equal(found, wanted) {
  const [one, other] = [found, wanted].map((value) => JSON.stringify(value));
  if (one !== other) throw new Error(`${one} is not ${other}`);
}

/** Carries the checks out, in their order: what went wrong, by their names. */
async function run(checks) {
  const failed = {};
  for (const [name, check] of Object.entries(checks)) await check().catch((error) => (failed[name] = String(error)));
  return failed;
}

export const post = ({ url, key }, body) =>
  fetch(`${url}/v1/messages`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-api-key": key, "x-pilotlight-session": "page" },
    body: JSON.stringify(body),
  });

export const start = ({ url, key }) => run({
  fetch_gets_a_stream_in_pieces: async () => {
    const answer = await post({ url, key }, { ...asked, stream: true });
    equal([answer.status, answer.type], [200, "cors"]);
    const pieces = [];
    for (const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
      const { value, done } = await reader.read();
      if (done) break;
      pieces.push(value);
    }
    if (pieces.length < 2) throw new Error(`${pieces.length} pieces`);
    const events = pieces.join("").match(/^event: .*$/gm);
    equal([events[0], events.at(-1)], ["event: message_start", "event: message_stop"]);
  },
  headers_of_an_answer_are_readable: async () => {
    const answer = await post({ url, key }, asked);
    await answer.json();
    equal(answer.headers.get("x-pilotlight-session"), "page");
    equal(answer.headers.get("anthropic-ratelimit-requests-limit"), "60");
    if (!answer.headers.get("request-id")) throw new Error("no request-id");
  },
  a_refusal_is_readable: async () => {
    const answer = await post({ url, key: "wrong" }, asked);
    equal([answer.status, (await answer.json()).error.code], [401, "invalid_key"]);
  },
  anthropic_sdk_streams: async () => {
    const client = new Anthropic({ baseURL: url, apiKey: key, dangerouslyAllowBrowser: true });
    const pieces = [];
    const stream = client.messages.stream(asked).on("text", (piece) => pieces.push(piece));
    const message = await stream.finalMessage();
    equal(pieces.join(""), message.content[0].text);
    if (pieces.length < 9) throw new Error(`${pieces.length} pieces`);
  },
  anthropic_sdk_raises_its_exceptions: async () => {
    const client = new Anthropic({ baseURL: url, apiKey: "wrong", dangerouslyAllowBrowser: true });
    const error = await client.messages.create(asked).catch((error) => error);
    equal(error instanceof Anthropic.AuthenticationError, true);
  },
  openai_sdk_streams: async () => {
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, dangerouslyAllowBrowser: true });
    let pieces = 0;
    for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
      pieces += chunk.choices[0]?.delta.content ? 1 : 0;
    }
    if (pieces < 9) throw new Error(`${pieces} pieces`);
    let deltas = 0;
    for await (const event of await client.responses.create({ model, input: messages[0].content, stream: true })) {
      deltas += event.type === "response.output_text.delta" ? 1 : 0;
    }
    if (deltas < 9) throw new Error(`${deltas} deltas`);
  },
});
