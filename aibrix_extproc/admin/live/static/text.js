// Names come from outside: whatever is shown is set as text by these, never as HTML.

const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** The text with what cannot be seen, or turns the direction of what follows, made visible. */
export const clean = (text) => String(text).replace(UNSEEN, "\ufffd");

/** An element with attributes and children (text or elements). */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.map((child) => (child instanceof Node ? child : clean(child))));
  return made;
}

/** Set the text of an element where it is another. Costs nothing where it is not. */
export function setText(node, text) {
  const shown = clean(text);
  if (node.textContent !== shown) node.textContent = shown;
}

export const byId = (id) => document.getElementById(id);

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const one = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });

export const number = (value) => (value == null ? "–" : whole.format(value));
export const rate = (value) => (value == null ? "–" : value >= 100 ? whole.format(value) : one.format(value));
export const percent = (share) => (share == null ? "–" : `${tenth.format(share * 100)} %`);

/** A time given in ms. */
export function duration(ms) {
  if (ms == null) return "–";
  return ms < 1000 ? `${short.format(ms)} ms` : `${short.format(ms / 1000)} s`;
}

/** Hours, minutes, seconds of here, of an ISO time. */
export const clock = (iso) => new Date(iso).toLocaleTimeString("en-GB");

/** A pod's name: its namespace, where it is not `default`, is set apart. */
export function podName(key, rank) {
  const slash = key.indexOf("/");
  const space = key.slice(0, slash + 1);
  const parts = space && space !== "default/" ? [element("span", { class: "space" }, space)] : [];
  parts.push(clean(key.slice(slash + 1)));
  if (rank) parts.push(element("span", { class: "space" }, ` rank ${rank}`));
  return parts;
}
