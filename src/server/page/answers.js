// Permissions and questions that wait, with the forms that answer them.

import { ask, clock, notify } from "/page/service.js";
import { of, path } from "/page/store.js";
import { judged, named } from "/page/text.js";
import { Component, fieldsOf, html, listOf, textOf } from "/page/ui.js";

/** Characters of a tool's input that are shown. */
const MOST_SHOWN = 20_000;

async function send(session, request, body, done) {
  try {
    const place = path(session, `/permissions/${encodeURIComponent(request.request_id)}`);
    await ask(place, of(session, "POST", { body }));
    notify("Answered.", "good");
  } catch (error) {
    notify(`The answer was not taken: ${error.message}`, "bad");
  }
  done();
}

/** `mayAnswer`: an operator's key sees what waits and cannot answer for the user. */
export class Answers extends Component {
  state = { pending: [], error: "" };

  componentDidMount() {
    this.look();
  }

  componentDidUpdate(before) {
    const { session, news } = this.props;
    if (before.session.pending_permissions !== session.pending_permissions || before.news !== news) this.look();
  }

  componentWillUnmount() {
    this.gone = true;
  }

  async look() {
    const { session } = this.props;
    try {
      const { permissions } = await (await ask(path(session, "/permissions"), of(session, "GET"))).json();
      if (!this.gone) this.setState({ pending: permissions, error: "" });
    } catch (error) {
      if (!this.gone) this.setState({ error: error.message });
    }
  }

  render({ session, mayAnswer, done }, { pending, error }) {
    const after = () => {
      this.look();
      done();
    };
    if (error) return html`<p class="empty">What waits cannot be read: ${error}</p>`;
    if (!pending.length) return "";
    return html`<section class="waits" aria-labelledby="waits-title"><h3 id="waits-title">Waits for an answer</h3>
      ${!mayAnswer && html`<p class="quiet">A key of the role admin sees what waits and cannot answer for a user. Use the user's key, or a service's.</p>`}
      ${pending.map((request) => html`<${Request} key=${request.request_id} request=${request} mayAnswer=${mayAnswer}
        answer=${(body) => send(session, request, body, after)} />`)}</section>`;
  }
}

class Request extends Component {
  render({ request, mayAnswer, answer }) {
    const { kind, tool_name: tool, description, created_at: at, input } = request;
    const form = { question: Question, elicitation: Elicitation }[kind] ?? Permission;
    const what = { question: "The model asks", elicitation: `An MCP server asks (${named(tool)})` }[kind] ?? `May it use ${named(tool)}?`;
    return html`<article class="request"><h4>${what}</h4>
      <p class="quiet">since ${clock(at)}${description ? `: ${judged(textOf(description))}` : ""}</p>
      <${form} input=${fieldsOf(input)} mayAnswer=${mayAnswer} answer=${answer} /></article>`;
  }
}

class Permission extends Component {
  render({ input, mayAnswer, answer }, { message }) {
    const { command, ...others } = input;
    const isCommand = typeof command === "string";
    const rest = !isCommand || Object.keys(others).length ? JSON.stringify(isCommand ? others : input, null, 2) : "";
    const text = [isCommand ? command : "", rest].filter(Boolean).join("\n");
    // What is not seen in whole is not allowed here: a long command could hide its end.
    const isWhole = text.length <= MOST_SHOWN;
    return html`<pre tabindex="0">${judged(text.slice(0, MOST_SHOWN))}</pre>
      ${!isWhole && html`<p>${text.length - MOST_SHOWN} more characters are not shown: it cannot be allowed on this page.</p>`}
      ${mayAnswer && html`<div class="buttons">
        <button type="button" class="main" disabled=${!isWhole} onClick=${() => answer({ behavior: "allow" })}>Allow</button>
        <button type="button" onClick=${() => answer(message ? { behavior: "deny", message } : { behavior: "deny" })}>Deny</button>
        <label>Reason for a denial <input value=${message ?? ""} maxlength="1000" onInput=${(event) => this.setState({ message: event.currentTarget.value })} /></label>
      </div>`}`;
  }
}

/** Questions of the model, each with its choices; the user's own words are an answer as well. */
class Question extends Component {
  state = { chosen: new Map(), own: new Map() };

  choose(index, label, several) {
    const before = this.state.chosen.get(index) ?? [];
    const now = !several ? [label] : before.includes(label) ? before.filter((it) => it !== label) : [...before, label];
    this.setState({ chosen: new Map(this.state.chosen).set(index, now) });
  }

  /** The answers by question, of those that are answered. */
  answers(questions) {
    const given = questions.map(({ question, multiSelect: several }, index) => {
      const own = this.state.own.get(index)?.trim();
      const all = own ? [own] : (this.state.chosen.get(index) ?? []);
      return [textOf(question), several ? all : all[0]];
    });
    return Object.fromEntries(given.filter(([, answer]) => answer?.length));
  }

  render({ input, mayAnswer, answer }, { chosen, own }) {
    const questions = listOf(input.questions).map(fieldsOf);
    const submit = (event) => {
      event.preventDefault();
      answer({ behavior: "allow", answers: this.answers(questions) });
    };
    const write = (index) => (event) => this.setState({ own: new Map(own).set(index, event.currentTarget.value) });
    return html`<form onSubmit=${submit}>
      ${questions.map(({ question, options, multiSelect: several }, index) => html`<fieldset key=${index}><legend>${textOf(question)}</legend>
        ${listOf(options).map(fieldsOf).map(({ label, description }) => html`<label key=${textOf(label)} class="choice">
          <input type=${several ? "checkbox" : "radio"} name=${`q${index}`} disabled=${!mayAnswer} checked=${(chosen.get(index) ?? []).includes(textOf(label))}
            onChange=${() => this.choose(index, textOf(label), several)} /> <b>${textOf(label)}</b> <span class="quiet">${textOf(description)}</span></label>`)}
        ${mayAnswer && html`<label>In your own words <input maxlength="1000" value=${own.get(index) ?? ""} onInput=${write(index)} /></label>`}</fieldset>`)}
      ${mayAnswer && html`<div class="buttons"><button type="submit" class="main">Answer</button>
        <button type="button" onClick=${() => answer({ behavior: "deny" })}>Do not answer</button></div>`}</form>`;
  }
}

/** A form of an MCP server, by its schema; or an address to open, which is shown as text. */
class Elicitation extends Component {
  state = { content: new Map() };

  render({ input, mayAnswer, answer }, { content }) {
    const schema = input.requested_schema;
    const fields = Object.entries(fieldsOf(fieldsOf(schema).properties));
    const set = (name, value) => this.setState({ content: new Map(content).set(name, value) });
    const submit = (event) => {
      event.preventDefault();
      answer(schema ? { action: "accept", content: Object.fromEntries(content) } : { action: "accept" });
    };
    return html`<form onSubmit=${submit}><p>${textOf(input.message)}</p>${input.url && html`<pre tabindex="0">${textOf(input.url)}</pre>`}
      ${fields.map(([name, field]) => html`<label key=${name}>${textOf(fieldsOf(field).title ?? name)} <span class="quiet">${textOf(fieldsOf(field).description)}</span>
        ${inputOf(fieldsOf(field), content.get(name), (value) => set(name, value), !mayAnswer)}</label>`)}
      ${mayAnswer && html`<div class="buttons"><button type="submit" class="main">Accept</button>
        <button type="button" onClick=${() => answer({ action: "decline" })}>Decline</button>
        <button type="button" onClick=${() => answer({ action: "cancel" })}>Cancel</button></div>`}</form>`;
  }
}

function inputOf({ type, enum: choices }, value, set, disabled) {
  if (Array.isArray(choices)) {
    return html`<select disabled=${disabled} onChange=${(event) => set(event.currentTarget.value)}><option></option>
      ${choices.map((choice) => html`<option key=${textOf(choice)} selected=${choice === value}>${textOf(choice)}</option>`)}</select>`;
  }
  if (type === "boolean") return html`<input type="checkbox" disabled=${disabled} checked=${Boolean(value)} onChange=${(event) => set(event.currentTarget.checked)} />`;
  const isNumber = type === "number" || type === "integer";
  return html`<input type=${isNumber ? "number" : "text"} step="any" disabled=${disabled} value=${value ?? ""}
    onInput=${(event) => set(isNumber ? Number(event.currentTarget.value) : event.currentTarget.value)} />`;
}
