"""report.html in a real browser: opened from a file, as the one who gets it by mail does."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aibrix_extproc.loadtest.report.report import summarise
from aibrix_extproc.loadtest.report.results import LoadTest
from aibrix_extproc.loadtest.report.rows import GROUPS
from aibrix_extproc.loadtest.report.write import write
from tests.browser import CONTRASTS, Browser, Page, browser
from tests.loadtest_results import Shape, a_test

pytestmark = pytest.mark.asyncio(loop_scope="module")

CELLS = (
    "[...document.querySelectorAll('td[data-figure]')].map((cell) =>"
    " [Number(cell.dataset.run), cell.dataset.figure, cell.textContent])"
)
LINES = """(() => {
  const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const back = light(getComputedStyle(document.querySelector('figure')).backgroundColor);
  return [...document.querySelectorAll('.line')].map((line) => light(getComputedStyle(line).stroke))
    .map((one) => (Math.max(one, back) + 0.05) / (Math.min(one, back) + 0.05));
})()"""
OVERLAPS = """(() => {
  const bad = [];
  for (const labels of document.querySelectorAll('.labels')) {
    const boxes = [...labels.children].map((one) => [one.textContent, one.getBoundingClientRect()]);
    for (const [i, [name, a]] of boxes.entries())
      for (const [other, b] of boxes.slice(i + 1))
        if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
          bad.push([name, other]);
  }
  return bad;
})()"""
CUT = """[...document.querySelectorAll('.labels span, h3, h4, .legend li')].filter((one) => {
  const box = one.getBoundingClientRect(), card = one.closest('figure').getBoundingClientRect();
  return box.left < card.left - 0.5 || box.right > card.right + 0.5;
}).map((one) => one.textContent)"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as chromium:
        yield chromium


async def opened(chromium: Browser, test: LoadTest, folder: Path) -> tuple[Page, dict[str, Any]]:
    """The page of a test, and its report.json."""
    figures, html = write(summarise(test), folder)
    page = await chromium.open(html.as_uri())
    return page, json.loads(figures.read_text())


def at_peace(page: Page) -> bool:
    """Nothing went wrong, and nothing but the file itself was asked for."""
    asked = [url for url in page.requests if url != "data:,"]
    return page.console == [] and len(asked) == 1 and asked[0].startswith("file://")


async def test_every_figure_of_the_table_is_that_of_the_json(
    chromium: Browser, tmp_path: Path
) -> None:
    page, document = await opened(chromium, a_test(shape=Shape(failing=0.01)), tmp_path)
    cells = await page.evaluate(CELLS)
    formats = {row.path: row.text for group in GROUPS for row in group.rows}
    for run, path, shown in cells:
        value: Any = document["runs"][run]
        for name in path.split("."):
            value = value[name]
        assert shown == formats[path](value), (run, path)
    assert len(cells) == len(formats) * len(document["runs"])
    assert (
        await page.evaluate("document.querySelector('.answer').textContent")
        == (document["headline"])
    )
    told = "[...document.querySelectorAll('.doubts li')].map((one) => one.dataset.code)"
    assert await page.evaluate(told) == list(map(itemgetter("code"), document["doubts"]))
    assert at_peace(page)
    await chromium.close(page)


async def test_it_is_readable_in_dark_and_light_on_a_narrow_screen_and_on_paper(
    chromium: Browser, tmp_path: Path
) -> None:
    strategies = (*a_test().runs, *(f"prefix-cache-classic-{at}" for at in range(4)))
    names = tuple(one if isinstance(one, str) else one.strategy for one in strategies)
    test = replace(a_test(names, Shape(requests=300, pods=150, failing=0.05)), null_run=None)
    page, _ = await opened(chromium, test, tmp_path)
    shots = []
    for dark in (False, True):
        await page.look(dark=dark)
        assert await page.evaluate(CONTRASTS) == []
        contrasts = await page.evaluate(LINES)
        assert len(contrasts) > len(names)
        assert min(contrasts) >= 3
        shots.append(await page.screenshot())
    assert shots[0] != shots[1]
    for width in (320, 390, 768, 1280):
        await page.resize(width, 800)
        assert await page.until(f"document.documentElement.scrollWidth <= {width}")
        assert await page.evaluate(OVERLAPS) == []
        assert await page.evaluate(CUT) == []
    await page.send("Emulation.setEmulatedMedia", media="print")
    assert await page.evaluate(CONTRASTS) == []
    assert at_peace(page)
    await chromium.close(page)


async def test_all_of_it_is_reached_by_keyboard(chromium: Browser, tmp_path: Path) -> None:
    page, _ = await opened(chromium, replace(a_test(), null_run=None), tmp_path)
    reached = []
    for _ in range(5):
        await page.press("Tab")
        focused = "document.activeElement.getAttribute('aria-label') ||"
        reached.append(await page.evaluate(f"{focused} document.activeElement.textContent"))
    assert reached == [
        "Skip to figures",
        "1 reason for care",
        "Figures",
        "Requests by pod, in numbers",
        "Prompt computed by pod, in numbers",
    ]
    assert not await page.evaluate("document.querySelectorAll('details')[1].open")
    await page.press("Enter")
    assert await page.until("document.querySelectorAll('details')[1].open")
    await page.press("Tab", shift=True)
    await page.press("Tab", times=2)
    assert await page.evaluate("document.activeElement.scrollHeight > 0")
    await chromium.close(page)


async def test_names_from_outside_are_text(chromium: Browser, tmp_path: Path) -> None:
    bad = '<img src="https://example.org/x" onerror="document.title=1"><script>x</script>\u202e'
    test = a_test(("prefix-cache",), Shape(requests=100))
    run = replace(
        test.runs[0],
        strategy=bad,
        requests=[
            replace(request, pod=bad, error=bad if request.turn else None)
            for request in test.runs[0].requests
        ],
    )
    test = replace(test, model=bad, workload=bad, target=bad, options={bad: bad}, runs=[run])
    page, _ = await opened(chromium, test, tmp_path)
    assert (await page.evaluate("document.title")).startswith("Load test: <img")
    assert await page.evaluate("document.querySelectorAll('img, script').length") == 0
    assert "\u202e" not in await page.evaluate("document.documentElement.textContent")
    for width in (320, 1280):
        await page.resize(width, 800)
        assert await page.until(f"document.documentElement.scrollWidth <= {width}")
    assert at_peace(page)
    await chromium.close(page)
