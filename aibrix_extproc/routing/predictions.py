"""What was just sent to a source counts as held there for a short time.

Owns an expiring map of block keys by source. It knows no token, no event and no clock: keys are
made by the index's `block_keys`, `now` is seconds of a clock that does not go back.

Shape: one ordered map for each time to live (an operator sets two), from (stream, block key) to
expiry, the oldest promise first and within a promise the deepest block first. A stream is one
life of a source here: `drop` ends it, and what it held can be found no more and ages out. Three
things follow from keys being chained and from each promise beginning at block 0, or where what is
known to be held ends:

- if a block is alive, so is every block before it that was not known to be held, whatever has
  expired or was pushed out, so a depth is found by bisection: 11 look-ups for 2,000 blocks, not
  2,000. An engine that evicts a block in the few seconds of a promise that rests on it makes the
  answer a guess, as it makes the promise itself one;
- renewing moves entries and adds none, so the bound is on distinct blocks;
- what has expired stands at the front, so that expiry never scans.
"""

import itertools
import threading
from array import array
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

_KEY_BITS = 64
_EXPIRED_AT_LEAST = 64
"""Expired entries taken away by one promise, at least: more than it adds, yet no long stall."""


@dataclass(slots=True)
class _Queue:
    ttl_s: float
    expiries: OrderedDict[int, float] = field(default_factory=OrderedDict)
    """stream << 64 | block key → expiry: one int is smaller and faster than a pair."""

    def oldest_promise_s(self) -> float:
        return next(iter(self.expiries.values())) - self.ttl_s


@dataclass(frozen=True, slots=True)
class _Stream:
    prefix: int
    queue: _Queue


class Predictions:
    """Promised blocks of every source. `drop` may be called from any thread, the rest from one."""

    def __init__(self, max_blocks: int) -> None:
        """`max_blocks`: entries held at once; above it the oldest promises go. 0: none is kept."""
        self._max_blocks = max_blocks
        self._queues: dict[float, _Queue] = {}
        self._streams: dict[int, _Stream] = {}
        self._streams_lock = threading.Lock()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        """Entries in memory: those alive, and those expired or dropped that still wait to go."""
        return sum(len(queue.expiries) for queue in self._queues.values())

    def promise(
        self, source: int, keys: "array[int]", ttl_s: float, now: float, held: int = 0
    ) -> int:
        """The source will hold these leading blocks, the first being block 0 of a prompt.

        The first `held` it is known to hold: of them nothing is noted, since what is known of
        them changes with its events alone. The others count until `now + ttl_s`; those promised
        before are renewed. A source has one time to live: a promise with another one drops what
        it had. Returns how many entries that were still alive had to go because of the bound.
        """
        if ttl_s <= 0 or len(keys) <= held or not self._max_blocks:
            return 0
        stream = self._stream(source, ttl_s)
        entries = stream.queue.expiries
        expiry, prefix = now + ttl_s, stream.prefix
        kept = keys[held : held + self._max_blocks]
        self._take_expired(2 * len(kept) + _EXPIRED_AT_LEAST, now)
        move_to_end = entries.move_to_end
        for key in reversed(kept):
            entry = prefix | key
            entries[entry] = expiry
            move_to_end(entry)
        return self._push_out(now)

    def withdraw(self, source: int, keys: "array[int]", expiry: float) -> int:
        """Take back a promise of these blocks that was made to last until `expiry`.

        What another promise has renewed since stays, and so does every block before it: a
        promise renews all of its own from block 0 on. Returns how many went.
        """
        stream = self._streams.get(source)
        if stream is None:
            return 0
        entries, prefix, gone = stream.queue.expiries, stream.prefix, 0
        for key in reversed(keys):
            if entries.get(prefix | key) != expiry:
                break
            del entries[prefix | key]
            gone += 1
        return gone

    def depth(self, source: int, keys: "array[int]", now: float, start: int = 0) -> int:
        """How many leading blocks the source holds, given that it holds the first `start`.

        That is `start` and the run of predicted blocks from index `start` on.
        """
        stream = self._streams.get(source)
        return start if stream is None else _depth(stream, keys, now, start)

    def depths(
        self, keys: "array[int]", starts: Mapping[int, int] | None, now: float
    ) -> dict[int, int]:
        """`depth` of every source that has a prediction beyond its start (0 where not given).

        Sources of other models may be among them; the caller asks for its own candidates.
        """
        with self._streams_lock:
            streams = list(self._streams.items())
        found = {}
        for source, stream in streams:
            start = starts.get(source, 0) if starts else 0
            depth = _depth(stream, keys, now, start)
            if depth > start:
                found[source] = depth
        return found

    def lasts_until(self, source: int, key: int) -> float:
        """When the last promise of this block ends; 0 where none was made."""
        stream = self._streams.get(source)
        return 0.0 if stream is None else stream.queue.expiries.get(stream.prefix | key, 0.0)

    def drop(self, source: int) -> None:
        """Forget every promise of a source that was cleared or removed. Safe from any thread."""
        with self._streams_lock:
            self._streams.pop(source, None)

    def _stream(self, source: int, ttl_s: float) -> _Stream:
        with self._streams_lock:
            stream = self._streams.get(source)
            if stream is None or stream.queue.ttl_s != ttl_s:
                queue = self._queues.setdefault(ttl_s, _Queue(ttl_s))
                stream = _Stream(next(self._numbers) << _KEY_BITS, queue)
                self._streams[source] = stream
            return stream

    def _take_expired(self, at_most: int, now: float) -> None:
        for queue in self._queues.values():
            entries = queue.expiries
            for _ in range(at_most):
                if not entries or next(iter(entries.values())) > now:
                    break
                entries.popitem(last=False)

    def _push_out(self, now: float) -> int:
        excess, alive = len(self) - self._max_blocks, 0
        while excess > 0:
            filled = (queue for queue in self._queues.values() if queue.expiries)
            oldest, *others = sorted(filled, key=_Queue.oldest_promise_s)
            next_s = others[0].oldest_promise_s() if others else float("inf")
            while excess > 0 and oldest.expiries and oldest.oldest_promise_s() <= next_s:
                alive += oldest.expiries.popitem(last=False)[1] > now
                excess -= 1
        return alive


def _depth(stream: _Stream, keys: "array[int]", now: float, start: int) -> int:
    """The largest depth whose last block is alive: alive blocks come before all others."""
    find, prefix = stream.queue.expiries.get, stream.prefix
    low, high = start, len(keys)
    if low >= high or find(prefix | keys[low], now) <= now:
        return start  # by far the most frequent answer: one look-up
    low += 1
    while low < high:
        middle = (low + high) // 2
        if find(prefix | keys[middle], now) > now:
            low = middle + 1
        else:
            high = middle
    return low
