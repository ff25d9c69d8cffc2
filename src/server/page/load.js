// Limits against use, what users spend today, and what isolates children.

import { byId, bytes, count, money, userName } from "/page/service.js";
import { overview } from "/page/overview.js";
import { named } from "/page/text.js";
import { html, render } from "/page/ui.js";

const SHOWN = {
  children: ["Children", String, "limits.max_children"],
  starting: ["Starting at the same time", String, "limits.starts_in_flight"],
  waiting: ["Starts that wait", String, "limits.queue"],
  memory: ["Memory of all sessions", bytes, "limits.memory_budget"],
  processors: ["Processors", (number) => String(Math.round(number * 10) / 10), ""],
  disk: ["Disk of the data directory", bytes, ""],
  open_files: ["Open files", count, "ulimit -n"],
};

function limits({ use }) {
  return Object.entries(SHOWN).map(([name, [label, format, setting]]) => {
    const { used, limit } = use[name] ?? {};
    if (used === undefined) return "";
    const share = limit ? used / limit : 0;
    const kind = share >= 0.9 ? "bad" : share >= 0.7 ? "odd" : "";
    return html`<tr key=${name}><th scope="row">${label} <span class="quiet">${setting}</span></th>
      <td class="bar"><meter class=${kind} min="0" max="1" value=${Math.min(1, share)} aria-label=${label}>${Math.round(share * 100)} %</meter></td>
      <td class="number">${format(used) === "–" ? "0" : format(used)} of ${limit ? format(limit) : "no limit"}</td></tr>`;
  });
}

/** Why a new user would wait. */
function waiting({ use, reasons, spares }) {
  const { children, starting, waiting: queue } = use;
  if (!queue.used && reasons.length) return `New users are refused: ${reasons.join("; ")}.`;
  if (!queue.used) return children.used < children.limit ? `New users do not wait: ${children.limit - children.used} more children may start${spares.ready ? `, and ${spares.ready} spares are ready` : ""}.` : "All children are in use: a new user takes the place of the session that was idle for longest.";
  const idle = children.used - children.busy;
  if (children.used >= children.limit) return `New users wait because all ${children.limit} children are in use, ${children.busy} of them busy${idle > 0 ? ` and ${idle} about to make room` : ""}. A higher limits.max_children, or a shorter session.idle_timeout, shortens the wait.`;
  if (starting.used >= starting.limit) return `New users wait because ${starting.limit} children start at the same time already. A higher limits.starts_in_flight, or spares, shorten the wait.`;
  return "New users wait because memory is short: see Memory of all sessions.";
}

function spend({ spend: { today_usd: sum, users, accounts, top, limit_usd: limit } }) {
  if (!users && !accounts) return html`<p class="empty">Nobody has spent anything today.</p>`;
  const most = Math.max(...top.map(({ cost_usd: cost }) => cost), limit ?? 0, 1e-9);
  const isPart = accounts !== null && accounts > users;
  return html`<p>${money(sum)} by ${isPart ? `${users} of ${accounts} users` : `${count(users)} ${users === 1 ? "user" : "users"}`} since midnight (UTC)${limit ? `; each may spend ${money(limit)}` : ""}.</p>
    ${isPart && html`<p class="why" data-kind="hog">The accounts of ${accounts - users} users are not in memory: neither the sum nor the list below has what they spent.</p>`}
    <table class="plain"><thead><tr><th scope="col">User</th><th scope="col" class="bar"><span class="unseen">Share</span></th><th scope="col" class="number">Today</th>
      <th scope="col" class="number">Turns</th><th scope="col" class="number">Tokens</th></tr></thead><tbody>
    ${top.map((row) => html`<tr key=${row.user}><th scope="row"><a href=${`#/?${new URLSearchParams({ search: userName(row.user) })}`}>${named(userName(row.user))}</a></th>
      <td class="bar"><meter class=${limit && row.cost_usd > 0.9 * limit ? "bad" : ""} min="0" max=${most} value=${row.cost_usd} aria-label=${`Spent by ${named(userName(row.user))}`}></meter></td>
      <td class="number">${money(row.cost_usd)}</td><td class="number">${row.turns}</td>
      <td class="number">${count(row.input_tokens + row.output_tokens)}</td></tr>`)}</tbody></table>`;
}

function rungs({ isolation, containment }) {
  return html`<table class="plain"><tbody>${isolation.map(({ rung, state }) => html`<tr key=${rung}><th scope="row">${rung}</th>
      <td data-bad=${String(state.startsWith("unavailable"))}>${state}</td></tr>`)}
    <tr key="containment"><th scope="row">leftovers are found by</th><td>${containment}</td></tr></tbody></table>`;
}

export function show() {
  const data = overview.data;
  const none = html`<p class="empty">${overview.denied ? "Shown to keys of the role admin." : "Not read yet."}</p>`;
  render(data ? waiting(data) : none, byId("waiting-why"));
  render(data ? html`<table class="plain"><tbody>${limits(data)}</tbody></table>` : none, byId("limits"));
  render(data ? spend(data) : none, byId("spend-users"));
  render(data ? rungs(data) : none, byId("rungs"));
}
