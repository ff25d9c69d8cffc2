// How many sessions are at what. Each number shows its sessions.

import { byId, bytes } from "/page/service.js";
import { known } from "/page/store.js";
import * as sessions from "/page/sessions.js";
import { html, render } from "/page/ui.js";

export function show() {
  const all = [...known.sessions.values()];
  const counts = Object.fromEntries(sessions.STATES.map((state) => [state, 0]));
  let memory = 0;
  for (const session of all) {
    counts[session.state] += 1;
    if (session.pending_permissions) counts.asks += 1;
    memory += session.memory_bytes;
  }
  const { ready = 0, warming = 0 } = known.spares;
  const press = (state) => {
    sessions.filter(state);
    show();
  };
  const shown = sessions.view.state;
  const words = { asks: "ask", failed: "failed", backoff: "backoff" };
  render(html`
    ${sessions.STATES.map((state) => html`<li key=${state} data-state=${state} data-none=${String(!counts[state])}>
      <button type="button" aria-pressed=${String(shown === state)} onClick=${() => press(state)}>
        <b>${counts[state]}</b><span>${words[state] ?? state}</span></button></li>`)}
    <li key="memory"><b>${bytes(memory)}</b><span>memory</span></li>
    <li key="spares" id="spares" hidden=${ready + warming === 0}><b>${ready}</b>
      <span>${warming ? `spares, ${warming} warming` : "spares"}</span></li>`, byId("states"));
  byId("state").value = shown;
}
