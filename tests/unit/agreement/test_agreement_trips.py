"""Who served is compared with who was chosen, and load and predictions follow."""

from array import array
from collections.abc import Iterable

import pytest

from aibrix_extproc.agreement.trips import Picks, Promised, Served, Trip
from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.types import Candidate, Load

KEYS = array("Q", [11, 12, 13, 14])
TTL_S = 2.0


def pod(number: int, ranks: int = 1) -> Pod:
    address = f"10.0.0.{number}:8000"
    return Pod("d", f"p{number}", "u", address, "tiny", ranks=tuple(map(Rank, range(ranks))))


class World:
    """Pods 1 and 2 with sources 1 and 2; what a decision for pod 1 has booked."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.ledger = Ledger(600.0)
        self.predictions = Predictions(1000)
        self.pods = [pod(1), pod(2)]
        self.picks = Picks(self.metrics, lambda: self.pods, self, self.ledger, self.predictions)

    def candidates(self, pods: Iterable[Pod]) -> tuple[Candidate, ...]:
        return tuple(Candidate(int(one.name[1:]), one) for one in pods)

    def sends_events(self, source: int) -> bool:
        return True

    def trip(self, start: int = 0) -> Trip:
        self.predictions.promise(1, KEYS, TTL_S, 0.0)
        return Trip(
            ticket=self.ledger.reserve(1, 100, 0.0),
            request_id="r",
            name="tiny",
            model="tiny",
            pod=self.pods[0],
            source=1,
            prompt_tokens=100,
            matched_tokens=0,
            promised=Promised(KEYS, start, TTL_S, TTL_S),
        )

    def count(self, result: Served) -> float:
        labels = {"result": result.value}
        return self.metrics.registry.get_sample_value("aibrix_extproc_picks_total", labels) or 0.0

    def depth(self, source: int) -> int:
        return self.predictions.depth(source, KEYS, 0.5)


@pytest.fixture
def world() -> World:
    return World()


def test_a_pick_that_was_honoured_changes_nothing(world: World) -> None:
    trip = world.trip()
    assert world.picks.served(trip, "10.0.0.1:8000", True, 0.5) is Served.HONOURED
    assert world.ledger.loads(0.5) == {1: Load(1, 100, 0)}
    assert (world.depth(1), world.depth(2)) == (4, 0)
    assert world.count(Served.HONOURED) == 1


def test_load_and_predictions_move_to_the_pod_that_serves(world: World) -> None:
    trip = world.trip()
    assert world.picks.served(trip, "10.0.0.2:8000", True, 0.5) is Served.OTHER
    assert world.ledger.loads(0.5) == {2: Load(1, 100, 0)}
    assert (world.depth(1), world.depth(2)) == (0, 4)
    assert (trip.source, trip.pod, trip.chosen) == (2, world.pods[1], world.pods[0])
    assert world.count(Served.OTHER) == 1


def test_what_the_chosen_pod_held_before_stays_there(world: World) -> None:
    world.picks.served(world.trip(start=3), "10.0.0.2:8000", True, 0.5)
    assert (world.depth(1), world.depth(2)) == (3, 4)


def test_a_host_that_is_no_pod_takes_the_load_out_of_the_ledger(world: World) -> None:
    trip = world.trip()
    assert world.picks.served(trip, "10.9.9.9:8000", True, 0.5) is Served.STRANGER
    assert world.ledger.loads(0.5) == {}
    assert world.depth(1) == 0
    world.ledger.release(trip.ticket)
    assert len(world.ledger) == 0


def test_without_a_word_of_envoy_the_pick_counts_as_it_was(world: World) -> None:
    assert world.picks.served(world.trip(), None, True, 0.5) is Served.UNKNOWN
    assert world.ledger.loads(0.5) == {1: Load(1, 100, 0)}
    assert world.depth(1) == 4


def test_that_envoy_says_nothing_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for _ in range(10):
        world.picks.served(world.trip(), None, True, 0.5)
    assert caplog.text.count("response_attributes") == 1
    world.picks.served(world.trip(), "10.0.0.1:8000", True, 0.5)
    assert caplog.text.count("the host that served: not told → ok") == 1


def test_answers_of_envoy_itself_are_no_sign_of_its_configuration(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for _ in range(10):
        world.picks.served(world.trip(), None, False, 0.5)
    assert "response_attributes" not in caplog.text
