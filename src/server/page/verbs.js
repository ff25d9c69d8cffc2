// What can be done with a session, and the buttons that do it.

import { ask, notify } from "/page/service.js";
import { of, path, WITH_CHILD } from "/page/store.js";
import { named } from "/page/text.js";
import { Component, html } from "/page/ui.js";

/** How long a confirmation stays on a button. */
const ASKED_FOR = 4000;

const hasChild = (session) => WITH_CHILD.includes(session.state);

/** `may`: whether it makes sense now. `asks`: what is asked before it is done. */
export const VERBS = {
  Warm: {
    may: (session) => !hasChild(session),
    async act(session) {
      await ask(path(session, "/warm"), of(session, "POST"));
      return "is warm";
    },
  },
  Interrupt: {
    may: (session) => session.state === "busy",
    async act(session) {
      const { interrupted } = await (await ask(path(session, "/interrupt"), of(session, "POST"))).json();
      return interrupted ? "was interrupted" : "had no turn to interrupt";
    },
  },
  Evict: {
    may: (session) => hasChild(session) && session.state !== "stopping",
    asks: (session) => session.state === "busy" && "End its turn?",
    async act(session) {
      await ask(path(session, ""), of(session, "DELETE"));
      return "is evicted; its next message continues the conversation";
    },
  },
  Compact: {
    may: (session) => session.turns > 0,
    asks: () => "Spends tokens. Compact?",
    async act(session) {
      await ask(path(session, "/compact"), of(session, "POST"));
      return "is compacted";
    },
  },
  Reset: {
    may: (session) => session.state !== "busy",
    asks: () => "Forget the conversation?",
    async act(session) {
      await ask(path(session, "/reset"), of(session, "POST"));
      return "begins a new conversation";
    },
  },
};

export const nameOf = (session) => [session.name, named(session.id)].filter(Boolean).join(", ");

let refreshSoon = () => {};
/** What is called after a verb. */
export const afterwards = (refresh) => (refreshSoon = refresh);

export class Verb extends Component {
  componentWillUnmount() {
    clearTimeout(this.timer);
  }

  async press() {
    const { name, session } = this.props;
    const verb = VERBS[name];
    if (this.state.works || !verb.may(session)) return;
    const question = verb.asks?.(session);
    clearTimeout(this.timer);
    if (question && !this.state.asked) {
      this.timer = setTimeout(() => this.setState({ asked: "" }), ASKED_FOR);
      return this.setState({ asked: question });
    }
    this.setState({ asked: "", works: true });
    const who = nameOf(session);
    try {
      notify(`${who} ${await verb.act(session)}.`, "good");
    } catch (error) {
      notify(`${name} ${who}: ${error.message}`, "bad");
    }
    this.setState({ works: false });
    refreshSoon();
  }

  render({ name, session }, { asked, works }) {
    const may = VERBS[name].may(session) && !works;
    // Not `disabled`: the focus would be lost when an action makes itself impossible.
    return html`<button type="button" aria-disabled=${String(!may)} aria-label=${`${asked || name} ${nameOf(session)}`}
      data-asked=${asked ? "yes" : undefined} onClick=${() => this.press()}>${asked || name}</button>`;
  }
}
