// The nodes of the cluster that this server is one of, as it sees them. Nothing where it is alone.

import { age, byId, clock, count } from "/page/service.js";
import { overview } from "/page/overview.js";
import { known } from "/page/store.js";
import { named } from "/page/text.js";
import { html, render } from "/page/ui.js";

/** Seconds after which a change that only this node has is old, as for the alert PilotlightUploadLags. */
const OLD = 60;
/** More changes than this that were not stored in time within these seconds are too many, as for PilotlightCommitsFail. */
const MOST_NOT_STORED = { number: 3, within: 600 };
/** Seconds for which a loss is news, as for PilotlightLeaseLost and PilotlightUsersLost. */
const NEWS = 15 * 60;

const bold = (name) => html`<b>${named(name)}</b>`;
const users = (number) => `${count(number)} ${number === 1 ? "user" : "users"}`;

/** One row for each node, also for this one while it has no lease, and for those that are gone. */
function rows({ node: own, is_member: isMember, nodes, gone }) {
  const all = nodes.map((node) => ({ ...node, isOwn: node.name === own, state: node.draining ? "draining" : "live" }));
  if (!all.some(({ isOwn }) => isOwn)) all.push({ name: own, isOwn: true });
  if (!isMember) for (const node of all) node.state = node.isOwn ? "no lease" : "unknown";
  const left = gone.map((node) => ({ ...node, state: node.draining ? "left" : "gone" }));
  return [...all, ...left].sort((one, other) => (one.name < other.name ? -1 : 1));
}

/** What needs attention: kind, key and text of each. */
export function problems() {
  const cluster = overview.data?.cluster;
  if (!cluster) return [];
  const { node, is_member: isMember, nodes, gone, coming, lag_seconds: lag, not_stored: notStored, leases_lost: leases, users_lost: lost } = cluster;
  const found = [];
  const add = (kind, key, what) => found.push({ kind, key: `node ${key}`, what });
  const within = ({ latest }, seconds) => latest.filter((at) => known.serverTime - at < seconds);
  // Without a lease, which is a reason to take no turns, the others are not known.
  const missing = isMember ? gone.filter(({ draining }) => !draining) : [];
  for (const { name, last_seen: at } of missing) add("bad", `gone ${name}`, html`${bold(name)} is gone: it was seen last at ${clock(at)}`);
  const silent = known.unreachable.filter((name) => !missing.some((it) => it.name === name));
  for (const name of silent) add("bad", `silent ${name}`, html`${bold(name)} does not answer: its sessions are missing here`);
  const late = within(notStored, MOST_NOT_STORED.within).length;
  if (late > MOST_NOT_STORED.number) add("bad", "not stored", html`${bold(node)} does not store its turns in time: another node would not have them`);
  if (lag > OLD) add("bad", "lag", html`${bold(node)} has a change that is in no store for ${age(lag)}`);
  const [leaseLost] = within(leases, NEWS);
  const [userLost] = within(lost, NEWS);
  if (leaseLost) add("odd", "lease", html`${bold(node)} lost its lease at ${clock(leaseLost)}: the children of its users were ended`);
  else if (userLost) add("odd", "users", html`${bold(node)} lost users at ${clock(userLost)}: their children were ended`);
  const draining = isMember ? nodes.filter((it) => it.draining) : [];
  for (const { name, users: number } of draining) add("odd", `draining ${name}`, html`${bold(name)} is draining: it takes no new users, and has ${number ? `${users(number)} left` : "none left"}`);
  if (coming) add("odd", "coming", html`${users(coming)} of the data directory of ${bold(node)} ${coming === 1 ? "is" : "are"} not in the cluster yet`);
  return found;
}

function Row({ node }) {
  const { name, isOwn, state, address, version, users: number, room, last_seen: seen } = node;
  const bad = ["no lease", "gone"].includes(state);
  return html`<tr data-state=${state}><th scope="row"><b>${named(name)}</b>${isOwn && html` <span class="quiet">this page</span>`}
      ${address && html`<span class="quiet address">${named(address)}</span>`}</th>
    <td data-bad=${String(bad)}><span class="state">${state}</span>${seen && html`<span class="quiet">since ${clock(seen)}</span>`}</td>
    <td class="number">${number ?? "–"}</td><td class="number">${seen ? "–" : (room ?? "–")}</td>
    <td class="wide-only">${named(version ?? "–")}</td></tr>`;
}

/** What this node alone knows of itself. */
function Facts({ cluster: { lag_seconds: lag, not_stored: notStored, fenced, leases_lost: leases, users_lost: lost } }) {
  const often = ({ total, latest: [last] }) => (total ? `${count(total)}, last at ${clock(last)}` : "0");
  const facts = {
    "Oldest change in no store": lag ? age(lag) : "none", "Changes stored late or not": often(notStored), "Changes refused (fenced)": often(fenced),
    "Leases lost": often(leases), "Users lost": often(lost),
  };
  return html`<dl class="facts">${Object.entries(facts).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

export function show() {
  const cluster = overview.data?.cluster;
  byId("nodes").hidden = !cluster;
  const shown = cluster && html`
    <div class="nodes" role="group" aria-labelledby="nodes-title" tabindex="0"><table class="plain"><thead><tr><th scope="col">Node</th><th scope="col">State</th>
      <th scope="col" class="number">Users</th><th scope="col" class="number">Room</th><th scope="col" class="wide-only">Version</th></tr></thead>
      <tbody>${rows(cluster).map((node) => html`<${Row} key=${node.name} node=${node} />`)}</tbody></table></div>
    <${Facts} cluster=${cluster} />
    <p class="quiet">The numbers below the nodes, the events, the charts, Load and Spend are those of ${bold(cluster.node)} alone; the list has the sessions of all nodes.
      On the host of a node, <code>pilotlight cluster</code> drains it, has it take users again, and moves users to other nodes.</p>`;
  render(shown || null, byId("nodes-shown"));
}
