// The stream of what happens: opened, watched, opened again. Knows nothing of what is in it.

import { byId, setText } from "./text.js";

const SILENT_MS = 6000; // a message comes each 0.4 s
const AGAIN_MS = 3000;
const HIDDEN_MS = 30000; // nobody looks: the processor need not work for this page

let source = null;
let heardAt = 0;
let openedAt = 0;
let hiddenTimer = 0;

function show(kind, text) {
  byId("connection").dataset.kind = kind;
  setText(byId("connection"), text);
}

function close() {
  source?.close();
  source = null;
}

function open(handlers) {
  close();
  openedAt = Date.now();
  const opened = (source = new EventSource("/live/events"));
  for (const [name, handler] of Object.entries(handlers)) {
    opened.addEventListener(name, (event) => {
      if (opened !== source) return;
      heardAt = Date.now();
      show("live", "Live");
      handler(JSON.parse(event.data));
    });
  }
  opened.addEventListener("error", () => {
    if (opened !== source) return;
    show("cut", "Cut off: what is shown is old. Trying again");
    if (opened.readyState === EventSource.CLOSED) close(); // refused: too many look, or no such page
  });
}

/** End the stream of a tab that nobody sees, and begin it again once it is seen. */
function seenOrNot(handlers) {
  clearTimeout(hiddenTimer);
  if (document.hidden) {
    hiddenTimer = setTimeout(() => {
      close();
      show("wait", "Paused while hidden");
    }, HIDDEN_MS);
  } else if (!source) open(handlers);
}

/** Keep a stream open; `handlers` by the event's name, each given the parsed data. */
export function follow(handlers) {
  open(handlers);
  setInterval(() => {
    const now = Date.now();
    if (document.hidden) return;
    if (!source && now - openedAt > AGAIN_MS) open(handlers);
    else if (source && now - Math.max(heardAt, openedAt) > SILENT_MS) {
      show("cut", "Cut off: what is shown is old. Trying again");
      open(handlers);
    }
  }, 1000);
  document.addEventListener("visibilitychange", () => seenOrNot(handlers));
  seenOrNot(handlers); // a tab may be opened behind another, and never be looked at
}
