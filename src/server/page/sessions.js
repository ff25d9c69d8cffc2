// The list of sessions: search, states, order, and the rows that are in sight. Thousands are as quick as three.

import { age, byId, bytes, clock, count, money, shortModel } from "/page/service.js";
import { agesOf, isOrderly, known, placeOf, WITH_CHILD } from "/page/store.js";
import { named } from "/page/text.js";
import { Component, html, render, Steady } from "/page/ui.js";
import { Verb } from "/page/verbs.js";

/** Rows that are drawn beyond the edges. */
const BEYOND = 6;
const ROW = 46;
const ROW_PHONE = 132;
const phone = matchMedia("(max-width: 760px)");

/** In the order in which they matter. */
export const STATES = ["failed", "backoff", "asks", "busy", "idle", "starting", "stopping", "dormant"];
export const isIn = (session, state) => (state === "asks" ? session.pending_permissions > 0 : session.state === state);

/** Failed ones first, then those that wait for an answer, then those with a child. */
const rank = (session) =>
  session.state === "failed" || session.state === "backoff" ? 0 : session.pending_permissions ? 1 : WITH_CHILD.includes(session.state) ? 2 : 3;
const tokens = (session) => session.input_tokens + session.output_tokens;

/** Name, value to sort by (largest first), and class of each column. */
const COLUMNS = [
  ["Session", (session) => session.title || session.name || session.id, ""],
  ["State", (session) => -rank(session), ""],
  ["Model", (session) => session.model ?? "", "wide-only"],
  ["Idle", (session) => -agesOf(session).idle, "number"],
  ["Memory", (session) => session.memory_bytes, "number"],
  ["Tokens", tokens, "number"],
  ["Cost", (session) => session.total_cost_usd, "number"],
  ["Turns", (session) => session.turns, "number wide-only"],
  ["Restarts", (session) => session.restarts, "number wide-only"],
  ["Pid", (session) => session.pid ?? 0, "number wide-only"],
  ["Last exit", (session) => session.last_exit?.at ?? 0, ""],
];

export const view = { search: "", state: "", sort: "State", up: false, selected: "", found: [] };
let stamp = "";
let foundFor = "";

/** Sessions that match, in order. Found again if something has changed. */
function find() {
  const now = [known.version, view.search, view.state, view.sort, view.up].join("|");
  if (now === foundFor) return;
  foundFor = now;
  const words = view.search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [...known.sessions.values()].filter(
    (session) => (!view.state || isIn(session, view.state)) && words.every((word) => session.text.includes(word)),
  );
  const [, value] = COLUMNS.find(([name]) => name === view.sort);
  const values = new Map(found.map((session) => [session, value(session)]));
  const direction = view.up ? -1 : 1;
  const byName = (one, other) => (one.key < other.key ? -1 : 1);
  found.sort((one, other) => {
    const [a, b] = [values.get(one), values.get(other)];
    if (a === b) return byName(one, other);
    return direction * (typeof a === "string" ? (a < b ? -1 : 1) : b - a);
  });
  view.found = found;
}

class Row extends Steady {
  render({ session, selected, place }) {
    const { state, last_exit: exit } = session;
    const id = named(session.id);
    const who = [session.name, session.name ? id : ""].filter(Boolean).join(" · ");
    return html`<tr data-state=${state} data-selected=${selected ? "yes" : undefined} aria-rowindex=${place + 2}>
      <th scope="row" title=${[session.title, who || id].filter(Boolean).join("\n")}>
        <a href=${placeOf(session)}><b>${session.title || session.name || id}</b></a>
        <span class="quiet">${session.title ? who || id : session.name ? id : ""}</span>
      </th>
      <td data-label="State"><span class="state">${session.frozen ? `${state}, frozen` : state}</span>
        ${session.pending_permissions > 0 && html`<a class="asks" href=${placeOf(session)}>asks</a>`}
        ${session.queue_depth > 0 && html`<span class="quiet">+${session.queue_depth} waiting</span>`}</td>
      <td data-label="Model" class="wide-only">${shortModel(session.model)}</td>
      <td data-label="Idle" class="number"><${Idle} session=${session} /></td>
      <td data-label="Memory" class="number">${bytes(session.memory_bytes)}</td>
      <td data-label="Tokens" class="number">${count(tokens(session))}</td>
      <td data-label="Cost" class="number">${money(session.total_cost_usd)}</td>
      <td data-label="Turns" class="number wide-only">${session.turns}</td>
      <td data-label="Restarts" class="number wide-only" data-some=${String(session.restarts > 0)}>${session.restarts}</td>
      <td data-label="Pid" class="number wide-only">${session.pid ?? "–"}</td>
      <td data-label="Last exit" title=${exit?.detail} data-bad=${String(!isOrderly(exit))}>${exit ? `${exit.reason === "evicted" ? "evicted" : exit.detail}, ${clock(exit.at)}` : "–"}</td>
      <td class="buttons">${["Warm", "Interrupt", "Evict"].map((name) =>
        (name !== "Warm" || document.body.dataset.speaksFor !== "nobody") && html`<${Verb} key=${name} name=${name} session=${session} />`)}</td>
    </tr>`;
  }
}

/** Advances by itself; a row is not drawn for it. */
class Idle extends Component {
  componentDidMount() {
    this.timer = setInterval(() => document.hidden || this.forceUpdate(), 1000);
  }
  componentWillUnmount() {
    clearInterval(this.timer);
  }
  render({ session }) {
    const { idle } = agesOf(session);
    return session.state === "busy" ? "–" : idle < 3600 ? age(idle) : idle < 48 * 3600 ? `${Math.floor(idle / 3600)} h` : `${Math.floor(idle / 86_400)} d`;
  }
}

class Head extends Steady {
  render({ sort, up }) {
    const press = (name) => {
      Object.assign(view, sort === name ? { up: !up } : { sort: name, up: name === "Session" || name === "Model" });
      show(true);
    };
    return html`<tr>${COLUMNS.map(([name, , kind]) => html`
      <th key=${name} scope="col" class=${kind} aria-sort=${sort === name ? (up ? "ascending" : "descending") : undefined}>
        <button type="button" class="sort" onClick=${() => press(name)}>${name}</button></th>`)}
      <th scope="col"><span class="unseen">Actions</span></th></tr>`;
  }
}

/** The window of rows that is in sight. */
function windowOf() {
  const box = byId("list");
  const tall = phone.matches ? ROW_PHONE : ROW;
  const first = Math.max(0, Math.floor(box.scrollTop / tall) - BEYOND);
  const last = Math.min(view.found.length, Math.ceil((box.scrollTop + box.clientHeight) / tall) + BEYOND);
  return { tall, first, last: Math.max(last, Math.min(view.found.length, first + 2 * BEYOND)) };
}

/** Draws the rows in sight. `search`: also finds and sorts. */
export function show(search = false) {
  if (search) find();
  const { tall, first, last } = windowOf();
  const now = [known.version, first, last, tall, view.selected, view.sort, view.up, view.search, view.state].join("|");
  if (now === stamp) return summarize();
  stamp = now;
  render(html`<${Head} sort=${view.sort} up=${view.up} />`, byId("head"));
  const rows = view.found.slice(first, last);
  render(rows.map((session, index) => html`<${Row} key=${session.key} session=${session} place=${first + index} selected=${session.key === view.selected} />`), byId("rows"));
  byId("above").style.height = `${first * tall}px`;
  byId("below").style.height = `${(view.found.length - last) * tall}px`;
  byId("table").ariaRowCount = String(view.found.length + 1);
  summarize();
}

function summarize() {
  const [all, found] = [known.sessions.size, view.found.length];
  byId("list").hidden = !all;
  byId("tools").hidden = all < 2;
  byId("sessions-empty").hidden = found > 0 || (!known.isRead && !all);
  byId("sessions-empty").textContent = all ? "No session matches." : "No sessions yet. A user's first message creates one: try it below.";
  byId("sessions-more").hidden = !known.truncated;
  byId("sessions-more").textContent = `Only ${all} sessions are shown; there are more.`;
  byId("found").textContent = found === all ? `${count(all)} sessions` : `${count(found)} of ${count(all)}`;
}

/** Moves the selection and the focus by `by` rows, and into sight. */
export function select(by) {
  const at = view.found.findIndex(({ key }) => key === view.selected);
  const to = Math.min(view.found.length - 1, Math.max(0, at < 0 ? 0 : at + by));
  const session = view.found[to];
  if (!session) return;
  view.selected = session.key;
  const box = byId("list");
  const tall = phone.matches ? ROW_PHONE : ROW;
  const head = byId("head").offsetHeight;
  if (to * tall < box.scrollTop) box.scrollTop = to * tall;
  else if ((to + 1) * tall + head > box.scrollTop + box.clientHeight) box.scrollTop = (to + 1) * tall + head - box.clientHeight;
  box.scrollIntoView({ block: "nearest" });
  show();
  // Enter follows the link.
  byId("rows").querySelector("tr[data-selected] a")?.focus({ preventScroll: true });
}

export const selected = () => view.found.find(({ key }) => key === view.selected);

export function filter(state) {
  view.state = view.state === state ? "" : state;
  show(true);
}

export function prepare(changed) {
  byId("search").addEventListener("input", () => {
    view.search = byId("search").value;
    byId("list").scrollTop = 0;
    show(true);
  });
  byId("list").addEventListener("scroll", () => requestAnimationFrame(() => show()), { passive: true });
  addEventListener("resize", () => show());
  byId("state").addEventListener("change", () => {
    view.state = byId("state").value;
    changed();
  });
}
