// The box that asks where a request would go.

import { sentence, table } from "./candidates.js";
import { byId, element, setText } from "./text.js";

function show(text, isBad, ...nodes) {
  const summary = byId("explain-summary");
  summary.dataset.bad = isBad ? "yes" : "no";
  setText(summary, text);
  byId("explain-result").replaceChildren(...nodes);
}

function shown(page) {
  const refused = page.outcome === "refused";
  if (page.outcome !== "picked" && !refused) return show(`No pick: it would pass on (${page.reason}).`, false);
  const words = refused
    ? `It would be refused with 429: no candidate could begin it within ${page.overload.max_start_delay_s} s.`
    : sentence(page, page.candidates).replace("was chosen", "would be chosen");
  const known = page.tokens_known ? page.prompt_tokens : null;
  const most = page.candidates.slice(0, 50);
  const left = page.candidates.length - most.length;
  show(words, refused, table(most, known, "Candidates, the best first"),
    ...(left ? [element("p", { class: "muted" }, `and ${left} more candidates`)] : []));
}

async function ask() {
  const headers = { "content-type": "application/json" };
  const strategy = byId("explain-strategy").value;
  if (strategy) headers["routing-strategy"] = strategy;
  const path = encodeURIComponent(byId("explain-path").value);
  const body = byId("explain-body").value;
  try {
    const reply = await fetch(`/debug/explain?path=${path}`, { method: "POST", headers, body });
    const page = await reply.json();
    if (reply.ok) shown(page);
    else show(page.error.message, true);
  } catch {
    show("The processor did not answer.", true);
  }
}

/** What may be chosen as a strategy. */
export function strategies(names) {
  const select = byId("explain-strategy");
  const known = new Set([...select.options].map((option) => option.value));
  for (const name of names) if (!known.has(name)) select.append(element("option", { value: name }, name));
}

export function start() {
  byId("explain-form").addEventListener("submit", (event) => {
    event.preventDefault();
    show("Asking", false);
    ask();
  });
}
