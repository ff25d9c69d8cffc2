// The form to try a message as a user, with its streamed answer.

import { ask, byId, element, events, span, notify, write } from "/page/service.js";
import { prose } from "/page/text.js";

/** Maximum characters shown of an answer, so that the page stays fast. */
const MOST = 200_000;

let running = null;

export function prepare() {
  byId("message").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) send();
  });
  byId("message-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("message").requestSubmit();
  });
  byId("message-stop").addEventListener("click", () => running?.stop());
}

async function send() {
  const text = byId("message-text").value;
  const user = byId("message-user-field").hidden ? undefined : byId("message-user").value;
  const body = { messages: [{ role: "user", content: text }], session_id: byId("message-session").value };
  const answer = byId("answer");
  const begun = performance.now();
  let first = null;
  const hangUp = new AbortController();
  let stopped = false;
  running = {
    async stop() {
      stopped = true;
      // Disconnecting interrupts only if the service is configured so; the request always does.
      const session = encodeURIComponent(body.session_id);
      await ask(`/v1/sessions/${session}/interrupt`, { method: "POST", user }).catch(() => {});
      hangUp.abort();
    },
  };
  working(true);
  answer.replaceChildren();
  answer.hidden = false;
  write(byId("answer-facts"), "Sent. Waiting for the first word…");
  const say = (piece) => {
    first ??= (performance.now() - begun) / 1000;
    const room = MOST - answer.textContent.length;
    if (room > 0) answer.append(prose(piece.slice(0, room)));
    answer.scrollTop = answer.scrollHeight;
  };
  try {
    const response = await ask("/v1/messages/keepalive", { method: "POST", body, user, signal: hangUp.signal });
    const end = await follow(response, say);
    if (stopped) throw new Error("stopped");
    const facts = [`First word after ${span(first ?? (performance.now() - begun) / 1000)}`, `all after ${span((performance.now() - begun) / 1000)}`];
    if (end.total_cost_usd !== undefined) facts.push(`conversation so far ${end.total_cost_usd.toFixed(4)} USD`);
    write(byId("answer-facts"), `${facts.join(", ")}.`);
  } catch (error) {
    if (!answer.textContent) answer.hidden = true;
    if (stopped) {
      write(byId("answer-facts"), "Stopped. The session keeps its child.");
    } else {
      write(byId("answer-facts"), "");
      notify(`The message got no answer: ${error.message}`, "bad");
      if (!answer.hidden) answer.append(element("em", ` [${error.message}]`));
    }
  }
  running = null;
  working(false);
}

function working(is) {
  byId("message-send").ariaDisabled = String(is);
  write(byId("message-send"), is ? "Answering…" : "Send");
  byId("message-stop").hidden = !is;
  byId("answer").ariaBusy = String(is);
}

/** Shows the answer's text as it arrives; returns the line that ended the turn. */
async function follow(response, say) {
  let end;
  let spoken = false;
  for await (const data of events(response)) {
    if (data === "[DONE]") break;
    const line = JSON.parse(data);
    if (line.type === "stream_event" && !line.parent_tool_use_id && line.event?.delta?.type === "text_delta") {
      spoken = true;
      say(line.event.delta.text);
    } else if (line.type === "error") {
      throw new Error(line.error?.message ?? "the turn failed");
    } else if (line.type === "result") {
      end = line;
      if (!spoken && line.result) say(line.result);
    }
  }
  if (!end) throw new Error("the stream ended early");
  return end;
}

/** Shows the form as far as the caller may use it. */
export function fit(speaksFor) {
  const may = speaksFor !== "nobody";
  byId("message").hidden = !may;
  byId("try-not").hidden = may;
  byId("message-user-field").hidden = speaksFor === "itself";
  // A hidden field must not stop the form.
  byId("message-user").disabled = speaksFor === "itself";
}
