// The page of one session: what is wrong with it, what it waits for, what was said, its turns, children and files.

import { age, ask, byId, bytes, clock, count, money, shortModel, span, userName } from "/page/service.js";
import { Answers } from "/page/answers.js";
import { Conversation } from "/page/conversation.js";
import { agesOf, isOrderly, keyOf, known, of, path } from "/page/store.js";
import { named } from "/page/text.js";
import { Turns } from "/page/turns.js";
import { Component, Guard, html, render } from "/page/ui.js";
import { nameOf, Verb } from "/page/verbs.js";

/** Files that are listed. */
const MOST_FILES = 200;
/** Between two looks at turns, children and processes. */
const PAUSE = 5000;

let shown = null;
let news = 0;

/** Shows the session of an address `#/session/USER/ID`, or none. */
export function open(place) {
  if (!place) {
    if (shown) render(null, byId("session"));
    shown = null;
    return;
  }
  const [user, id, part] = place;
  shown = { key: keyOf({ user: user || undefined, id }), user: user || undefined, id, part };
  show();
}

export function show(hasNews = false) {
  if (!shown) return;
  if (hasNews) news += 1;
  const session = known.sessions.get(shown.key);
  if (!session) {
    const text = known.isRead ? "There is no such session here. It may have been deleted." : "Reading…";
    return render(html`<p class="empty">${text} <a href="#/">All sessions</a></p>`, byId("session"));
  }
  render(html`<${Guard} key=${shown.key}><${SessionPage} session=${session} part=${shown.part} news=${news} version=${known.version} /></${Guard}>`, byId("session"));
}

/** Whether an event is of the session that is shown. */
export const isShown = (event) => shown !== null && keyOf({ user: event.user, id: event.session }) === shown.key;

class SessionPage extends Component {
  state = { activity: null, files: null, filesError: "", context: null };

  componentDidMount() {
    this.look();
    this.lookAtFiles();
    this.timer = setInterval(() => document.hidden || this.look(), PAUSE);
  }

  componentDidUpdate(before) {
    if (before.news !== this.props.news) this.look();
    if (before.session.turns !== this.props.session.turns) this.lookAtFiles();
  }

  componentWillUnmount() {
    this.gone = true;
    clearInterval(this.timer);
  }

  async look() {
    const { session } = this.props;
    const read = async (rest) => (await ask(path(session, rest), of(session, "GET"))).json();
    const activity = await read("/activity").catch(() => null);
    if (!this.gone && activity) this.setState({ activity });
  }

  async lookAtFiles() {
    const { session } = this.props;
    const query = `/v1/workspace?limit=${MOST_FILES}&session=${encodeURIComponent(session.id)}${session.user === undefined ? "" : `&user=${session.user}`}`;
    try {
      const files = await (await ask(query, of(session, "GET"))).json();
      if (!this.gone) this.setState({ files, filesError: "" });
    } catch (error) {
      const why = error.code === "admin_has_no_sessions" ? "The files of a session are shown to its user, not to a key of the role admin." : error.message;
      if (!this.gone) this.setState({ filesError: why });
    }
  }

  render({ session, news: changed }, { activity, files, filesError }) {
    const mayAnswer = document.body.dataset.speaksFor !== "nobody";
    const verbs = ["Warm", "Interrupt", "Evict", "Compact", "Reset"];
    return html`<div>
      <p><a href="#/" class="back">All sessions</a></p>
      <div class="headline"><h2 tabindex="-1" data-state=${session.state}>${session.title || nameOf(session)}</h2>
        <span class="state" data-state=${session.state}>${session.state}${session.frozen ? ", frozen" : ""}</span>
        <span class="buttons">${verbs.map((name) => (name !== "Warm" || mayAnswer) && html`<${Verb} key=${name} name=${name} session=${session} />`)}</span></div>
      <${Facts} session=${session} />
      <${Answers} session=${session} mayAnswer=${mayAnswer} news=${changed} done=${() => this.look()} />
      <${Why} session=${session} activity=${activity} />
      <div class="pair"><section aria-labelledby="said-title"><h3 id="said-title">Conversation</h3>
          <${Guard}><${Conversation} session=${session} news=${changed} /></${Guard}></section>
        <div><section aria-labelledby="turns-title"><h3 id="turns-title">Turns</h3><${Turns} activity=${activity} /></section>
          <section id="ends" aria-labelledby="ends-title"><h3 id="ends-title">Children that ended</h3><${Ends} activity=${activity} /></section>
          <section aria-labelledby="tree-title"><h3 id="tree-title">Processes</h3><${Tree} session=${session} activity=${activity} /></section>
          <section aria-labelledby="files-title"><h3 id="files-title">Files</h3><${Files} files=${files} error=${filesError} /></section></div></div>
    </div>`;
  }
}

function Facts({ session }) {
  const { idle, age: old } = agesOf(session);
  const facts = {
    User: session.name || "you", Session: named(session.id), Model: shortModel(session.model), Pid: session.pid ?? "–", Child: session.generation,
    Turns: session.turns, Restarts: session.restarts, Memory: bytes(session.memory_bytes), Processors: session.cpu_cores ?? "–",
    Tokens: `${count(session.input_tokens)} in, ${count(session.output_tokens)} out`, Cost: money(session.total_cost_usd),
    Age: age(old), Idle: session.state === "busy" ? "–" : age(idle), Waiting: session.queue_depth || "–",
  };
  return html`<dl class="facts">${Object.entries(facts).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd title=${String(value)}>${value}</dd></div>`)}</dl>`;
}

/** The cause of the last failure, if the session has not been well since. */
function Why({ session, activity }) {
  const end = activity?.ends.findLast((it) => !isOrderly(it));
  const turn = activity?.turns.findLast((it) => !["ok", "cancelled"].includes(it.outcome));
  if (!end && !turn && isOrderly(session.last_exit)) return "";
  const exit = end ?? session.last_exit;
  const isExitLast = exit && !isOrderly(exit) && (!turn || exit.at >= turn.accepted_at);
  const lines = end?.stderr.trim();
  return html`<section id="why" class="why" aria-labelledby="why-title"><h3 id="why-title">Why it failed last</h3>
    ${isExitLast
      ? html`<p><b>Its CLI ended at ${clock(exit.at)}:</b> <bdi>${exit.detail || exit.reason.replaceAll("_", " ")}</bdi>${end ? html` <span class="quiet">(child ${end.generation}, ${exit.reason}${end.lived_seconds === null ? "" : `, after ${span(end.lived_seconds)}`})</span>` : ""}.</p>`
      : turn && html`<p><b>A turn of ${clock(turn.accepted_at)} ended with ${turn.outcome.replaceAll("_", " ")}</b>${turn.error ? ` (${turn.error})` : ""} after ${span(turn.took_seconds)}.</p>`}
    ${end && (lines ? html`<p class="quiet">The end of its standard error:</p><pre tabindex="0">${lines}</pre>` : html`<p class="quiet">It wrote nothing to its standard error.</p>`)}</section>`;
}

function Ends({ activity }) {
  const ends = activity?.ends ?? [];
  if (!ends.length) return html`<p class="empty">None since the session came into memory.</p>`;
  return html`<ul class="ends">${ends.toReversed().map((end) => html`<li key=${`${end.generation} ${end.at}`}>
    <b>${end.generation}</b> <span data-bad=${String(!isOrderly(end))}>${end.detail || end.reason}</span>${" "}
    <span class="quiet">${end.reason}, ${clock(end.at)}${end.lived_seconds === null ? "" : `, lived ${span(end.lived_seconds)}`}</span>
    ${end.stderr.trim() && html`<details><summary>standard error</summary><pre tabindex="0">${end.stderr.trim()}</pre></details>`}</li>`)}</ul>`;
}

/** Processes below their parents. */
function Tree({ session, activity }) {
  const processes = activity?.processes ?? [];
  if (!session.pid || !processes.length) return html`<p class="empty">No child runs.</p>`;
  const pids = new Set(processes.map(({ pid }) => pid));
  const below = (parent) => processes.filter((it) => (parent === null ? !pids.has(it.parent) : it.parent === parent));
  const lines = [];
  // A process is never its own ancestor, but the list was not read at one moment.
  const walk = (parent, depth) => {
    for (const process of below(parent)) {
      if (lines.length >= processes.length) return;
      lines.push({ process, depth });
      walk(process.pid, depth + 1);
    }
  };
  walk(null, 0);
  return html`<table class="plain"><thead><tr><th scope="col">Process</th><th scope="col" class="number">Pid</th><th scope="col" class="number">Memory</th></tr></thead>
    <tbody>${lines.map(({ process, depth }) => html`<tr key=${process.pid}><th scope="row" style=${{ paddingLeft: `${Math.min(depth, 8) * 14}px` }}>${named(process.name || "?")}${process.is_zombie ? " (ended)" : ""}</th>
      <td class="number">${process.pid}</td><td class="number">${bytes(process.memory_bytes)}</td></tr>`)}</tbody></table>
    ${activity.process_count > processes.length && html`<p class="quiet">${activity.process_count} in all.</p>`}`;
}

function Files({ files, error }) {
  if (error) return html`<p class="empty">${error}</p>`;
  if (!files?.files.length) return html`<p class="empty">None.</p>`;
  return html`<ul class="files">${files.files.map(({ path: file, size }) => html`<li key=${file}><span>${named(file)}</span> <span class="quiet">${size < 2 ** 20 ? `${Math.ceil(size / 1024)} KiB` : bytes(size)}</span></li>`)}</ul>
    ${files.truncated && html`<p class="quiet">${count(files.files_summary.total)} in all.</p>`}`;
}

export const title = () => (shown ? userName(shown.id) : "");
