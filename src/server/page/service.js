// Asking the service: the key and the user, requests, streams of events, and the small things that all parts use.

const KEY = "pilotlight.key";
const USER = "pilotlight.user";

export const byId = (id) => document.getElementById(id);

/** An element with text in it. Text is never read as HTML here. */
export function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

/** Writes only what has changed: screen readers and selections are left in peace. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

let clearing;

/** Tells the outcome of what somebody did, or something bad that happened, for a while. */
export function tell(text, kind = "") {
  const notice = byId("notice");
  notice.dataset.is = kind;
  write(notice, text);
  clearTimeout(clearing);
  clearing = setTimeout(() => write(notice, ""), kind === "bad" ? 20_000 : 6000);
}

export const credentials = {
  // In memory where the browser keeps nothing.
  key: "",
  user: "",
  load() {
    try {
      this.key = sessionStorage.getItem(KEY) ?? "";
      this.user = sessionStorage.getItem(USER) ?? "";
    } catch { /* then they last as long as the page */ }
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

/** A refusal or failure of the service, in its own words. */
export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** Any text as the bytes of a header. */
const headerText = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/** Sends a request; a refusal is thrown. `user` is who is meant, where the key speaks for several. */
export async function ask(path, { method = "GET", body, user = credentials.user, signal } = {}) {
  const headers = {};
  if (credentials.key) headers["x-api-key"] = headerText(credentials.key);
  if (user) headers["x-pilotlight-user"] = headerText(user);
  if (body) headers["content-type"] = "application/json";
  const options = { method, headers, signal, cache: "no-store", credentials: "omit" };
  const response = await fetch(path, body ? { ...options, body: JSON.stringify(body) } : options);
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Refusal(response.status, told.error?.code ?? "", told.error?.message ?? `status ${response.status}`);
}

/** The data of each event of a stream, as it comes. `alive` is called for every sign of life. */
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

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
