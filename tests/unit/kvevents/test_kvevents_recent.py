"""The last batches of a source are kept for who wants to look back, and for nobody else."""

from aibrix_extproc.kvevents.effects import Apply, CancelReplay, Clear, ClearReason
from aibrix_extproc.kvevents.recent import Recent


def apply(recent: Recent, *payloads: bytes) -> None:
    for number, payload in enumerate(payloads):
        recent.effect(Apply(number, payload, live=True))


def test_nothing_is_kept_while_nobody_wants_it() -> None:
    recent = Recent()
    apply(recent, b"before")
    position = recent.open()
    assert recent.since(position) == []


def test_each_who_opens_it_sees_what_came_since() -> None:
    recent = Recent()
    first = recent.open()
    apply(recent, b"a")
    second = recent.open()
    apply(recent, b"b", b"c")
    assert recent.since(first) == [b"a", b"b", b"c"]
    assert recent.since(second) == [b"b", b"c"]
    assert recent.position - second == 2


def test_it_goes_on_for_the_second_when_the_first_closes() -> None:
    recent = Recent()
    recent.open()
    second = recent.open()
    recent.close()
    apply(recent, b"a")
    assert recent.since(second) == [b"a"]


def test_with_the_last_one_all_go() -> None:
    recent = Recent()
    first = recent.open()
    apply(recent, b"a")
    recent.close()
    later = recent.open()
    assert recent.since(later) == []
    assert recent.since(first) is None


def test_an_emptied_source_leaves_a_mark_among_the_batches() -> None:
    recent = Recent()
    position = recent.open()
    apply(recent, b"a")
    recent.effect(Clear(ClearReason.RESTART))
    recent.effect(CancelReplay(1))
    assert recent.since(position) == [b"a", None]


def test_above_its_limit_the_oldest_go_and_that_is_told() -> None:
    recent = Recent(limit_bytes=10)
    first = recent.open()
    apply(recent, b"12345", b"67890")
    second = recent.open()
    apply(recent, b"x")
    assert recent.since(first) is None
    assert recent.since(first + 1) == [b"67890", b"x"]
    assert recent.since(second) == [b"x"]
