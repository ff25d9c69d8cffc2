// The page as a whole: key, event stream, refresh, and the states of the connection.

import * as log from "/page/events.js";
import * as message from "/page/message.js";
import * as store from "/page/store.js";
import { Refusal, ask, byId, credentials, events, notify, write } from "/page/service.js";
import * as routes from "/page/routes.js";
import * as verbs from "/page/verbs.js";

/** Sessions are requested after events, at most this often, */
const LEAST_PAUSE = 700;
/** and less often where it takes long: the page works for a twentieth of the time. */
const REST = 20;
/** and without events at least this often, because memory grows silently. */
const LONGEST_PAUSE = 5000;
/** Pauses before reconnecting. */
const RETRIES = [1000, 2000, 4000, 8000];

let connection = null;
let tries = 0;
let retry;
let looking = false;
let lookAgain = null;
/** Milliseconds that the last look kept the page busy. */
let worked = 0;

function link(is, text) {
  byId("link").dataset.is = is;
  write(byId("link"), text);
  document.body.dataset.link = is;
}

function connect() {
  clearTimeout(retry);
  connection?.abort();
  const mine = (connection = new AbortController());
  listen(mine).then(
    // The stream ends by itself every few minutes.
    () => mine === connection && again(200),
    (error) => mine === connection && broken(error),
  );
}

function again(pause) {
  clearTimeout(retry);
  retry = setTimeout(connect, pause);
}

async function listen(mine) {
  let silence;
  let patience = 60_000;
  const alive = () => {
    clearTimeout(silence);
    silence = setTimeout(() => mine.abort(new Error("The service is silent")), patience);
  };
  try {
    alive();
    const response = await ask("/v1/events/stream", { signal: mine.signal });
    for await (const data of events(response, alive)) {
      const item = JSON.parse(data);
      if (item.type === "hello") {
        patience = Math.max(5000, item.heartbeat_seconds * 3000);
        welcome(item);
      } else {
        log.add(item);
        routes.event(item);
        soon();
      }
    }
  } finally {
    clearTimeout(silence);
  }
}

function welcome({ version, speaks_for: speaksFor, sees }) {
  if (tries && byId("notice").dataset.is === "bad") notify("");
  tries = 0;
  link("live", "Live");
  write(byId("version"), version);
  document.body.dataset.speaksFor = speaksFor;
  document.body.dataset.sees = sees;
  byId("key-open").hidden = !credentials.key && speaksFor === "anybody";
  write(byId("sessions-title"), sees === "all" ? "Sessions" : "Your sessions");
  if (!byId("key").contains(document.activeElement) || byId("key").dataset.sent) openKey(false);
  log.begin();
  message.fit(speaksFor);
  store.distrust();
  look();
}

function broken(error) {
  if (error instanceof Refusal && [400, 401, 403].includes(error.status)) {
    routes.forget();
    log.begin();
    link("closed", error.code.startsWith("missing_") ? "Waiting for a key" : "Not connected");
    byId("key-open").hidden = true;
    const why = {
      missing_key: "This service asks for a key.",
      missing_user: "This key speaks for many users. Name the one whose sessions you want to see.",
    };
    return openKey(true, why[error.code] ?? `${error.message}.`, error.code === "missing_user");
  }
  const pause = RETRIES[Math.min(tries, RETRIES.length - 1)];
  tries += 1;
  link("broken", `Not connected, trying again${tries > 3 ? ` every ${pause / 1000} s` : ""}`);
  again(pause);
}

/** Refreshes soon, once for all events until then. */
function soon() {
  lookAgain ??= setTimeout(look, Math.max(LEAST_PAUSE, REST * worked));
}

async function look() {
  clearTimeout(lookAgain);
  lookAgain = null;
  if (document.hidden || document.body.dataset.link !== "live") return;
  if (looking) return soon();
  looking = true;
  try {
    await routes.refresh();
    worked = Math.min(LONGEST_PAUSE / REST, routes.worked());
  } catch (error) {
    // Connection failures are reported by the stream.
    if (error instanceof Refusal && error.status !== 401) notify(`The sessions cannot be shown: ${error.message}`, "bad");
  }
  looking = false;
}

function openKey(open, why = "", asksUser = !byId("key-user-field").hidden) {
  const form = byId("key");
  const field = byId("key-user-field");
  const isNews = form.hidden || (asksUser && field.hidden);
  form.hidden = !open;
  delete form.dataset.sent;
  byId("key-open").ariaExpanded = String(open);
  write(byId("key-why"), why);
  field.hidden = !asksUser && !credentials.user;
  byId("key-forget").hidden = !credentials.key;
  if (open && isNews) {
    byId("key-value").value = credentials.key;
    byId("key-user").value = credentials.user;
    byId(asksUser ? "key-user" : "key-value").focus();
  }
}

byId("key-open").addEventListener("click", () => openKey(byId("key").hidden));
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  use(byId("key-value").value.trim(), byId("key-user-field").hidden ? "" : byId("key-user").value);
});
byId("key-forget").addEventListener("click", () => {
  byId("key-value").value = byId("key-user").value = "";
  use("", "");
});

function use(key, user) {
  credentials.set(key, user);
  byId("key").dataset.sent = "yes";
  routes.forget();
  link("waiting", "Connecting…");
  connect();
}

document.addEventListener("visibilitychange", look);
setInterval(look, LONGEST_PAUSE);

verbs.afterwards(look);
credentials.load();
message.prepare();
routes.prepare(() => void look());
routes.forget();
connect();
