// The last decisions, the newest first, each with its explanation behind a button.

import { sentence, table } from "./candidates.js";
import { byId, clean, clock, duration, element, number, percent, podName, setText } from "./text.js";

const MOST = 50;
const COLUMNS = 9;

let paused = false;
let waiting = [];
let missed = 0;

function makeRow(decision) {
  const button = element("button", { type: "button", "aria-expanded": "false" }, "Why");
  button.setAttribute("aria-label", clean(`Why ${decision.pod} at ${clock(decision.time)}`));
  const share = decision.tokens_known && decision.prompt_tokens
    ? decision.reusable_tokens / decision.prompt_tokens : null;
  const held = element("td", { class: "num share" }, percent(share));
  held.style.setProperty("--share", share ?? 0);
  const line = element("tr", { "data-id": decision.id },
    element("td", {}, clock(decision.time)),
    element("th", { scope: "row", class: "name" }, ...podName(decision.pod, decision.rank)),
    element("td", { class: "name opt" }, decision.model),
    element("td", {}, decision.reason + (decision.fallback ? `, ${decision.fallback}` : "") +
      (decision.shadow ? ", shadow" : "")),
    element("td", { class: "num" }, (decision.tokens_known === true ? "" : "≈ ") + number(decision.prompt_tokens)),
    held,
    element("td", { class: "num opt" }, number(decision.candidates)),
    element("td", { class: "num opt" }, duration(decision.took_ms)),
    element("td", {}, button));
  button.addEventListener("click", () => toggle(line, button, decision));
  return line;
}

function toggle(line, button, decision) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) {
    line.nextSibling.remove();
    return;
  }
  const left = decision.candidates - decision.top.length;
  const cell = element("td", { colspan: COLUMNS },
    element("p", {}, sentence(decision, decision.top)),
    table(decision.top, decision.tokens_known ? decision.prompt_tokens : null, "Candidates, the best first"),
    element("p", { class: "muted" }, `${left > 0 ? `and ${number(left)} more candidates; ` : ""}` +
      `strategy ${decision.strategy}, request ${decision.request_id}`));
  line.after(element("tr", { class: "why" }, cell));
}

function put(decisions) {
  const body = byId("decision-table").tBodies[0];
  body.prepend(...decisions.map(makeRow));
  const lines = body.querySelectorAll("tr[data-id]");
  for (const line of [...lines].slice(MOST)) {
    if (line.nextSibling?.classList.contains("why")) line.nextSibling.remove();
    line.remove();
  }
  byId("no-decisions").hidden = body.rows.length > 0;
}

/** More decisions, the newest first; `more` older ones were left out. */
export function add(decisions, more = 0) {
  if (paused) {
    waiting = [...decisions, ...waiting];
    missed += more + Math.max(0, waiting.length - MOST);
    waiting = waiting.slice(0, MOST);
    setText(byId("missed"), `${number(waiting.length + missed)} newer wait`);
  } else if (decisions.length) {
    put(decisions);
    setText(byId("missed"), more ? `${number(more)} more in this moment are not shown` : "");
  }
}

export function replace(decisions) {
  byId("decision-table").tBodies[0].replaceChildren();
  waiting = [];
  missed = 0;
  put(decisions);
}

export function start() {
  byId("pause").addEventListener("click", (event) => {
    paused = !paused;
    event.currentTarget.setAttribute("aria-pressed", String(paused));
    if (paused) return;
    put(waiting);
    waiting = [];
    missed = 0;
    setText(byId("missed"), "");
  });
}
