"""The live page in a real browser: over a running gateway, and over a large made-up fleet."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from aibrix_extproc.stack.start import start_engine
from tests.browser import CONTRASTS, Browser, Page, browser
from tests.e2e.stack import Reply, Stack, gateway
from tests.live_world import HOSTILE, HOSTILE_MODEL, LiveWorld, live_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = "document.getElementById('connection').textContent === 'Live'"
NAMES = "[...document.querySelectorAll('#pod-table tbody th')].map((cell) => cell.textContent)"
KILLED_WITHIN_S = 2.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as chromium:
        yield chromium


def row(pod: str) -> str:
    """An expression: what a pod's row says of its health; empty where there is no row."""
    return (
        "([...document.querySelectorAll('#pod-table tbody tr')].find((line) =>"
        f" line.cells[0].textContent === {json.dumps(pod)})?.cells[1].textContent ?? '')"
    )


async def focused(page: Page) -> str:
    """What has the focus: its text, or its id."""
    found = await page.evaluate("document.activeElement.id || document.activeElement.textContent")
    return str(found).strip()


def at_peace(page: Page, url: str) -> bool:
    """Nothing went wrong, and nobody else was asked for anything."""
    assert page.console == []
    assert [one for one in page.requests if not one.startswith(url + "/")] == []
    return True


async def a_decision_is_shown_with_its_reason(page: Page, stack: Stack) -> Reply:
    """One made through Envoy."""
    reply = await stack.complete("word " * 200)
    await page.until("document.querySelectorAll('#decision-table tr[data-id]').length === 1")
    shown = await page.evaluate("document.querySelector('#decision-table tbody th').textContent")
    assert shown == reply.pod
    await page.evaluate("document.querySelector('#decision-table button').click()")
    why = await page.evaluate("document.querySelector('tr.why').textContent")
    assert f"{reply.pod} was chosen" in why
    assert reply.headers["request-id"] in why
    assert "word word" not in await page.evaluate("document.body.innerText")
    return reply


async def the_box_explains(page: Page, pod: str | None) -> None:
    """A body of its own, from the keyboard; nothing is decided by it."""
    body = json.dumps({"model": "tiny", "prompt": "word " * 200})
    await page.evaluate("document.getElementById('explain-path').value = '/v1/completions'")
    await page.evaluate("document.getElementById('explain-body').focus()")
    await page.type(body)
    await page.press("Tab")
    assert await focused(page) == "Explain"
    await page.press("Enter")
    said = await page.until(
        "(document.querySelector('#explain-result table') &&"
        " document.getElementById('explain-summary').textContent)"
    )
    assert f"{pod} would be chosen" in said
    decisions = "document.querySelectorAll('#decision-table tr[data-id]').length"
    assert await page.evaluate(decisions) == 1


async def is_seen_within_two_seconds(page: Page, condition: str) -> None:
    """The one time that the page promises."""
    began = time.monotonic()
    await page.until(condition)
    assert time.monotonic() - began < KILLED_WITHIN_S


async def test_a_running_gateway_its_decisions_and_a_killed_pod_are_seen(chromium: Browser) -> None:
    async with gateway(engines=2) as stack:
        url = stack.servers[0].debug_url
        victim = await start_engine(stack.processes, "victim", ["--model", "tiny"])
        mute = await asyncio.start_server(lambda _r, writer: writer.close(), "127.0.0.1", 0)
        port = mute.sockets[0].getsockname()[1]
        quiet = {"name": "quiet", "model": "other", "address": f"127.0.0.1:{port}"}
        stack.list_pods(stack.endpoint(0), stack.endpoint(1))
        page = await chromium.open(f"{url}/")
        await page.until(LIVE)
        assert await page.until(f"{row('engine-0')} === 'ok' && {row('engine-1')} === 'ok'")
        reply = await a_decision_is_shown_with_its_reason(page, stack)
        await the_box_explains(page, reply.pod)

        # Pods come, are killed, and go.
        stack.list_pods(stack.endpoint(0), stack.endpoint(1), victim.endpoint(), quiet)
        await page.until(f"{row('victim')} === 'ok' && {row('quiet')} === 'ok'")
        victim.process.kill()
        killed = f"['events cut', 'unreachable'].includes({row('victim')})"
        await is_seen_within_two_seconds(page, killed)
        await page.until(f"{row('victim')} === 'unreachable'")
        mute.close()
        await is_seen_within_two_seconds(page, f"{row('quiet')} === 'unreachable'")
        await page.until("document.getElementById('announcer').textContent.includes('unreachable')")
        stack.list_pods(stack.endpoint(0), stack.endpoint(1))
        await page.until(f"{row('victim')} === 'gone'")
        assert at_peace(page, url)

        # The processor itself goes: the page says so, and comes back with it.
        stack.servers[0].process.kill()
        await page.until("document.getElementById('connection').dataset.kind === 'cut'")
        await stack.start_server(0)
        await page.until(LIVE)
        assert await page.until(f"{row('engine-0')} === 'ok'")
        assert {one for one in page.requests if not one.startswith(url + "/")} == set()
        await chromium.close(page)


async def test_a_large_fleet_is_found_through_and_sorted_without_a_mouse(chromium: Browser) -> None:
    world = LiveWorld(200)
    world.trouble()
    world.decide()
    async with live_server(world) as url:
        page = await chromium.open(f"{url}/")
        await page.until(LIVE)
        names = await page.until(f"{NAMES}.length === 200 && {NAMES}")
        assert names[:4] == ["vllm-120", "vllm-3", "vllm-17", "vllm-77"]
        assert "196 of 200" in await page.evaluate("document.querySelector('.tiles').textContent")

        order = []
        for _ in range(8):
            await page.press("Tab")
            order.append(await focused(page))
        assert order[:5] == ["Skip to pods", "filter", "trouble", order[3], "Pod"]
        assert order[5:] == ["Health", "Events", "Model"]
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.evaluate(outline) == "solid"

        await page.press("Tab")
        assert await focused(page) == "Blocks"
        sorting = (
            "[...document.querySelectorAll('#pod-table thead th')]"
            ".map((head) => head.getAttribute('aria-sort'))"
        )
        for key, way in (("Enter", "descending"), (" ", "ascending")):
            await page.press(key)
            assert (await page.evaluate(sorting)).count(way) == 1
            column = (
                "[...document.querySelectorAll('#pod-table tbody tr')].map((line) => line.cells[4])"
            )
            blocks = await page.evaluate(
                f"{column}.map((c) => Number(c.textContent.replace(',', '')))"
            )
            assert blocks == sorted(blocks, reverse=way == "descending")
        assert await focused(page) == "Blocks"

        await page.evaluate("document.getElementById('filter').focus()")
        await page.type("vllm-7")
        expected = {f"vllm-{number}" for number in (7, *range(70, 80))}
        assert set(await page.until(f"{NAMES}.length === 11 && {NAMES}")) == expected
        await page.press("Tab")
        await page.press(" ")
        assert await page.until(f"{NAMES}.length === 1 && {NAMES}") == ["vllm-77"]
        assert at_peace(page, url)
        await chromium.close(page)


async def test_everything_is_readable_in_dark_and_light_and_on_a_narrow_screen(
    chromium: Browser,
) -> None:
    world = LiveWorld(60)
    world.change(3, connected=False)
    world.change(5, stale=True)
    world.change(7, full=True)
    world.notes = ("lever: shadow mode is on, no pick is told to Envoy",)
    world.decide(seconds=20)
    async with live_server(world) as url:
        page = await chromium.open(f"{url}/")
        await page.until(LIVE)
        await page.until(f"{NAMES}.length === 60")
        await page.evaluate("document.querySelector('#decision-table button').click()")
        shots = []
        for dark in (False, True):
            await page.look(dark=dark)
            assert await page.evaluate(CONTRASTS) == []
            shots.append(await page.screenshot())
        assert all(shot.startswith(b"\x89PNG") for shot in shots)
        assert shots[0] != shots[1]
        for width in (320, 768):
            await page.resize(width, 800)
            assert await page.until(f"document.documentElement.scrollWidth <= {width}")
        assert at_peace(page, url)
        await chromium.close(page)


async def test_names_from_outside_are_text_and_nothing_else(chromium: Browser) -> None:
    world = LiveWorld(3)
    for number, key in enumerate(HOSTILE):
        world.rename(number, key, HOSTILE_MODEL)
    world.notes = (HOSTILE_MODEL,)
    world.decide(seconds=3)
    async with live_server(world) as url:
        page = await chromium.open(f"{url}/", width=700)
        await page.until(LIVE)
        names = await page.until(f"{NAMES}.length === 3 && {NAMES}")
        assert HOSTILE[0].removeprefix("default/") in names
        assert "\ufffdgnihton\ufffd\ufffd[31m" in names
        await page.evaluate("document.querySelector('#decision-table button').click()")
        await page.evaluate("document.getElementById('explain-form').requestSubmit()")
        await page.until("document.querySelectorAll('#explain-result table').length === 1")
        assert HOSTILE_MODEL in await page.evaluate("document.getElementById('notes').textContent")
        assert await page.evaluate("document.title") == "aibrix-extproc"
        assert await page.evaluate("document.querySelectorAll('img, body script').length") == 0
        assert await page.evaluate("document.documentElement.scrollWidth") <= 700
        await page.evaluate("document.getElementById('explain-body').value = 'unknown'")
        await page.evaluate("document.getElementById('explain-form').requestSubmit()")
        await page.until(
            "document.getElementById('explain-summary').textContent.includes('is not served here')"
        )
        # The browser tells of the 404 by itself.
        assert [line for line in page.console if "/debug/explain" not in line] == []
        await chromium.close(page)


async def test_a_paused_list_stands_still_and_then_catches_up(chromium: Browser) -> None:
    world = LiveWorld(3)
    world.decide(seconds=2)
    first = "document.querySelector('#decision-table tr[data-id]').dataset.id"
    async with live_server(world) as url:
        page = await chromium.open(f"{url}/")
        await page.until(LIVE)
        shown = await page.until(first)
        await page.evaluate("document.getElementById('pause').focus()")
        await page.press("Enter")
        world.ring.add(world.decision(time.time()))
        await page.until("document.getElementById('missed').textContent === '1 newer wait'")
        assert await page.evaluate(first) == shown
        await page.press(" ")
        await page.until(f"{first} === '{int(shown) + 1}'")
        world.views[0] = replace(world.views[0], placements=123_456)
        await page.until("document.getElementById('pod-table').textContent.includes('123,456')")
        await chromium.close(page)


async def test_a_row_that_went_takes_none_of_the_next_process_with_it(chromium: Browser) -> None:
    """Another process numbers its sources anew, within the seconds that a row is shown as gone."""
    world = LiveWorld(2)
    async with live_server(world) as url:
        page = await chromium.open(f"{url}/")
        await page.until(LIVE)
        await page.evaluate("window.later = [], window.setTimeout = (what) => later.push(what)")
        number = world.views.pop().source
        await page.until("document.querySelectorAll('#pod-table tr.gone').length === 1")
        new = {"pod": "default/new", "rank": 0, "model": "m", "health": "ok", "picks": 0}
        rows = json.dumps({number: new | {"blocks": 1, "requests": 0, "prefill": 0}})
        await page.evaluate(
            "import('/live/pods.js').then((pods) => {"
            f" pods.replace({rows}); later.forEach((what) => what()); pods.draw(); }})"
        )
        assert await page.evaluate(NAMES) == ["new"]
        await chromium.close(page)


async def test_a_tab_that_is_opened_behind_another_ends_its_stream(chromium: Browser) -> None:
    world = LiveWorld(2)
    async with live_server(world) as url:
        page = await chromium.open(f"{url}/")
        await page.until(LIVE)
        await page.evaluate("window.later = [], window.setTimeout = (what) => later.push(what)")
        await page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
        await page.evaluate("import('/live/stream.js').then((stream) => stream.follow({}))")
        await page.evaluate("later.forEach((what) => what())")
        connection = "document.getElementById('connection').textContent"
        assert await page.evaluate(connection) == "Paused while hidden"
        await chromium.close(page)
