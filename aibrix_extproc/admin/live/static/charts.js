// Two small charts over the last two minutes, drawn as SVG.

import { byId, duration, percent } from "./text.js";

const SPACE = "http://www.w3.org/2000/svg";
const LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 18;

let historyS = 120;
const points = new Map(); // second → point

function shape(tag, attributes, text) {
  const made = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text != null) made.textContent = text;
  return made;
}

/** Lines through the points, broken where seconds have none. */
function path(ordered, value, x, y) {
  let line = "", before = null;
  for (const point of ordered) {
    if (value(point) == null) continue;
    const near = before !== null && point.t - before <= 3;
    line += `${near ? "L" : "M"}${x(point.t).toFixed(1)} ${y(value(point)).toFixed(1)}${near ? "" : "h0"}`;
    before = point.t;
  }
  return line;
}

function chart(id, now, most, label, said, lines) {
  const box = byId(id);
  const width = box.clientWidth, height = box.clientHeight;
  const x = (t) => LEFT + (1 - (now - t) / historyS) * (width - LEFT - RIGHT);
  const y = (v) => TOP + (1 - Math.min(v, most) / most) * (height - TOP - BOTTOM);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
  for (const share of [0, 0.5, 1]) {
    const at = y(share * most);
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
    svg.append(shape("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, label(share * most)));
  }
  for (const [ago, words, anchor] of [[historyS, "2 min ago", "start"], [historyS / 2, "1 min", "middle"], [0, "now", "end"]]) {
    svg.append(shape("text", { x: x(now - ago), y: height - 4, "text-anchor": anchor }, words));
  }
  const ordered = [...points.values()].sort((a, b) => a.t - b.t);
  for (const [kind, value] of lines) svg.append(shape("path", { class: kind, d: path(ordered, value, x, y) }));
  box.replaceChildren(svg);
}

/** A round number that is not below the value. */
function ceiling(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 2, 5, 10].find((step) => step * unit >= value);
}

export function add(more, ofSeconds = historyS) {
  historyS = ofSeconds;
  for (const point of more) points.set(point.t, point);
}

export const clear = () => points.clear();

export function draw(now, totals) {
  for (const t of points.keys()) if (t < now - historyS) points.delete(t);
  chart("chart-hit", now, 1, (v) => `${v * 100} %`,
    `Hit ratio, now ${percent(totals.hit)}`, [["a", (p) => p.hit]]);
  const slowest = Math.max(0.1, ...[...points.values()].map((p) => p.p99_ms ?? 0));
  chart("chart-time", now, ceiling(slowest), duration,
    `Decision time, now median ${duration(totals.p50_ms)}, 99th percentile ${duration(totals.p99_ms)}`,
    [["b", (p) => p.p99_ms], ["a", (p) => p.p50_ms]]);
}
