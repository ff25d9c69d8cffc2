// Requests to the service with key and user, event streams, and helpers shared by all parts.

import { prose } from "/page/text.js";

const KEY = "pilotlight.key";
const USER = "pilotlight.user";

export const byId = (id) => document.getElementById(id);

/** Creates an element with text, which is never parsed as HTML. */
export function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = prose(text);
  if (kind) made.className = kind;
  return made;
}

/** Writes changed text only, so that screen readers and selections are not disturbed. */
export function write(node, text) {
  const shown = prose(text);
  if (node.textContent !== shown) node.textContent = shown;
}

let clearing;

/** Shows the outcome of an action, or a failure, for a while. */
export function notify(text, kind = "") {
  const notice = byId("notice");
  notice.dataset.is = kind;
  write(notice, text);
  clearTimeout(clearing);
  clearing = setTimeout(() => write(notice, ""), kind === "bad" ? 20_000 : 6000);
}

export const credentials = {
  // In memory where the browser stores nothing.
  key: "",
  user: "",
  load() {
    try {
      this.key = sessionStorage.getItem(KEY) ?? "";
      this.user = sessionStorage.getItem(USER) ?? "";
    } catch { /* kept until the page is closed */ }
  },
  set(key, user) {
    [this.key, this.user] = [key, user];
    try {
      for (const [name, value] of [[KEY, key], [USER, user]]) {
        if (value) sessionStorage.setItem(name, value);
        else sessionStorage.removeItem(name);
      }
    } catch { /* as above */ }
  },
};

/** A refusal or failure of the service, with its message. */
export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** Encodes text as the bytes of a header. */
const headerText = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/** Sends a request and throws a refusal. `user` is the user of the request, if the key acts for several. */
export async function ask(path, { method = "GET", body, user = credentials.user, signal } = {}) {
  const headers = {};
  if (credentials.key) headers["x-api-key"] = headerText(credentials.key);
  if (user) headers["x-pilotlight-user"] = headerText(user);
  if (body) headers["content-type"] = "application/json";
  const options = { method, headers, signal, cache: "no-store", credentials: "omit" };
  const response = await fetch(path, body ? { ...options, body: JSON.stringify(body) } : options);
  if (response.ok) return response;
  const error = await response.json().catch(() => ({}));
  throw new Refusal(response.status, error.error?.code ?? "", error.error?.message ?? `status ${response.status}`);
}

/** Yields the data of each event of a stream. `alive` is called for all received data. */
export async function* events(response, alive = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    const frames = (text + value).split("\n\n");
    text = frames.pop();
    for (const line of frames.flatMap((frame) => frame.split("\n"))) {
      if (line.startsWith("data: ")) yield line.slice("data: ".length);
    }
  }
}

/** A user as the service lists it: percent-encoded, for it may be any bytes. */
export function userName(encoded) {
  try {
    return decodeURIComponent(encoded);
  } catch {
    return encoded;
  }
}

/** How long something took. */
export function span(seconds) {
  if (seconds < 0.0995) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 0.995) return `${Math.round(seconds * 100) * 10} ms`;
  return seconds < 10 ? `${seconds.toFixed(1)} s` : age(seconds);
}

/** How long something lasts, in whole units. */
export function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (minutes < 60) return `${minutes} min`;
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${days} d`;
}

export function bytes(count) {
  if (!count) return "–";
  return count < 1e9 ? `${Math.max(1, Math.round(count / 2 ** 20))} MiB` : `${(count / 2 ** 30).toFixed(1)} GiB`;
}

/** A number of things, short: 1234 is 1.2 k. */
export function count(number) {
  if (number < 1000) return String(number);
  const [unit, name] = number < 1e6 ? [1e3, "k"] : number < 1e9 ? [1e6, "M"] : [1e9, "G"];
  const share = number / unit;
  return `${share < 10 ? share.toFixed(1) : Math.round(share)} ${name}`;
}

/** US dollars. */
export function money(usd) {
  if (!usd) return "–";
  return usd < 0.01 ? "<$0.01" : `$${usd < 100 ? usd.toFixed(2) : Math.round(usd)}`;
}

/** A model without what all names begin with. */
export const shortModel = (model) => (model ? model.replace(/^claude-/, "").replace(/-\d{8}$/, "") : "–");

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
