"""How far a source has come: what it was seen to do, carried on until something is seen again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.progress import Progress


def learnt(tokens_per_s: float = 1000.0) -> Progress:
    """One source, 1, whose pace is known at 10 s, with nothing under way."""
    progress = Progress()
    progress.begin(1, 1, round(tokens_per_s), 9.0)
    progress.done(1, 1, 10.0, learns=True)
    return progress


def test_nothing_counts_as_computed_before_a_pace_is_known() -> None:
    progress = Progress()
    progress.begin(1, 1, 4000, 0.0)
    assert progress.computed(3.0) == {1: 0.0}


def test_a_prompt_is_computed_at_the_pace_that_was_seen() -> None:
    progress = learnt(1000.0)
    progress.begin(1, 2, 4000, 20.0)
    assert progress.computed(20.0) == {1: 0.0}
    assert progress.computed(21.5) == {1: 1500.0}


def test_the_next_prompt_begins_when_the_one_before_it_is_done() -> None:
    progress = learnt(1000.0)
    progress.begin(1, 2, 1000, 20.0)
    progress.begin(1, 3, 4000, 20.0)
    progress.done(1, 2, 21.0, learns=True)
    assert progress.computed(21.5) == {1: 500.0}


def test_only_the_first_of_several_prompts_is_under_way() -> None:
    progress = learnt(1000.0)
    progress.begin(1, 2, 1000, 20.0)
    progress.begin(1, 3, 4000, 20.0)
    assert progress.computed(30.0) == {1: 950.0}


def test_a_prompt_whose_answer_has_not_begun_is_never_all_computed() -> None:
    progress = learnt(1000.0)
    progress.begin(1, 2, 4000, 20.0)
    assert progress.computed(1000.0) == {1: 3800.0}


def test_a_client_that_goes_gives_its_place_to_the_next() -> None:
    progress = learnt(1000.0)
    progress.begin(1, 2, 1000, 20.0)
    progress.begin(1, 3, 4000, 21.0)
    progress.leave(1, 2)
    assert progress.computed(22.0) == {1: 1000.0}
    progress.leave(1, 3)
    assert progress.computed(22.0) == {}


def test_an_answer_that_comes_whole_teaches_no_pace() -> None:
    progress = Progress()
    progress.begin(1, 1, 1000, 0.0)
    progress.done(1, 1, 60.0, learns=False)
    progress.begin(1, 2, 1000, 60.0)
    assert progress.computed(61.0) == {1: 0.0}


def test_a_short_prompt_teaches_no_pace() -> None:
    progress = Progress()
    progress.begin(1, 1, 20, 0.0)
    progress.done(1, 1, 1.0, learns=True)
    progress.begin(1, 2, 1000, 1.0)
    assert progress.computed(2.0) == {1: 0.0}


def test_a_new_pace_counts_a_tenth() -> None:
    progress = learnt(1000.0)
    progress.begin(1, 2, 2000, 20.0)
    progress.done(1, 2, 21.0, learns=True)
    progress.begin(1, 3, 9000, 30.0)
    assert progress.computed(31.0) == {1: pytest.approx(1100.0)}


def test_a_source_that_was_removed_is_forgotten() -> None:
    progress = learnt(1000.0)
    progress.begin(1, 2, 1000, 20.0)
    progress.forget(1)
    progress.leave(1, 2)
    assert progress.computed(21.0) == {}
    progress.begin(1, 3, 1000, 30.0)
    assert progress.computed(31.0) == {1: 0.0}


def test_the_ledger_tells_what_its_loads_no_longer_owe() -> None:
    ledger = Ledger(limit_s=600.0)
    first = ledger.reserve(1, 1000, 9.0, is_streamed=True)
    ledger.prefill_done(first, 10.0)
    second = ledger.reserve(1, 4000, 20.0, is_streamed=True)
    assert ledger.computed(21.0) == {1: 1000.0}
    ledger.release(second)
    assert ledger.computed(21.0) == {}
    ledger.reserve(1, 4000, 30.0)
    ledger.forget(1)
    assert ledger.computed(31.0) == {}


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "done", "release", "move", "forget"]),
        st.integers(0, 2),
        st.integers(0, 9),
        st.integers(0, 20_000),
        st.floats(0.0, 5.0),
    ),
    max_size=60,
)


@given(_STEPS)
def test_no_source_has_computed_more_than_it_owes(
    steps: list[tuple[str, int, int, int, float]],
) -> None:
    """In any order of what can happen, and nothing is left over at the end."""
    ledger, tickets, now = Ledger(limit_s=30.0), [], 0.0
    for what, source, place, tokens, pause_s in steps:
        now += pause_s
        if what == "reserve":
            tickets.append(ledger.reserve(source, tokens, now, is_streamed=place % 3 > 0))
        elif what == "forget":
            ledger.forget(source)
        elif tickets:
            ticket = tickets[place % len(tickets)]
            if what == "done":
                ledger.prefill_done(ticket, now)
            elif what == "release":
                ledger.release(ticket)
            else:
                ledger.move(ticket, source)
        loads = ledger.loads(now)
        for busy, computed in ledger.computed(now).items():
            assert 0 <= computed <= loads[busy].prefill_tokens
    for ticket in tickets:
        ledger.release(ticket)
    assert ledger.computed(now + 1.0) == {}
    assert ledger.loads(now) == {}
