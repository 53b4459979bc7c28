"""Messages of an event stream or a replay, summed up. Pure.

begin a prompt. The payload is decoded as the index does it.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from aibrix_extproc.doctor.facts import Batches, StoredSeen
from aibrix_extproc.index.events import BlockStored, Unreadable, decode_batch
from aibrix_extproc.kvevents.wire import BadFrame, BadFrames, ReplayBatch, parse_live

_KEPT = 2_000
"""Of payload digests and of prompts' first blocks: the last ones."""


class Summary:
    """Takes batches one by one; `done` gives the sum."""

    def __init__(self) -> None:
        self._sequences: list[int] = []
        self._block_sizes: set[int] = set()
        self._unreadable: Counter[str] = Counter()
        self._bad_frames: Counter[str] = Counter()
        self._roots: list[StoredSeen] = []
        self._payloads: dict[int, bytes] = {}

    def live(self, frames: Sequence[bytes]) -> None:
        """A message of the event port."""
        try:
            batch = parse_live(frames)
        except BadFrames as error:
            self.bad(error.reason)
            return
        self._batch(batch.sequence, batch.payload)

    def replayed(self, batch: ReplayBatch) -> None:
        """A reply of the replay port."""
        self._batch(batch.sequence, batch.payload)

    def bad(self, reason: BadFrame) -> None:
        """A message that is no batch."""
        self._bad_frames[str(reason)] += 1

    def __len__(self) -> int:
        return len(self._sequences)

    def _batch(self, sequence: int, payload: bytes) -> None:
        self._sequences.append(sequence)
        self._payloads[sequence] = hashlib.blake2b(payload, digest_size=8).digest()
        if len(self._payloads) > _KEPT:
            del self._payloads[next(iter(self._payloads))]
        for event in decode_batch(payload).events:
            if isinstance(event, Unreadable):
                self._unreadable[event.reason] += 1
            elif isinstance(event, BlockStored):
                self._stored(event)

    def _stored(self, event: BlockStored) -> None:
        self._block_sizes.add(event.block_size)
        if event.parent_block_hash is None:
            self._roots.append(StoredSeen(tuple(event.token_ids), event.block_size))
            del self._roots[:-_KEPT]

    def done(self) -> Batches:
        """What came, so far."""
        return Batches(
            count=len(self._sequences),
            first_sequence=self._sequences[0] if self._sequences else None,
            last_sequence=self._sequences[-1] if self._sequences else None,
            fell=next((p for p in itertools.pairwise(self._sequences) if p[1] < p[0]), None),
            block_sizes=frozenset(self._block_sizes),
            unreadable=dict(self._unreadable),
            bad_frames=dict(self._bad_frames),
            roots=tuple(self._roots),
            payloads=dict(self._payloads),
        )


def summed_up(messages: Iterable[Sequence[bytes]]) -> Batches:
    """Messages of an event port."""
    summary = Summary()
    for frames in messages:
        summary.live(frames)
    return summary.done()
