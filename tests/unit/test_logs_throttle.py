"""No place in the code can flood the log."""

import logging

from aibrix_extproc.logs import AUDIT, Throttle


class Log:
    """Lines of one place at times of our choosing, through a throttle of 3 lines in 10 s."""

    def __init__(self) -> None:
        self.throttle = Throttle(burst=3, per_s=10)
        self.dropped = 0
        self.throttle.on_dropped = self._count

    def _count(self) -> None:
        self.dropped += 1

    def line(
        self, at: float, place: int = 1, level: int = logging.WARNING, name: str = "x"
    ) -> str | None:
        record = logging.LogRecord(name, level, "file.py", place, "bad %s", ("batch",), None)
        record.created = at
        return record.getMessage() if self.throttle.filter(record) else None


def test_a_place_that_says_too_much_is_cut_short_and_the_rest_counted() -> None:
    log = Log()
    said = [log.line(100 + number / 100) for number in range(500)]
    assert [line for line in said if line] == ["bad batch"] * 3
    assert log.dropped == 497


def test_the_next_line_tells_how_many_were_left_out() -> None:
    log = Log()
    for _ in range(10):
        log.line(100)
    assert log.line(110) == "bad batch (and 7 more like this before)"
    assert log.line(111) == "bad batch"


def test_another_place_is_not_silenced_with_it() -> None:
    log = Log()
    for _ in range(10):
        log.line(100)
    assert log.line(100, place=2) == "bad batch"


def test_what_operators_asked_for_is_always_written() -> None:
    log = Log()
    for _ in range(10):
        assert log.line(100, level=logging.INFO)
        assert log.line(100, name=AUDIT)
