// The sessions that the page knows. All are read when the page connects, then those in memory alone: the others do not
// change. One that leaves the memory is asked for once; not in a cluster, where a question brings its user to a node.

import { ask, credentials, userName } from "/page/service.js";
import { named } from "/page/text.js";

/** Sessions that are asked for one by one; more are read all at once. */
const MOST_SINGLE = 20;
/** Milliseconds between two reads of all in a cluster, where sessions have left the memory of their node. */
const WHOLE_AGAIN = 60_000;
/** The longest list of all users, and of one. */
const MOST = { all: 10_000, own: 1000 };

/** By key, and how far they are known. `at` and `serverTime`: ages advance between two answers. `took`: milliseconds of the
 * last look without the wait for the service. `unreachable`: nodes of a cluster that did not answer. */
export const known = { sessions: new Map(), truncated: false, unreachable: [], spares: {}, at: 0, serverTime: 0, took: 0, isRead: false, wholeAt: 0, version: 0 };

export const keyOf = ({ user, id }) => JSON.stringify([user ?? "", id]);

/** How often all was forgotten, and how often distrusted: an answer from before is out of date. */
const count = { forgotten: 0, distrusted: 0 };

export function forget() {
  count.forgotten += 1;
  known.sessions.clear();
  Object.assign(known, { truncated: false, unreachable: [], spares: {}, isRead: false, version: known.version + 1 });
}

/** Reads all again with the next refresh. */
export function distrust() {
  count.distrusted += 1;
  known.isRead = false;
}

export async function refresh() {
  const all = !known.isRead;
  const { forgotten, distrusted } = count;
  const response = await ask(`/v1/sessions?limit=${MOST[document.body.dataset.sees] ?? MOST.own}${all ? "" : "&loaded=true"}`);
  const serverTime = Date.parse(response.headers.get("date")) / 1000 || Date.now() / 1000;
  const text = await response.text();
  const begun = performance.now();
  const { sessions, truncated, spares, unreachable } = JSON.parse(text);
  const before = known.sessions;
  const found = new Map();
  for (const session of sessions) {
    const key = keyOf(session);
    session.loaded = !all || session.state !== "dormant";
    found.set(key, keep(before.get(key), session, key));
  }
  if (!all) {
    const gone = [...before].filter(([key, session]) => session.loaded && !found.has(key));
    const isDue = unreachable ? gone.length && begun - known.wholeAt > WHOLE_AGAIN : gone.length > MOST_SINGLE;
    if (isDue) return void ((known.isRead = false), await refresh());
    for (const [key, session] of before) if (!found.has(key)) found.set(key, session);
    for (const [key, session] of gone) {
      if (unreachable) {
        found.set(key, keep(session, { ...session, ...AT_REST, idle_seconds: agesOf(session).idle }, key));
        continue;
      }
      const now = await one(session);
      if (now) found.set(key, keep(session, now, key));
      else found.delete(key);
    }
  }
  if (forgotten !== count.forgotten) return;
  const isRead = distrusted === count.distrusted;
  Object.assign(known, { sessions: found, spares: spares ?? {}, unreachable: unreachable ?? [], at: performance.now(), serverTime, isRead });
  if (all) Object.assign(known, { truncated, wholeAt: begun });
  known.took = performance.now() - begun;
  // An object that stayed the same has not changed.
  if (before.size !== found.size || [...found].some(([key, session]) => before.get(key) !== session)) known.version += 1;
}

/** What has not changed stays the same object, so that its row is not drawn again. */
function keep(old, session, key) {
  if (old && FIELDS.every((field) => old[field] === session[field]) && old.last_exit?.at === session.last_exit?.at) {
    old.idle_seconds = session.idle_seconds;
    old.read = performance.now();
    return old;
  }
  const user = session.user === undefined ? "" : userName(session.user);
  const words = [session.title, user, session.id, named(user), named(session.id), session.model, session.pid, session.state];
  return Object.assign(session, { key, name: named(user), read: performance.now(), text: words.join(" ").toLowerCase() });
}

const FIELDS = [
  "state", "pid", "generation", "model", "turns", "restarts", "memory_bytes", "cpu_cores", "queue_depth", "total_cost_usd", "frozen", "title",
  "input_tokens", "output_tokens", "pending_permissions", "last_used", "loaded",
];

/** What a session without a child has. */
const AT_REST = { state: "dormant", pid: null, memory_bytes: 0, cpu_cores: null, queue_depth: 0, frozen: false, pending_permissions: 0, loaded: false };

async function one(session) {
  try {
    const now = await (await ask(path(session, ""), of(session, "GET"))).json();
    return { ...now, user: session.user, loaded: false };
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** The address of a session. One of a list of everybody's names its user, as the service lists it: percent-encoded. */
export const path = (session, rest, query = "") => {
  const fields = [session.user === undefined ? "" : `user=${session.user}`, query].filter(Boolean).join("&");
  return `/v1/sessions/${encodeURIComponent(session.id)}${rest}${fields ? `?${fields}` : ""}`;
};

/** Requests name the user of a session in the path; a user's own key needs none. */
export const of = (session, method, more = {}) => ({ method, user: session.user === undefined ? credentials.user : "", ...more });

/** The session's place on this page. */
export const placeOf = (session) => `#/session/${session.user ?? ""}/${encodeURIComponent(session.id)}`;

/** Seconds since the session was used last, and since it began. */
export function agesOf(session) {
  const idle = session.state === "busy" ? 0 : session.idle_seconds + (performance.now() - session.read) / 1000;
  // The service's clock is known in whole seconds.
  const now = known.serverTime + (performance.now() - known.at) / 1000;
  return { idle, age: Math.max(idle, now - session.created_at) };
}

export const WITH_CHILD = ["busy", "idle", "starting", "stopping"];

/** Ends that nobody has to look at. */
export const isOrderly = (exit) => !exit || ["clean", "evicted", "drain"].includes(exit.reason);
