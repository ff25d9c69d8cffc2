// What needs attention, the most urgent first, each with a link to its place.

import { age, byId, bytes, clock, count, money, userName } from "/page/service.js";
import { agesOf, known, placeOf } from "/page/store.js";
import * as nodes from "/page/nodes.js";
import { overview } from "/page/overview.js";
import { named } from "/page/text.js";
import { html, render } from "/page/ui.js";
import { Verb } from "/page/verbs.js";

/** Items of one kind; more are counted. */
const MOST = 4;
/** Seconds for which a failure is news. */
const NEWS = 15 * 60;
/** Seconds within which one failure brings about another. */
const SAME = 5;
/** A session is a hog beyond this share of what one may use, or of what all may. */
const HOG_OF_OWN = 0.5;
const HOG_OF_ALL = 0.3;
/** Or while it keeps more processors busy for a minute than this without a turn, or than this share of all within one. */
const HOG_AT_REST = 0.1;
const HOG_OF_PROCESSORS = 0.75;
/** A limit is near beyond this share. */
const NEAR = 0.9;

const who = (session) => html`<b>${named(session.name || session.id)}</b>${session.name && session.id !== "default" ? html` <span class="quiet">${named(session.id)}</span>` : ""}`;

const FAILED = {
  crashed: (detail) => html`its CLI crashed: <bdi>${detail}</bdi>`,
  not_started: (detail) => `its CLI does not start: ${detail}`,
  paused: () => "its CLI failed too often, and pauses",
  turn_failed: (detail) => (detail === "error" ? "a turn ended with an error" : `a turn ended with ${detail.replaceAll("_", " ")}`),
  context_lost: (detail) => `it lost a part of its conversation (${detail})`,
};

/** The latest failure of each session that is news. */
function failures() {
  const data = overview.data;
  const now = known.serverTime;
  const latest = new Map();
  for (const failure of data?.failures ?? []) {
    const key = JSON.stringify([failure.user, failure.session]);
    if (now - failure.at >= NEWS) continue;
    const later = latest.get(key);
    // A turn that is lost with its child is no cause.
    const isCause = later?.kind === "turn_failed" && failure.kind !== "turn_failed" && later.at - failure.at < SAME;
    if (!later || isCause) latest.set(key, failure);
  }
  return [...latest.values()];
}

const verbsOf = (session) =>
  ["Interrupt", "Evict"].filter((name) => name === "Evict" || session.state === "busy").map((name) => html`<${Verb} key=${name} name=${name} session=${session} />`);

const processorsOf = ({ cpu_cores: cores }) => `${Math.round(cores * 10) / 10} ${cores === 1 ? "processor" : "processors"}`;

export function items() {
  const found = [];
  const sessions = [...known.sessions.values()];
  const data = overview.data;
  const add = (kind, key, what, href, verbs = "") => found.push({ kind, key, what, href, verbs });
  for (const reason of data?.reasons ?? []) add("bad", `reason ${reason}`, html`<b>No new turns:</b> ${reason}`, "#/load");
  for (const { kind, key, what } of nodes.problems()) add(kind, key, what, "#nodes");

  const asking = sessions.filter((session) => session.pending_permissions > 0);
  for (const session of asking) {
    const number = session.pending_permissions;
    add("asks", `asks ${session.key}`, html`${who(session)} waits for ${number === 1 ? "an answer" : `${number} answers`}`, placeOf(session));
  }
  const failed = new Set();
  for (const failure of failures()) {
    const session = { user: failure.user, id: failure.session, name: userName(failure.user) };
    failed.add(JSON.stringify([failure.user, failure.session]));
    const text = (FAILED[failure.kind] ?? ((detail) => html`${failure.kind}: <bdi>${detail}</bdi>`))(failure.detail);
    add("bad", `failed ${failure.user} ${failure.session}`, html`${who(session)} failed at ${clock(failure.at)}: ${text}`, `${placeOf(session)}/why`);
  }
  for (const session of sessions) {
    const is = session.state === "failed" || session.state === "backoff";
    if (!is || failed.has(session.key)) continue;
    add("bad", `failed ${session.key}`, html`${who(session)} ${session.state === "failed" ? "failed" : "is about to be restarted"}: <bdi>${session.last_exit?.detail ?? "its CLI does not start"}</bdi>`, `${placeOf(session)}/why`);
  }

  const { memory, processors, waiting, children, starting, disk } = data?.use ?? {};
  if (memory) {
    const hogs = sessions.filter(({ memory_bytes: used }) => used > HOG_OF_OWN * memory.per_session || used > HOG_OF_ALL * memory.limit);
    hogs.sort((one, other) => other.memory_bytes - one.memory_bytes);
    for (const session of hogs) {
      const share = Math.round((session.memory_bytes / memory.per_session) * 100);
      add("hog", `hog ${session.key}`, html`${who(session)} uses ${bytes(session.memory_bytes)}, ${share} % of what a session may`, placeOf(session), verbsOf(session));
    }
    if (memory.used > NEAR * memory.limit) add("hog", "memory", html`All sessions together use ${bytes(memory.used)} of ${bytes(memory.limit)}`, "#/load");
  }
  const isBusy = (session) => session.state === "busy";
  const burning = sessions.filter((session) => session.cpu_cores > (isBusy(session) ? HOG_OF_PROCESSORS * (processors?.limit ?? Infinity) : HOG_AT_REST));
  burning.sort((one, other) => other.cpu_cores - one.cpu_cores);
  for (const session of burning) {
    const when = isBusy(session) ? ` of ${processors.limit}` : " without a turn";
    add("hog", `burns ${session.key}`, html`${who(session)} keeps ${processorsOf(session)}${when} busy`, placeOf(session), verbsOf(session));
  }
  if (waiting?.used > 0) {
    const full = children.used >= children.limit;
    const why = full ? `all ${children.limit} children are in use` : starting.used >= starting.limit ? `${starting.limit} start at the same time, which is the limit` : "memory is short";
    add("queue", "queue", html`<b>${waiting.used} ${waiting.used === 1 ? "start waits" : "starts wait"}:</b> ${why}`, "#/load");
  }
  if (disk && disk.used > NEAR * disk.limit) add("bad", "disk", html`<b>The disk is nearly full:</b> ${bytes(disk.limit - disk.used)} free`, "#/load");
  const limit = data?.spend.limit_usd;
  for (const { user, cost_usd: cost } of data?.spend.top ?? []) {
    if (limit && cost > NEAR * limit) add("hog", `spend ${user}`, html`<b>${named(userName(user))}</b> has spent ${money(cost)} of ${money(limit)} today`, "#/spend");
  }
  for (const warning of data?.warnings ?? []) add("odd", `warning ${warning}`, warning, "#/load");
  return found;
}

const KINDS = { bad: "failed", asks: "asks", hog: "hog", queue: "queue", odd: "note" };

export function show() {
  const all = items();
  const shown = [];
  const left = {};
  const seen = {};
  for (const item of all) {
    seen[item.kind] = (seen[item.kind] ?? 0) + 1;
    if (seen[item.kind] <= MOST) shown.push(item);
    else left[item.kind] = (left[item.kind] ?? 0) + 1;
  }
  const calm = known.isRead && !all.length;
  render(html`
    ${calm && html`<li class="calm" key="calm">Nothing needs attention.</li>`}
    ${shown.map(({ kind, key, what, href, verbs }) => html`<li key=${key} data-kind=${kind}>
      <span class="kind">${KINDS[kind]}</span><a href=${href}>${what}</a><span class="buttons">${verbs}</span></li>`)}
    ${Object.entries(left).map(([kind, more]) => html`<li key=${`more ${kind}`} data-kind=${kind}>
      <span class="kind">${KINDS[kind]}</span><span class="quiet">and ${count(more)} more</span></li>`)}`, byId("attention"));
}
