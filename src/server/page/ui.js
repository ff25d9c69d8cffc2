// Templates: every value in them becomes text or an attribute, never HTML, and hides nothing.

import htm from "/page/htm.mjs";
import { Component, h, render } from "/page/preact.mjs";
import { prose } from "/page/text.js";

/** Attributes that are read. */
const READ = ["title", "aria-label"];

const shown = (child) => (typeof child === "string" ? prose(child) : Array.isArray(child) ? child.map(shown) : child);

function make(type, props, ...children) {
  for (const name of READ) if (typeof props?.[name] === "string") props = { ...props, [name]: prose(props[name]) };
  return h(type, props, ...children.map(shown));
}

export const html = htm.bind(make);
export { Component, render };

/** A component that is drawn again only if one of its values has changed. */
export class Steady extends Component {
  shouldComponentUpdate(next) {
    return Object.keys(next).some((name) => next[name] !== this.props[name]);
  }
}

/** What strangers wrote where a text should be. */
export const textOf = (value) => (typeof value === "string" ? value : value === undefined || value === null ? "" : JSON.stringify(value));

/** What strangers wrote where an object should be. */
export const fieldsOf = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});

export const listOf = (value) => (Array.isArray(value) ? value : []);

/** A part of the page that cannot be drawn leaves the others alone. */
export class Guard extends Component {
  componentDidCatch(error) {
    this.setState({ error });
  }

  render({ children }, { error }) {
    return error ? html`<p class="empty">This part cannot be shown: ${String(error.message)}</p>` : children;
  }
}
