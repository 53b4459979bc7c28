// The live page: takes what the stream brings to the parts that show it.

import * as charts from "./charts.js";
import * as decisions from "./decisions.js";
import * as explain from "./explain.js";
import * as pods from "./pods.js";
import { follow } from "./stream.js";
import { byId, duration, element, number, percent, rate, setText } from "./text.js";

const NAMED = 3; // pods named in one announcement
const CALM_MS = 2000; // between two of them

let last = null; // the newest message
let offset = 0; // the processor's clock against this one, in s
let toTell = new Map();
let toldAt = 0;

function showFigures({ totals, notes }) {
  const counts = totals.health;
  const all = Object.values(counts).reduce((sum, count) => sum + count, 0);
  const trouble = pods.WORST_FIRST.filter((health) => health !== "ok" && counts[health])
    .map((health) => [health, counts[health]]);
  setText(byId("tile-ok"), `${number(counts.ok ?? 0)} of ${number(all)}`);
  setText(byId("tile-trouble"), trouble.map(([health, count]) => `${health}: ${count}`).join(", ") || "none in trouble");
  byId("tile-trouble").dataset.bad = trouble.some(([health]) => pods.levelOf(health) === "bad") ? "yes" : "no";
  setText(byId("tile-open"), number(totals.open));
  setText(byId("tile-rate"), rate(totals.per_s));
  setText(byId("tile-hit"), percent(totals.hit));
  setText(byId("tile-p50"), duration(totals.p50_ms));
  setText(byId("tile-p99"), `median; 99 % below ${duration(totals.p99_ms)}`);
  const box = byId("notes");
  if (box.dataset.notes !== JSON.stringify(notes)) {
    box.dataset.notes = JSON.stringify(notes);
    box.replaceChildren(...notes.map((note) => element("p", { class: "note", role: "status" }, note)));
  }
}

function showAbout(about) {
  const sync = about.event_sync ? "on" : "off";
  setText(byId("about"), `version ${about.version}, strategy ${about.strategy}, index ${about.index}, event sync ${sync}`);
  explain.strategies(about.strategies);
}

/** Changes of health, gathered: one announcement now and then, not one for each pod. */
function tell(told) {
  for (const [health, names] of told) toTell.set(health, [...(toTell.get(health) ?? []), ...names]);
  if (!toTell.size || Date.now() - toldAt < CALM_MS) return;
  toldAt = Date.now();
  const said = [...toTell].map(([health, names]) => {
    const more = names.length > NAMED ? ` and ${names.length - NAMED} more` : "";
    return `${names.slice(0, NAMED).join(", ")}${more}: ${health}`;
  });
  toTell = new Map();
  setText(byId("announcer"), said.join(". "));
}

function show(message) {
  last = message;
  offset = message.now - Date.now() / 1000;
  showFigures(message);
  pods.draw();
}

follow({
  all(message) {
    showAbout(message.about);
    pods.replace(message.rows);
    charts.clear();
    charts.add(message.points, message.history_s);
    decisions.replace(message.decisions);
    show(message);
    charts.draw(message.now, message.totals);
  },
  tick(message) {
    tell(pods.change(message.rows, message.gone));
    charts.add(message.points);
    decisions.add(message.decisions, message.more);
    show(message);
  },
});

pods.start();
decisions.start();
explain.start();
setInterval(() => {
  if (last && !document.hidden) charts.draw(Date.now() / 1000 + offset, last.totals);
}, 1000);
