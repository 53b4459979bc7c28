"""What a person sees while a run goes on."""

import asyncio
import io

from aibrix_extproc.loadtest import progress
from aibrix_extproc.loadtest.client import Outcome
from aibrix_extproc.loadtest.progress import Progress
from aibrix_extproc.loadtest.runner import NOT_SENT, OpenLoop, Sent
from aibrix_extproc.loadtest.talk import Style


def ended(**fields: object) -> Sent:
    return Sent("s", 0, 1.0, 1.25, Outcome(**fields))  # type: ignore[arg-type]


def test_the_line_says_how_far_it_is_and_how_it_goes() -> None:
    shown = Progress("prefix-cache", 10)
    shown.note(ended(ttft_s=0.05, prompt_tokens=100, cached_tokens=60))
    shown.note(ended(error="HTTP 503"))
    assert shown.line(7.6, under_way=3) == (
        "prefix-cache  8 s: 2 of 10 ended, 3 open, 1 errors, hit ratio 60.0 %, TTFT 300 ms"
    )


def test_a_bound_that_is_hit_is_told_plainly() -> None:
    shown = Progress("as set", 2)
    shown.note(ended(error=NOT_SENT))
    assert "1 NOT SENT: raise --max-open" in shown.line(1.0, under_way=1)


async def test_where_there_is_no_terminal_the_end_is_a_line_of_its_own() -> None:
    async def send(*_: object) -> Outcome:
        return Outcome()

    loop, stream = OpenLoop(send, Style("m"), 10), io.StringIO()
    with progress.shown("random", loop, 1, stream):
        loop.on_sent(ended())
        await asyncio.sleep(0)
    assert stream.getvalue() == "random  0 s: 1 of 1 ended, 0 open, 0 errors\n"
