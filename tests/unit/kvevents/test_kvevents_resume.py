"""A source that begins with what an earlier process held of it."""

import pytest

from aibrix_extproc.kvevents.checkpoint import Checkpoint, digest_of
from aibrix_extproc.kvevents.effects import ClearReason, SourceState
from tests.unit.kvevents.engine_model import Driver, batch

CONNECTING, SYNCING = SourceState.CONNECTING, SourceState.SYNCING
EXACT, PARTIAL, LOST = SourceState.EXACT, SourceState.PARTIAL, SourceState.LOST


def resumed(upto: int = 5, *, complete: bool = True, has_replay: bool = True) -> Driver:
    """A source whose batches 0 to `upto` of process 1 were applied before this process began."""
    driver = Driver(has_replay=has_replay)
    driver.held = [batch(number) for number in range(upto + 1)]
    driver.sync.resume(Checkpoint(upto, digest_of(batch(upto)), complete))
    return driver


def test_nothing_is_believed_before_contact() -> None:
    driver = resumed()
    assert (driver.state, driver.sync.usable, driver.sync.sequence) == (CONNECTING, False, 5)


def test_the_replay_goes_on_from_the_saved_number_and_proves_the_process() -> None:
    driver = resumed()
    driver.connected()
    assert (driver.state, driver.sync.usable, driver.questions) == (SYNCING, False, [5])
    driver.replayed(5, 6, 7)
    driver.replay_ended()
    assert (driver.state, driver.held_numbers) == (EXACT, list(range(8)))
    assert driver.clears == []


def test_what_was_partial_when_it_was_saved_is_partial_again() -> None:
    driver = resumed(complete=False)
    driver.connected()
    driver.replayed(5)
    driver.replay_ended()
    assert (driver.state, driver.held_numbers) == (PARTIAL, list(range(6)))


def test_live_batches_wait_for_the_proof() -> None:
    driver = resumed()
    driver.connected()
    driver.live(6, 7)
    assert driver.held_numbers == list(range(6))
    driver.replayed(5)
    assert driver.held_numbers == list(range(8))


def test_another_process_with_as_many_batches_starts_clean() -> None:
    driver = resumed()
    driver.connected()
    driver.replayed(5, process=2)
    assert (driver.held, driver.clears) == ([], [ClearReason.RESTART])
    assert driver.questions == [5, 0]
    driver.replayed(0, 1, process=2)
    driver.replay_ended()
    assert (driver.state, driver.held) == (EXACT, [batch(0, 2), batch(1, 2)])


def test_another_process_that_has_not_come_so_far_starts_clean() -> None:
    driver = resumed()
    driver.connected()
    driver.replay_ended()
    assert (driver.held, driver.questions) == ([], [5, 0])
    driver.replay_ended()
    assert driver.state is EXACT


def test_a_buffer_that_has_gone_past_the_saved_number_starts_clean() -> None:
    driver = resumed()
    driver.connected()
    driver.replayed(9, 10)
    driver.replay_ended()
    assert (driver.state, driver.held_numbers) == (PARTIAL, [9, 10])
    assert driver.clears == [ClearReason.UNPROVEN]


def test_without_an_answer_it_starts_clean() -> None:
    driver = resumed()
    driver.connected()
    driver.replay_failed()
    assert (driver.state, driver.held, driver.clears) == (PARTIAL, [], [ClearReason.UNPROVEN])


def test_without_a_replay_port_it_starts_clean() -> None:
    driver = resumed(has_replay=False)
    driver.connected()
    assert (driver.state, driver.held, driver.clears) == (PARTIAL, [], [ClearReason.UNPROVEN])


def test_an_engine_that_never_comes_is_lost_and_cleared() -> None:
    driver = resumed()
    driver.after(60)
    assert (driver.state, driver.held, driver.clears) == (LOST, [], [ClearReason.LOST])


def test_a_source_that_had_contact_cannot_be_resumed() -> None:
    driver = Driver()
    driver.connected()
    with pytest.raises(ValueError, match="before its first contact"):
        driver.sync.resume(Checkpoint(0, digest_of(batch(0)), complete=True))


@pytest.mark.parametrize(("sequence", "digest"), [(-1, bytes(16)), (2**64, bytes(16)), (0, b"x")])
def test_a_checkpoint_that_cannot_be_is_refused(sequence: int, digest: bytes) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        Checkpoint(sequence, digest, complete=True)
