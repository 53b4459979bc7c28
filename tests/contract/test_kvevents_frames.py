"""The frames of 30 vLLM publishers, as they were recorded: live and replayed ones agree."""

from collections import defaultdict

import pytest

from aibrix_extproc.kvevents.effects import Apply, AskReplay, Effects, SourceState
from aibrix_extproc.kvevents.source import SourceSync, SyncLimits
from aibrix_extproc.kvevents.wire import Batch, ReplayBatch, ReplayEnd, parse_live, parse_replay
from tests.recordings import recorded

Frames = list[bytes]


def _recorded() -> dict[str, dict[str, list[Frames]]]:
    """Version → `live` and `replay` → messages, in order."""
    found: dict[str, dict[str, list[Frames]]] = defaultdict(lambda: defaultdict(list))
    for line in recorded("publisher_matrix"):
        source = "live" if line["src"] == "live" else "replay"
        found[line["vllm"]][source].append([bytes.fromhex(f) for f in line["frames_hex"]])
    return found


RECORDED = _recorded()


def test_every_recorded_version_is_there() -> None:
    assert len(RECORDED) == 30


@pytest.mark.parametrize("version", RECORDED)
def test_replayed_batches_are_the_live_ones_again_and_end_with_the_marker(version: str) -> None:
    live: dict[int, Batch] = {b.sequence: b for b in map(parse_live, RECORDED[version]["live"])}
    *replies, end = map(parse_replay, RECORDED[version]["replay"])
    assert sorted(live) == [0, 1, 2, 3, 4, 5, 7], "6 was burnt"
    assert end == ReplayEnd()
    assert replies == [ReplayBatch(n, live[n].payload) for n in (3, 4, 5, 7)]


class _Followed:
    """A source whose index only notes the numbers of the batches it was given."""

    def __init__(self) -> None:
        limits = SyncLimits(
            queue_bytes=100_000, idle_probe_s=10.0, stale_after_s=120.0, lost_after_s=60.0
        )
        self.sync = SourceSync(limits, has_replay=True, now=0.0)
        self.applied: list[int] = []
        self.question = AskReplay(0, 0)

    def run(self, effects: Effects) -> None:
        while effects:
            for effect in effects:
                if isinstance(effect, AskReplay):
                    self.question = effect
            if not isinstance(effects[-1], Apply):
                return
            self.applied.append(effects[-1].sequence)
            effects = self.sync.applied(cleared=False, loss=None, now=0.0)


@pytest.mark.parametrize("version", RECORDED)
def test_the_burnt_number_leaves_the_source_partial_with_what_follows(version: str) -> None:
    source = _Followed()
    sync = source.sync
    source.run(sync.connected(0.0))
    source.run(sync.replay_ended(source.question.ask, 0.0))
    for batch in map(parse_live, RECORDED[version]["live"]):
        source.run(sync.live(batch.sequence, batch.payload, 0.0))
    assert (source.applied, sync.state) == ([0, 1, 2, 3, 4, 5], SourceState.SYNCING)
    assert source.question.start == 5
    for reply in map(parse_replay, RECORDED[version]["replay"]):
        if isinstance(reply, ReplayBatch):
            source.run(sync.replayed(source.question.ask, reply.sequence, reply.payload, 0.0))
        else:
            source.run(sync.replay_ended(source.question.ask, 0.0))
    assert (source.applied, sync.state) == ([0, 1, 2, 3, 4, 5, 7], SourceState.PARTIAL)
