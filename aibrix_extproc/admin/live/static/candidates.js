// Why a pod was chosen: a sentence, and the candidates with what counted for each.

import { element, number, percent, podName, rate } from "./text.js";

const REASONS = {
  prefix: "it should finish the prompt first, and holds the beginning of it",
  load: "it has the least to do, and no prefix decided",
  imbalance: "pods were out of balance, so load alone decided",
  kv_cache: "its KV cache is least used",
  kv_cache_partly: "its KV cache is least used, as far as engines told it",
  kv_cache_unknown: "no engine told the use of its KV cache, and it has the fewest requests",
  two_choices: "it is the less busy of two drawn at random",
  session: "the session belongs to it",
  session_full: "the session's own pod is full, and it is the next one that is not",
  no_session: "the request names no session, and it has the fewest requests",
  random: "by lot, as the strategy says",
  only: "it is the only candidate",
  overload: "those that the strategy prefers could not begin in time",
};

/** One sentence or two on a decision; `list`: its candidates, the best first. */
export function sentence(decision, list) {
  const best = list[0];
  const known = decision.tokens_known;
  const prompt = `${number(decision.prompt_tokens)} prompt tokens${known === true ? "" : " (estimated)"}`;
  const parts = [`${nameOf(best)} was chosen because ${REASONS[decision.reason] ?? decision.reason}.`];
  if (known) parts.push(`It holds ${number(best.reusable_tokens)} of ${prompt}.`);
  else parts.push(`The tokens were not known${decision.fallback ? ` (${decision.fallback})` : ""}: ${prompt}.`);
  if (list[1]) {
    const next = list[1];
    parts.push(`Next best: ${nameOf(next)}, which holds ${number(next.reusable_tokens)}; ` +
      `score ${rate(best.score)} against ${rate(next.score)}, lower is better.`);
  }
  return parts.join(" ");
}

const nameOf = ({ pod, rank }) => `${pod.replace(/^default\//, "")}${rank ? ` rank ${rank}` : ""}`;

const HEADS = [
  ["Candidate", ""], ["Holds", "num"], ["Of prompt", "num"], ["In flight", "num"],
  ["Prefill tokens", "num"], ["Decoding", "num"], ["Score", "num"],
];

/** A table of candidates. */
export function table(list, promptTokens, caption) {
  const head = element("tr");
  for (const [title, kind] of HEADS) head.append(element("th", { scope: "col", class: kind }, title));
  const body = element("tbody");
  for (const one of list) {
    const line = element("tr", {}, element("th", { scope: "row", class: "name" }, ...podName(one.pod, one.rank)));
    const share = promptTokens ? one.reusable_tokens / promptTokens : null;
    const { requests, prefill_tokens: prefill, decoding } = one.load;
    const texts = [number(one.reusable_tokens), percent(share), number(requests), number(prefill),
      number(decoding), rate(one.score)];
    for (const text of texts) line.append(element("td", { class: "num" }, text));
    body.append(line);
  }
  return element("table", {}, element("caption", { class: "unseen" }, caption),
    element("thead", {}, head), body);
}
