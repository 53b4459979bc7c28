"""`make screenshot`: the pictures of the live page in docs/, of a made-up fleet.

Raises SystemExit where there is no browser, or a picture is too large for a page of docs.
"""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.browser import browser
from tests.live_world import LiveWorld, live_server

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, HEIGHT = 1280, 1112
LIMIT_BYTES = 200_000


async def shoot(pods: int) -> dict[str, bytes]:
    """A picture in light and one in dark, by name."""
    world = LiveWorld(pods)
    if pods > 3:
        world.change(4, connected=False)
    world.decide()
    async with browser() as chromium, live_server(world) as url:
        page = await chromium.open(f"{url}/", WIDTH, HEIGHT)
        await page.until(f"document.querySelectorAll('#pod-table tbody tr').length === {pods}")
        await page.evaluate("document.querySelectorAll('#decision-table button')[0].click()")
        shots = {}
        for name in ("light", "dark"):
            await page.look(dark=name == "dark")
            shots[name] = await page.screenshot()
    return shots


def main() -> None:
    try:
        shots = asyncio.run(shoot(6))
    except pytest.skip.Exception as error:
        sys.exit(str(error))
    for name, data in shots.items():
        path = DOCS / f"live-page-{name}.png"
        if len(data) > LIMIT_BYTES:
            sys.exit(f"{path}: {len(data):,} bytes are more than {LIMIT_BYTES:,}")
        path.write_bytes(data)
        print(f"{path}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
