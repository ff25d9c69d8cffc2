// What the service as a whole says of itself. For operators alone; others see their own sessions.

import { ask } from "/page/service.js";

/** Between two reads without news. */
const PAUSE = 4000;

/** `history`: a list for each value, the oldest first. */
export const overview = { is: false, denied: false, history: null, data: null };
let readAt = -Infinity;
/** How often all was forgotten: an answer from before is for another key. */
let forgotten = 0;

export function forget() {
  forgotten += 1;
  Object.assign(overview, { is: false, denied: false, history: null, data: null });
  readAt = -Infinity;
}

/** There is news: it is read with the next refresh. */
export function distrust() {
  readAt = -Infinity;
}

/** Reads it if it is not fresh; returns whether there is news. */
export async function refresh() {
  overview.denied = document.body.dataset.sees !== "all";
  if (overview.denied || performance.now() - readAt < PAUSE) return false;
  readAt = performance.now();
  const last = overview.history?.ends_at.at(-1) ?? 0;
  const before = forgotten;
  const data = await (await ask(`/v1/overview?since=${last}`)).json();
  if (before !== forgotten) return false;
  overview.history = join(overview.history, data.history);
  Object.assign(overview, { is: true, data });
  return true;
}

/** The service keeps six hours; so does the page. */
const MOST = 6 * 240;

function join(old, more) {
  if (!old) return more;
  const joined = { bucket_seconds: more.bucket_seconds };
  for (const name of Object.keys(more)) {
    if (Array.isArray(more[name])) joined[name] = [...old[name], ...more[name]].slice(-MOST);
  }
  return joined;
}
