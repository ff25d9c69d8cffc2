// Recent events, latest first, and the latencies of starts and turns.

import { byId, clock, element, span, notify, userName, write } from "/page/service.js";
import { named } from "/page/text.js";

/** Maximum lines. */
const MOST = 150;
/** Bars of a sparkline. */
const BARS = 60;
const [WIDTH, HEIGHT] = [240, 36];
const SVG = "http://www.w3.org/2000/svg";

/** Description and severity of each event. */
const WORDS = {
  started: ({ generation }) => [`child ${generation} started`, ""],
  ready: ({ took_seconds }) => [`ready after ${span(took_seconds)}`, "good"],
  not_started: ({ reason }) => [`could not be started: ${plain(reason)}`, "bad"],
  turn_ended: ({ outcome, took_seconds }) => [
    outcome === "ok" ? `turn answered in ${span(took_seconds)}` : `turn ended after ${span(took_seconds)}: ${plain(outcome)}`,
    outcome === "ok" ? "" : outcome === "cancelled" ? "odd" : "bad",
  ],
  own_turn: ({ cost_usd }) => [`the CLI ran a turn of its own, $${Number(cost_usd).toFixed(4)}`, ""],
  permission_needed: ({ tool_name }) => [`needs a permission: ${named(tool_name)}`, "odd"],
  refused: ({ reason }) => [`turn refused: ${plain(reason)}`, "odd"],
  crashed: ({ detail }) => [`crashed: ${detail}`, "bad"],
  restarted: ({ cause }) => [`restarted after a ${plain(cause)}`, "odd"],
  paused: () => ["failed too often and pauses", "bad"],
  evicted: ({ reason }) => [reason === "admin" ? "evicted on request" : `evicted: ${plain(reason)}`, ""],
  expired: ({ reason }) => [`deleted by the retention rules: ${plain(reason)}`, "odd"],
  context_lost: ({ kind }) => [kind === "conversation" ? "lost its conversation" : "lost its latest turns", "bad"],
  recovered: () => ["restored its conversation from the journal", "odd"],
  missed: () => ["Some events were too fast for this page.", "odd"],
};
const plain = (word) => String(word ?? "").replaceAll("_", " ");

const latencies = { starts: [], turns: [] };
/** Lines and bars wait for the next frame, so that a burst is drawn once. */
let waiting = [];
/** Events right after connecting are history and are not announced. */
let listening = false;

/** A new stream begins with all recent events. */
export function begin() {
  byId("events").replaceChildren();
  Object.assign(latencies, { starts: [], turns: [] });
  waiting = [];
  listening = false;
  setTimeout(() => (listening = true), 1000);
  draw();
}

export function add(event) {
  if (!waiting.length) requestAnimationFrame(draw);
  waiting.push(event);
  if (waiting.length > 4 * MOST) waiting.shift();
  if (event.type === "ready") note("starts", { took: event.took_seconds });
  if (event.type === "turn_ended") {
    note("turns", { took: event.took_seconds, bad: !["ok", "cancelled"].includes(event.outcome) });
  }
  // Screen readers do not read the list, because a busy service would never let them finish.
  if (listening && ["crashed", "paused"].includes(event.type)) {
    notify(`${who(event)} ${WORDS[event.type](event)[0]}.`, "bad");
  }
}

function note(name, bar) {
  latencies[name].push(bar);
  if (latencies[name].length > BARS) latencies[name].shift();
}

const who = ({ user, session }) => [user === undefined ? "" : userName(user), session === "default" && user ? "" : session].filter(Boolean).map(named).join(", ");

function draw() {
  const list = byId("events");
  for (const event of waiting) {
    const [text, kind] = WORDS[event.type]?.(event) ?? [plain(event.type), ""];
    const line = element("li", "", kind);
    const time = element("time", event.at ? clock(event.at) : "");
    line.append(time, element("b", event.session === undefined ? "" : who(event)), element("span", text));
    list.prepend(line);
  }
  waiting = [];
  while (list.childElementCount > MOST) list.lastChild.remove();
  byId("events-empty").hidden = list.childElementCount > 0;
  list.hidden = !list.childElementCount;
  sparkline("starts");
  sparkline("turns");
}

/** One bar each, on a logarithmic scale from a millisecond to a minute. */
function sparkline(name) {
  const bars = latencies[name];
  const step = WIDTH / BARS;
  const height = (took) => Math.min(HEIGHT, Math.max(2, (Math.log10(Math.max(took, 0.001) * 1000) / 5) * HEIGHT));
  const drawn = bars.map(({ took, bad }, index) => {
    const bar = document.createElementNS(SVG, "rect");
    const tall = height(took);
    const place = { x: WIDTH - (bars.length - index) * step, y: HEIGHT - tall, width: step - 1, height: tall };
    for (const [attribute, value] of Object.entries(place)) bar.setAttribute(attribute, value);
    if (bad) bar.setAttribute("class", "bad");
    return bar;
  });
  byId(name).replaceChildren(...drawn);
  const sorted = bars.map(({ took }) => took).sort((one, other) => one - other);
  const text = sorted.length
    ? `last ${sorted.length}: median ${span(sorted[Math.floor(sorted.length / 2)])}, longest ${span(sorted.at(-1))}`
    : "none yet";
  write(byId(`${name}-text`), text);
}
