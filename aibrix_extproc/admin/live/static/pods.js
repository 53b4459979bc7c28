// The table of pods: a row for each source, sorted and filtered here. Only cells that changed are
// written, and of very many rows only the first are drawn.

import { byId, clean, duration, element, number, percent, podName, setText } from "./text.js";

const MOST_ROWS = 400;
const GONE_MS = 10000;

// From bad to good; the words are the server's.
const LEVELS = {
  "unreachable": "bad", "not ready": "bad", "taken out": "warn", "events cut": "bad",
  "stale": "bad", "not believed": "warn", "index full": "warn", "ok": "good",
};
export const WORST_FIRST = Object.keys(LEVELS);

export const levelOf = (health) => LEVELS[health] ?? "warn";

const COLUMNS = [
  { id: "pod", title: "Pod", key: (r) => r.pod },
  { id: "health", title: "Health", key: (r) => (r.gone ? -1 : WORST_FIRST.indexOf(r.health)) },
  { id: "state", title: "Events", key: (r) => r.state ?? "~" },
  { id: "model", title: "Model", key: (r) => r.model, optional: true },
  { id: "blocks", title: "Blocks", key: (r) => r.blocks, numeric: true },
  { id: "hit", title: "Hit ratio", key: (r) => r.hit ?? -1, numeric: true },
  { id: "picks", title: "Picks, 60 s", key: (r) => r.picks, numeric: true },
  { id: "requests", title: "In flight", key: (r) => r.requests, numeric: true },
  { id: "prefill", title: "Prefill tokens", key: (r) => r.prefill, numeric: true, optional: true },
  { id: "lag", title: "Lag", key: (r) => r.lag_ms ?? -1, numeric: true, optional: true },
];

const rows = new Map(); // source → { data, cells, tr }
let sort = { id: "health", down: false };
const byName = new Intl.Collator("en", { numeric: true }).compare;

function makeHead() {
  const line = byId("pod-table").tHead.rows[0];
  for (const column of COLUMNS) {
    const button = element("button", { type: "button" }, column.title);
    const kind = [column.numeric && "num", column.optional && "opt"].filter(Boolean).join(" ");
    const th = element("th", { scope: "col", ...(kind && { class: kind }) }, button);
    button.addEventListener("click", () => {
      const again = sort.id === column.id;
      sort = { id: column.id, down: again ? !sort.down : Boolean(column.numeric) };
      draw();
    });
    column.head = th;
    line.append(th);
  }
}

function makeRow(data) {
  const cells = {};
  const tr = element("tr");
  for (const column of COLUMNS) {
    const tag = column.id === "pod" ? "th" : "td";
    const cell = (cells[column.id] = element(tag));
    if (tag === "th") cell.scope = "row";
    if (column.numeric) cell.classList.add("num");
    if (column.optional) cell.classList.add("opt");
    tr.append(cell);
  }
  cells.pod.classList.add("name");
  cells.model.classList.add("name");
  cells.health.classList.add("health");
  cells.hit.classList.add("share");
  cells.pod.append(...podName(data.pod, data.rank));
  cells.pod.title = clean(`${data.pod} rank ${data.rank}, ${data.address ?? "no address"}`);
  cells.model.title = clean(data.model);
  return { tr, cells };
}

function fill(row) {
  const { data, cells, tr } = row;
  const health = data.gone ? "gone" : data.health;
  setText(cells.health, health);
  cells.health.dataset.level = tr.dataset.level = levelOf(health);
  setText(cells.state, data.state ?? "none");
  setText(cells.model, data.model);
  setText(cells.blocks, number(data.blocks));
  setText(cells.hit, percent(data.hit));
  cells.hit.style.setProperty("--share", data.hit ?? 0);
  setText(cells.picks, number(data.picks));
  setText(cells.requests, number(data.requests));
  setText(cells.prefill, number(data.prefill));
  setText(cells.lag, duration(data.lag_ms));
  tr.classList.toggle("gone", Boolean(data.gone));
}

function wanted() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const onlyTrouble = byId("trouble").checked;
  const found = [...rows.values()].filter(({ data }) => {
    if (onlyTrouble && data.health === "ok" && !data.gone) return false;
    const text = `${data.pod} ${data.model} ${data.address} ${data.state} ${data.health}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const { key } = COLUMNS.find((column) => column.id === sort.id);
  const way = sort.down ? -1 : 1;
  const compared = (a, b) => (typeof a === "string" ? byName(a, b) : a - b);
  return found.sort(({ data: a }, { data: b }) =>
    way * compared(key(a), key(b)) || byName(a.pod, b.pod) || a.rank - b.rank);
}

/** Bring the table up to date. */
export function draw() {
  for (const column of COLUMNS) {
    const state = column.id !== sort.id ? "none" : sort.down ? "descending" : "ascending";
    if (column.head.getAttribute("aria-sort") !== state) column.head.setAttribute("aria-sort", state);
  }
  const found = wanted();
  const drawn = found.slice(0, MOST_ROWS);
  const body = byId("pod-table").tBodies[0];
  const keep = new Set();
  for (const row of drawn) {
    if (!row.tr) Object.assign(row, makeRow(row.data));
    fill(row);
    keep.add(row.tr);
  }
  for (const tr of [...body.rows]) if (!keep.has(tr)) tr.remove();
  drawn.forEach(({ tr }, place) => {
    if (body.rows[place] !== tr) body.insertBefore(tr, body.rows[place] ?? null);
  });
  const count = drawn.length < found.length ? `first ${drawn.length} of ${found.length}` : found.length;
  setText(byId("shown"), `${count} of ${rows.size} shown`.replace(/^(\d+) of \1 shown$/, "$1 shown"));
  byId("no-pods").hidden = found.length > 0;
  setText(byId("no-pods"), rows.size ? "None matches." : "No pods are known.");
}

/** Take all rows anew. */
export function replace(all) {
  rows.clear();
  for (const [source, data] of Object.entries(all)) rows.set(source, { data });
}

/** Take what changed; what is to be told to who does not see it, by the new health. */
export function change(changed, gone) {
  const told = new Map();
  const tell = (health, pod) => told.set(health, [...(told.get(health) ?? []), clean(pod)]);
  for (const [source, fields] of Object.entries(changed)) {
    const row = rows.get(source);
    const before = row?.data.health;
    if (row) Object.assign(row.data, fields);
    else rows.set(source, { data: fields });
    if (fields.health && fields.health !== before) {
      tell(fields.health, rows.get(source).data.pod);
      if (row?.tr) mark(row.tr);
    }
  }
  for (const source of gone.map(String)) {
    const row = rows.get(source);
    if (!row) continue;
    row.data.gone = true;
    tell("gone", row.data.pod);
    setTimeout(() => {
      // After a restart of the processor the number may be another source's.
      if (rows.get(source) === row && rows.delete(source)) draw();
    }, GONE_MS);
  }
  return told;
}

function mark(tr) {
  tr.classList.remove("changed");
  requestAnimationFrame(() => tr.classList.add("changed"));
}

export function start() {
  makeHead();
  byId("filter").addEventListener("input", draw);
  byId("trouble").addEventListener("change", draw);
  draw();
}
