// The last turns of a session: how long each waited, until its first word and until its end, and when its tools ran.

import { clock, money, span } from "/page/service.js";
import { named } from "/page/text.js";
import { html } from "/page/ui.js";

/** What an ear hears of a call. */
const heard = ({ name, began_after_seconds: began, took_seconds: took, failed }) =>
  `${named(name)} after ${span(began)}, ${took === null ? "without a result" : `${failed ? "failed after" : "took"} ${span(took)}`}`;

/** Calls by name, in the order of their first: how many, how long in all, how many failed. */
function summed(tools) {
  const sums = new Map();
  for (const { name, took_seconds: took, failed } of tools) {
    const { calls, seconds, failures, open } = sums.get(name) ?? { calls: 0, seconds: 0, failures: 0, open: 0 };
    sums.set(name, { calls: calls + 1, seconds: seconds + (took ?? 0), failures: failures + (failed ? 1 : 0), open: open + (took === null ? 1 : 0) });
  }
  return [...sums];
}

function Calls({ tools, more }) {
  if (!tools.length && !more) return "";
  const parts = summed(tools).map(([name, { calls, seconds, failures, open }]) => html`<span key=${name} data-bad=${String(failures > 0)}><b>${named(name)}</b>${calls > 1 ? ` ×${calls}` : ""}${
    open < calls ? ` ${span(seconds)}` : ""}${open ? ` (${open === calls ? "no result" : `${open} without a result`})` : ""}${failures ? `, ${failures === 1 && calls === 1 ? "failed" : `${failures} failed`}` : ""}</span>`);
  return html`<p class="calls">${parts}${more > 0 && html`<span key="more">${more} more ${more === 1 ? "call" : "calls"}</span>`}</p>`;
}

function Turn({ turn, longest }) {
  const { given_after_seconds: given, first_after_seconds: first, took_seconds: took, tools, tools_left_out: more } = turn;
  const share = (seconds) => `${Math.max(0, Math.min(1, seconds / longest)) * 100}%`;
  const begun = given ?? took;
  const spoke = Math.max(begun, first ?? took);
  const words = [given > 0.01 && `queued ${span(given)}`, first !== null && `first word after ${span(spoke)}`].filter(Boolean);
  const aloud = [...words, ...tools.map(heard), `ended after ${span(took)}`];
  return html`<li data-bad=${String(!["ok", "cancelled"].includes(turn.outcome))}>
    <time>${clock(turn.accepted_at)}</time><span class="bars" role="img" aria-label=${aloud.join("; ")}><span class="spans">
      <i class="queued" style=${{ width: share(begun) }}></i><i class="thinking" style=${{ width: share(spoke - begun) }}></i><i class="answering" style=${{ width: share(took - spoke) }}></i></span>
      ${tools.length > 0 && html`<span class="runs">${tools.map(({ began_after_seconds: began, took_seconds: ran, failed }, index) => html`<i key=${index} class="tool" data-failed=${String(failed)}
        style=${{ left: share(began), width: share(ran ?? took - began) }}></i>`)}</span>`}</span>
    <span title=${words.join(", ")}>${span(took)}${turn.outcome === "ok" ? "" : `, ${(turn.error ?? turn.outcome).replaceAll("_", " ")}`}${turn.cost_usd ? `, ${money(turn.cost_usd)}` : ""}</span>
    <${Calls} tools=${tools} more=${more} /></li>`;
}

export function Turns({ activity }) {
  const turns = activity?.turns ?? [];
  if (!turns.length) return html`<p class="empty">None since the session came into memory.</p>`;
  const longest = Math.max(...turns.map(({ took_seconds: took }) => took), 0.001);
  return html`<div><p class="quiet legend"><i class="queued"></i>queued <i class="thinking"></i>until the first word <i class="answering"></i>until the end <i class="tool"></i>tools</p>
    <ol class="turns" tabindex="0" aria-label="Turns, the latest first">${turns.toReversed().map((turn) => html`<${Turn} key=${turn.accepted_at} turn=${turn} longest=${longest} />`)}</ol></div>`;
}
