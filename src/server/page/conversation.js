// What was said in a session, followed while its turns run. All of it is text of strangers.

import { ask, bytes, clock, events } from "/page/service.js";
import { of, path } from "/page/store.js";
import { named } from "/page/text.js";
import { Component, fieldsOf, html, listOf, Steady, textOf } from "/page/ui.js";

/** Messages that are kept on the page: the latest. */
const MOST = 500;
const PAGE = 1000;
/** Pages that are read at once; a longer conversation goes on with the next look. */
const MOST_PAGES = 20;
/** Characters of a block that are shown at first. */
const MOST_SHOWN = 4000;
/** Characters of the running answer that are shown. */
const MOST_LIVE = 20_000;
/** Between two looks at a session whose turn runs. */
const PAUSE = 1000;

export class Conversation extends Component {
  state = { messages: [], error: "", isRead: false, left: 0, live: "" };

  componentDidMount() {
    this.look();
    this.watch();
  }

  componentDidUpdate(before) {
    const { session, news } = this.props;
    if (before.session !== session || before.news !== news) this.soon();
    this.watch();
    if (this.follows !== false) this.toEnd();
  }

  componentWillUnmount() {
    this.gone = true;
    clearTimeout(this.timer);
    this.watching?.abort();
  }

  /** Follows the text of a running turn; what was said before is among the messages, or comes with its message. */
  async watch() {
    const { session } = this.props;
    if (session.state !== "busy" || this.watching || this.gone) return;
    this.watching = new AbortController();
    try {
      const response = await ask(path(session, "/live"), of(session, "GET", { signal: this.watching.signal }));
      for await (const data of events(response)) {
        const { type, text } = JSON.parse(data);
        if (type === "text") this.setState(({ live }) => ({ live: (live || "… ").concat(text).slice(-MOST_LIVE) }));
      }
    } catch { /* The messages are looked at all the same. */ }
    // The stream ends by itself every few minutes.
    setTimeout(() => {
      this.watching = null;
      this.watch();
    }, PAUSE);
  }

  soon(pause = 0) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), pause);
  }

  async look() {
    const { session } = this.props;
    if (this.looking || this.gone || document.hidden) return;
    this.looking = true;
    let isGone = false;
    const since = session.turns;
    try {
      for (let pages = 0; pages < MOST_PAGES; pages += 1) {
        const last = this.state.messages.at(-1)?.uuid;
        const query = `limit=${PAGE}${last ? `&after=${encodeURIComponent(last)}` : ""}`;
        const { messages, has_more: more } = await (await ask(path(session, "/messages", query), of(session, "GET"))).json();
        if (this.gone) return;
        const all = [...this.state.messages, ...messages];
        const left = this.state.left + Math.max(0, all.length - MOST);
        const { live } = messages.length ? { live: "" } : this.state;
        this.setState({ messages: all.slice(-MOST), error: "", isRead: true, left, live });
        await null;
        if (!more) break;
      }
    } catch (error) {
      // The last message may be gone: the conversation was reset, or taken back.
      isGone = error.status === 400;
      if (isGone || error.status === 404) this.setState({ messages: [], left: 0, error: error.status === 404 ? error.message : "" });
      else this.setState({ error: error.message });
    }
    this.looking = false;
    const now = this.props.session;
    if (isGone || now.state === "busy" || now.turns !== since) this.soon(PAUSE);
    else this.setState({ live: "" });
  }

  toEnd() {
    if (this.box) this.box.scrollTop = this.box.scrollHeight;
  }

  render({ session }, { messages, error, isRead, left, live }) {
    const scrolled = ({ currentTarget: box }) => (this.follows = box.scrollTop + box.clientHeight > box.scrollHeight - 40);
    return html`<div>
      ${left > 0 && html`<p class="quiet">${left} earlier messages are left out here.</p>`}
      ${error && html`<p class="empty">The conversation cannot be read: ${error}</p>`}
      ${isRead && !messages.length && !live && html`<p class="empty">Nothing has been said yet.</p>`}
      <div class="said-all" ref=${(box) => (this.box = box)} tabindex="0" role="log" aria-label="Conversation" onScroll=${scrolled}>
        ${messages.map((message) => html`<${Message} key=${message.uuid} message=${message} />`)}
        ${live && html`<div class="said assistant" key="live"><p class="quiet">now</p><div class="text">${live}</div></div>`}
        ${session.state === "busy" && html`<p class="quiet working" key="working">The turn runs…</p>`}
      </div></div>`;
  }
}

class Message extends Steady {
  render({ message }) {
    const { role, created_at: at, model, is_error: failed, is_summary: summary } = message;
    const content = listOf(message.content).map(fieldsOf);
    const results = content.length > 0 && content.every(({ type }) => type === "tool_result");
    const who = summary ? "summary" : results ? "tool" : role === "user" ? "user" : "model";
    return html`<div class=${`said ${results ? "tool" : role}`} data-bad=${String(Boolean(failed))}>
      <p class="quiet">${who}${at ? html`, <time>${clock(at)}</time>` : ""}${model ? `, ${model}` : ""}</p>
      ${content.map((block, index) => html`<${Block} key=${index} block=${block} />`)}</div>`;
  }
}

/** A content block of the Messages API; of an unknown type it is shown as JSON. */
class Block extends Steady {
  render({ block }) {
    const { type } = block;
    if (block.omitted_bytes) return html`<p class="quiet">${textOf(type)} of ${bytes(block.omitted_bytes)}, left out</p>`;
    if (type === "text") return html`<${Long} text=${textOf(block.text)} />`;
    if (type === "thinking") return html`<details><summary>thinking</summary><${Long} text=${textOf(block.thinking)} /></details>`;
    if (type === "tool_use") return html`<div class="call"><b>${named(textOf(block.name))}</b> <${Long} text=${brief(fieldsOf(block.input))} /></div>`;
    if (type === "tool_result") {
      const text = said(block.content);
      const line = text.split("\n", 1)[0].slice(0, 100);
      return html`<details class="result"><summary data-bad=${String(Boolean(block.is_error))}>${block.is_error ? "failed: " : ""}${line || "no output"}</summary><${Long} text=${text} /></details>`;
    }
    if (type === "image" || type === "document") return html`<p class="quiet">${type}</p>`;
    return html`<${Long} text=${brief(block)} />`;
  }
}

/** The only text of an object, else its JSON. */
const brief = (value) => {
  const texts = Object.values(value);
  return texts.length === 1 && typeof texts[0] === "string" ? texts[0] : JSON.stringify(value, null, 1);
};

/** What a tool gave back. */
const said = (content) =>
  typeof content === "string" ? content : listOf(content).map(fieldsOf).map(({ type, text }) => (type === "text" ? textOf(text) : `[${textOf(type)}]`)).join("\n");

class Long extends Component {
  render({ text }, { all }) {
    const cut = !all && text.length > MOST_SHOWN;
    return html`<div class="text">${cut ? text.slice(0, MOST_SHOWN) : text}
      ${cut && html`<button type="button" onClick=${() => this.setState({ all: true })}>Show all ${text.length} characters</button>`}</div>`;
  }
}
