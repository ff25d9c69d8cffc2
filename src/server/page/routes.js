// Which page is shown, what is read for it, and the keys that lead from one to another.

import * as attention from "/page/attention.js";
import * as charts from "/page/charts.js";
import * as load from "/page/load.js";
import * as nodes from "/page/nodes.js";
import * as now from "/page/now.js";
import * as overview from "/page/overview.js";
import { byId, userName } from "/page/service.js";
import * as session from "/page/session.js";
import * as sessions from "/page/sessions.js";
import * as store from "/page/store.js";

const PAGES = ["overview", "load", "spend", "session"];
/** Events of failures. */
const BAD = ["crashed", "not_started", "paused", "context_lost", "refused"];
let page = "overview";
let refreshSoon = () => {};
let spent = 0;

/** The page of an address, and its further parts. */
function placeOf(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?");
  const [name, user, id, part] = path.split("/");
  if (name === "session" && id) return { page: "session", place: [user, userName(id), part] };
  return { page: name === "load" || name === "spend" ? name : "overview", search: new URLSearchParams(query).get("search") };
}

function go() {
  const place = placeOf(location.hash);
  const isOther = page !== place.page || place.page === "session";
  page = place.page;
  for (const name of PAGES) byId(name).hidden = name !== page;
  for (const link of document.querySelectorAll("nav a")) {
    if (placeOf(link.getAttribute("href")).page === (page === "session" ? "overview" : page)) link.ariaCurrent = "page";
    else link.removeAttribute("aria-current");
  }
  session.open(place.place);
  if (place.search) {
    byId("search").value = sessions.view.search = place.search;
    sessions.show(true);
  }
  if (isOther) scrollTo(0, 0);
  if (page === "load" || page === "spend") {
    overview.distrust();
    refreshSoon();
  }
  show();
}

function show() {
  if (page === "overview") {
    attention.show();
    now.show();
    sessions.show(true);
    nodes.show();
    charts.show();
  } else if (page === "session") {
    session.show();
  } else {
    load.show();
    charts.show();
  }
}

/** Reads what has changed, and shows it. */
export async function refresh() {
  await Promise.all([store.refresh(), overview.refresh()]);
  const begun = performance.now();
  show();
  spent = performance.now() - begun + store.known.took;
}

/** Milliseconds that the last refresh kept the page busy. */
export const worked = () => spent;

export function event(item) {
  const isFailure = BAD.includes(item.type) || (item.type === "turn_ended" && !["ok", "cancelled"].includes(item.outcome));
  if (isFailure) overview.distrust();
  if (page === "session" && session.isShown(item)) session.show(true);
}

export function forget() {
  store.forget();
  overview.forget();
  show();
}

const isWriting = (node) => node.closest("input, textarea, select, [contenteditable], dialog[open]");

const KEYS = {
  "/": () => {
    location.hash = "#/";
    byId("search").focus();
    byId("search").select();
  },
  j: () => page === "overview" && sessions.select(1),
  k: () => page === "overview" && sessions.select(-1),
  Enter: () => {
    const chosen = page === "overview" && sessions.selected();
    if (!chosen) return false;
    location.hash = store.placeOf(chosen);
  },
  a: () => {
    const first = attention.items().find(({ href }) => href);
    if (first) location.hash = first.href;
  },
  l: () => (location.hash = "#/load"),
  s: () => (location.hash = "#/spend"),
  "?": () => byId("help").showModal(),
};

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { target, key } = event;
  if (key === "Escape") {
    if (byId("help").open) return;
    if (isWriting(target)) return target.blur();
    if (placeOf(location.hash).page !== "overview") location.hash = "#/";
    return;
  }
  const inSearch = target.id === "search" && key === "Enter";
  // Enter is for what has the focus.
  if (!inSearch && (isWriting(target) || (key === "Enter" && target.closest("a, button, summary")))) return;
  if (inSearch && !sessions.selected()) sessions.select(0);
  const act = KEYS[key];
  if (act && act() !== false) event.preventDefault();
}

/** `look` reads what has changed, soon. */
export function prepare(look) {
  refreshSoon = look;
  sessions.prepare(show);
  charts.prepare();
  addEventListener("hashchange", go);
  addEventListener("keydown", press);
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  go();
}
