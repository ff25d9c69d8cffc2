// The sessions: how many are at what, a row for each, and the buttons that warm, interrupt and evict.

import { age, ask, byId, bytes, clock, credentials, element, notify, userName, write } from "/page/service.js";

/** In the order in which they matter. */
const STATES = ["busy", "idle", "starting", "stopping", "backoff", "failed", "dormant"];
const WITH_CHILD = ["busy", "idle", "starting", "stopping"];
/** Rows that are shown; a longer list is said to be one. */
const MOST = 200;
const COLUMNS = ["Session", "State", "Age", "Idle", "Memory", "Turns", "Restarts", "Last exit"];
/** How long a confirmation stays on a button. */
const ASKED_FOR = 4000;

const rows = new Map();
/** The last answer and its time: ages advance between two answers. */
let latest = { sessions: [], at: 0, serverTime: 0 };

export async function refresh() {
  const response = await ask(`/v1/sessions?limit=${MOST}`);
  const serverTime = Date.parse(response.headers.get("date")) / 1000 || Date.now() / 1000;
  const { sessions, truncated, spares } = await response.json();
  latest = { sessions, at: performance.now(), serverTime };
  sessions.sort(inOrder);
  count(sessions);
  countSpares(spares);
  fill(sessions);
  showAges();
  byId("sessions-empty").hidden = sessions.length > 0;
  write(byId("sessions-empty"), "No sessions yet. A user's first message creates one: try it below.");
  byId("sessions-more").hidden = !truncated;
  write(byId("sessions-more"), `Only the ${sessions.length} used last are shown; there are more.`);
}

/** Clears everything shown. */
export function forget() {
  latest = { sessions: [], at: 0, serverTime: 0 };
  count([]);
  countSpares();
  fill([]);
  byId("sessions-empty").hidden = byId("sessions-more").hidden = true;
}

/** Sessions with a child first, then by name, so that rows do not move under the pointer. */
function inOrder(one, other) {
  const rank = (session) => (session.state === "failed" || session.state === "backoff" ? 0 : WITH_CHILD.includes(session.state) ? 1 : 2);
  return rank(one) - rank(other) || key(one).localeCompare(key(other));
}

const key = (session) => JSON.stringify([session.user ?? "", session.id]);

function count(sessions) {
  const list = byId("states");
  if (!list.childElementCount) {
    for (const state of STATES) {
      const item = element("li");
      item.dataset.state = state;
      item.append(element("b", "0"), element("span", state));
      list.append(item);
    }
    const memory = element("li");
    memory.append(element("b", "–"), element("span", "memory"));
    list.append(memory);
    const spares = element("li");
    spares.id = "spares";
    spares.append(element("b", "0"), element("span", "spares"));
    list.append(spares);
  }
  const children = [...list.children];
  STATES.forEach((state, index) => {
    const number = sessions.filter((session) => session.state === state).length;
    children[index].dataset.none = number === 0;
    write(children[index].firstChild, String(number));
  });
  write(children[STATES.length].firstChild, bytes(sessions.reduce((sum, session) => sum + session.memory_bytes, 0)));
}

/** Children that are started ahead for new users. Only an admin hears of them, and only where there are any they are shown. */
function countSpares({ ready = 0, warming = 0 } = {}) {
  const shown = byId("spares");
  shown.hidden = ready + warming === 0;
  write(shown.firstChild, String(ready));
  write(shown.lastChild, warming ? `spares, ${warming} warming` : "spares");
}

function fill(sessions) {
  const body = byId("rows");
  const focused = document.activeElement;
  const wanted = new Set(sessions.map(key));
  for (const [name, row] of rows) {
    if (!wanted.has(name)) {
      row.node.remove();
      rows.delete(name);
    }
  }
  sessions.forEach((session, index) => {
    let row = rows.get(key(session));
    if (!row) rows.set(key(session), (row = newRow()));
    row.session = session;
    show(row);
    if (body.children[index] !== row.node) body.insertBefore(row.node, body.children[index] ?? null);
  });
  // A row that moves takes the focus from its button.
  if (focused !== document.activeElement && body.contains(focused)) focused.focus();
}

function newRow() {
  const node = element("tr");
  const cells = COLUMNS.map((column, index) => {
    const cell = element(index ? "td" : "th");
    if (index) cell.dataset.label = column;
    else cell.scope = "row";
    if (index >= 2 && index <= 6) cell.className = "number";
    node.append(cell);
    return cell;
  });
  const buttons = element("td", "", "buttons");
  node.append(buttons);
  const row = { node, cells, buttons: {} };
  for (const [name, act] of Object.entries(ACTIONS)) {
    const button = element("button", name);
    button.type = "button";
    button.addEventListener("click", () => press(row, name, button, act));
    row.buttons[name] = button;
    buttons.append(button);
  }
  return row;
}

function show({ session, cells, buttons, node }) {
  const { state } = session;
  node.dataset.state = state;
  const [name, at, , , memory, turns, restarts, exit] = cells;
  const user = session.user === undefined ? "" : userName(session.user);
  const label = name.firstChild ?? name.appendChild(element("div"));
  if (!label.childElementCount) label.append(element("b"), element("span", "", "quiet"));
  write(label.firstChild, user || session.id);
  write(label.lastChild, user ? session.id : "");
  // Long names are cut to two lines.
  name.title = [user, session.id].filter(Boolean).join(", ");
  if (!at.childElementCount) at.append(element("span", "", "state"), element("span", "", "quiet"));
  write(at.firstChild, session.frozen ? `${state}, frozen` : state);
  write(at.lastChild, session.queue_depth ? `+${session.queue_depth} waiting` : "");
  write(memory, bytes(session.memory_bytes));
  write(turns, String(session.turns));
  write(restarts, String(session.restarts));
  restarts.dataset.some = session.restarts > 0;
  const last = session.last_exit;
  exit.dataset.bad = Boolean(last) && !["clean", "evicted", "drain"].includes(last.reason);
  write(exit, last ? `${last.reason === "evicted" ? "evicted" : last.detail}, ${clock(last.at)}` : "–");
  const may = { Warm: !WITH_CHILD.includes(state), Interrupt: state === "busy", Evict: WITH_CHILD.includes(state) && state !== "stopping" };
  for (const [action, button] of Object.entries(buttons)) {
    button.hidden = action === "Warm" && document.body.dataset.speaksFor === "nobody";
    // Not `disabled`: the focus would be lost when an action makes itself impossible.
    button.ariaDisabled = String(!may[action] || Boolean(button.dataset.works));
    button.ariaLabel = `${button.textContent} ${user ? `${user}, ` : ""}${session.id}`;
  }
}

/** Advances ages without a request. */
export function showAges() {
  const since = (performance.now() - latest.at) / 1000;
  for (const { session, cells } of rows.values()) {
    const idle = session.state === "busy" ? 0 : session.idle_seconds + since;
    // The service's clock is known in whole seconds.
    write(cells[2], age(Math.max(idle, latest.serverTime + since - session.created_at)));
    write(cells[3], session.state === "busy" ? "–" : age(idle));
  }
}

const path = (session, rest) => {
  const user = session.user === undefined ? "" : `?user=${session.user}`;
  return `/v1/sessions/${encodeURIComponent(session.id)}${rest}${user}`;
};
/** Requests name the user of a row in the path; a user's own key needs none. */
const of = (session, method) => ({ method, user: session.user === undefined ? credentials.user : "" });

const ACTIONS = {
  async Warm(session) {
    await ask(path(session, "/warm"), of(session, "POST"));
    return "is warm";
  },
  async Interrupt(session) {
    const { interrupted } = await (await ask(path(session, "/interrupt"), of(session, "POST"))).json();
    return interrupted ? "was interrupted" : "had no turn to interrupt";
  },
  async Evict(session) {
    await ask(path(session, ""), of(session, "DELETE"));
    return "is evicted; its next message continues the conversation";
  },
};

async function press(row, name, button, act) {
  const { session } = row;
  if (button.ariaDisabled === "true") return;
  if (name === "Evict" && session.state === "busy" && !button.dataset.asked) {
    button.dataset.asked = "yes";
    button.textContent = "End its turn?";
    setTimeout(() => restore(row, name, button), ASKED_FOR);
    return show(row);
  }
  restore(row, name, button);
  button.dataset.works = "yes";
  show(row);
  const who = [session.user === undefined ? "" : userName(session.user), session.id].filter(Boolean).join(", ");
  try {
    notify(`${who} ${await act(session)}.`, "good");
  } catch (error) {
    notify(`${name} ${who}: ${error.message}`, "bad");
  }
  delete button.dataset.works;
  await refresh().catch(() => {});
}

function restore(row, name, button) {
  delete button.dataset.asked;
  button.textContent = name;
  show(row);
}
