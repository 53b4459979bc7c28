"""`make screenshot`: the picture of a load test's report in docs/, of a test that nobody ran.

Raises SystemExit where there is no browser, or the picture is too large for a page of docs.
"""

import asyncio
import base64
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from aibrix_extproc.loadtest.report.report import summarise
from aibrix_extproc.loadtest.report.write import write
from tests.browser import browser
from tests.loadtest_results import a_test

PICTURE = Path(__file__).parents[1] / "docs/loadtest-report.png"
WIDTH = 1000
LIMIT_BYTES = 150_000


async def shoot() -> bytes:
    """The answer, a part of the figures and the plots below, in one picture."""
    test = replace(a_test(), options={})
    with tempfile.TemporaryDirectory() as folder:
        _, html = write(summarise(test), Path(folder))
        async with browser() as chromium:
            page = await chromium.open(html.as_uri(), WIDTH, 900)
            # The figures are long: the picture shows the first groups.
            await page.evaluate(
                "document.querySelectorAll('#figures tbody:nth-of-type(n + 4), #figures > p')"
                ".forEach((group) => group.remove())"
            )
            bottom = await page.evaluate(
                "document.querySelectorAll('figure')[1].getBoundingClientRect().bottom"
            )
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": bottom + 16, "scale": 1}
            shot = await page.send(
                "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
            )
    return base64.b64decode(shot["data"])


def main() -> None:
    try:
        data = asyncio.run(shoot())
    except pytest.skip.Exception as error:
        sys.exit(str(error))
    if len(data) > LIMIT_BYTES:
        sys.exit(f"{PICTURE}: {len(data):,} bytes are more than {LIMIT_BYTES:,}")
    PICTURE.write_bytes(data)
    print(f"{PICTURE}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
