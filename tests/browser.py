"""A real Chromium without a window, driven by its DevTools protocol over a WebSocket.

    async with browser() as chromium:
        page = await chromium.open(url)
        await page.until("document.title === 'x'")

Owns the process and the protocol. What a page says to its console, and what it asks for, is kept.
Debian's package `chromium` is enough; where there is none, tests that need it are skipped.
"""

import asyncio
import base64
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aibrix_extproc.stack.processes import Process, Processes

VARIABLE = "AIBRIX_TEST_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
    "--remote-debugging-port=0", "about:blank",
)  # fmt: skip
_KEYS = {"Enter": (13, "\r"), " ": (32, " "), "Tab": (9, ""), "ArrowDown": (40, "")}

CONTRASTS = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (channels) => channels.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const back = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const text = node instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(parse(text)), light(back(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push([ratio.toFixed(2), node.tagName, node.textContent.slice(0, 30)]);
  }
  return bad;
})()"""
"""An expression: the texts of a page whose contrast with what is behind them is below 4.5 to 1."""


def chromium_path() -> Path:
    """The browser. Skips the test where there is none."""
    named = os.environ.get(VARIABLE)
    found = next(filter(None, map(shutil.which, [named] if named else _NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium: apt-get install chromium, or set {VARIABLE}")
    return Path(found)


@dataclass
class Page:
    """One tab."""

    browser: "Browser"
    session: str
    console: list[str] = field(default_factory=list)
    """Errors and warnings, exceptions among them."""
    requests: list[str] = field(default_factory=list)
    """Every URL that was asked for."""

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self.browser.send(method, self.session, **parameters)

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of the promise that it is. Raises where it throws."""
        result = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 10.0) -> Any:
        """Wait until an expression is true, and return its value."""
        deadline = time.monotonic() + timeout_s
        while not (value := await self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s:g} s: {expression}; {self.console}")
            await asyncio.sleep(0.04)
        return value

    async def press(self, key: str, times: int = 1, *, shift: bool = False) -> None:
        """Press a key of the keyboard."""
        code, text = _KEYS[key]
        event = {
            "key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code,
            "modifiers": 8 if shift else 0,
        }  # fmt: skip
        for _ in range(times):
            typed = {"text": text} if text else {}
            await self.send("Input.dispatchKeyEvent", type="keyDown", **event, **typed)
            await self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    async def type(self, text: str) -> None:
        """Write into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def look(self, *, dark: bool = False, calm: bool = True) -> None:
        """Prefer dark or light colours; `calm`: no motion."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def resize(self, width: int, height: int) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def screenshot(self, *, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        shot = await self.send(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole,
            optimizeForSpeed=False,
        )  # fmt: skip
        return base64.b64decode(shot["data"])

    def _take(self, method: str, said: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in {"error", "warning"}:
            self.console.append(f"{said['entry']['text']} ({said['entry'].get('url')})")
        elif method == "Runtime.consoleAPICalled" and said["type"] in {"error", "warning"}:
            self.console.append(json.dumps(said["args"]))


class Browser:
    """A running Chromium."""

    def __init__(self, process: Process, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.process = process
        self._socket = socket
        self._asked = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def open(self, url: str, width: int = 1280, height: int = 900) -> Page:
        """A new tab that shows `url`."""
        target = (await self.send("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.send("Target.attachToTarget", targetId=target, flatten=True)
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.send(f"{domain}.enable")
        await page.resize(width, height)
        await page.look()
        moved = await page.send("Page.navigate", url=url)
        assert "errorText" not in moved, moved["errorText"]
        await page.until("document.readyState === 'complete'")
        return page

    async def close(self, page: Page) -> None:
        """Close a tab."""
        del self._pages[page.session]
        await page.send("Page.close")

    async def send(
        self, method: str, session: str | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """One command. Raises AssertionError with what the browser says against it."""
        self._asked += 1
        number = self._asked
        self._answers[number] = asyncio.get_running_loop().create_future()
        said: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            said["sessionId"] = session
        await self._socket.send_json(said)
        try:
            async with asyncio.timeout(20):
                return await self._answers[number]
        finally:
            del self._answers[number]

    async def listen(self) -> None:
        """Take what the browser says, until it is gone."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answer(said)
            elif page := self._pages.get(said.get("sessionId", "")):
                page._take(said["method"], said["params"])

    def _answer(self, said: dict[str, Any]) -> None:
        waits = self._answers.get(said["id"])
        if waits is None or waits.done():
            return
        if "error" in said:
            waits.set_exception(AssertionError(f"the browser: {said['error']}"))
        else:
            waits.set_result(said["result"])


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A Chromium with a fresh profile, gone at the end with all of its processes."""
    with Processes() as processes:
        folder = processes.folder / "profile"
        process = processes.spawn(
            "chromium", [chromium_path(), f"--user-data-dir={folder}", *_OPTIONS]
        )
        port, path = (await process.written(folder / "DevToolsActivePort")).splitlines()[:2]
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            chromium = Browser(process, socket)
            listening = asyncio.create_task(chromium.listen())
            try:
                yield chromium
            finally:
                listening.cancel()
