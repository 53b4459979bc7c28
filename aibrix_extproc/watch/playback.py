"""The station of recordings: their messages given to event sync again, at their own times.

Owns the order of the messages and the clock, which is the recording's. A recording that was read
by sockets gives the same rows here: what a replay port answered then is answered where the state
machine asks for it now, and what nobody recorded cannot be had. Silence means nothing here: time
passes only while a question is open.
"""

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.wire import BadFrames, ReplayEnd, parse_replay
from aibrix_extproc.settings import Settings
from aibrix_extproc.watch.recording import BadRecording, Reading, Record, files_of
from aibrix_extproc.watch.rows import View
from aibrix_extproc.watch.watched import Entry, Pace, Target, Watched, unique

_TICK_S: Final = 0.1
_PATIENCE_S: Final = 6.0
"""Of recorded silence that passes for an open question: longer than any is borne."""
_TURN_S: Final = 0.25
"""Of work between two looks of whoever shows it."""
_RECORDS_A_CHECK: Final = 64

_Key = tuple[int, str]
"""The recording, and a source's name in it."""


@dataclass(slots=True)
class _Source:
    """One source of the recordings, as the first reading found it."""

    target: Target
    blocks: list[int] = field(default_factory=list)
    """Where each of its recorded answers begins, those that are still to come."""
    _open: int | None = None

    def note_answer(self, record: Record) -> None:
        """The first reading: one message of an answer."""
        if self._open != record.asked:
            self.blocks.append(record.asked or 0)
        self._open = None if record.ends_answer else record.asked

    def answer_played(self, record: Record) -> None:
        """The second: an answer that ended, or was given up for the next, is not to come."""
        if self._open is not None and self._open != record.asked:
            self.blocks.pop(0)
        self._open = record.asked
        if record.ends_answer:
            self.blocks.pop(0)
            self._open = None


class _Line:
    """Takes the place of the sockets: notes what is asked."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self.asked: tuple[int, int] | None = None
        """Number and start of the question that waits."""

    def ask(self, ask: int, start: int) -> None:
        self.asked = (ask, start)

    def cancel(self, ask: int) -> None:
        self.asked = None

    def reconnect(self) -> None:
        """A recording has one connection."""

    @property
    def hopeless(self) -> bool:
        """A question waits, and no answer to it was recorded."""
        if self.asked is None:
            return False
        _, start = self.asked
        return not any(began <= start for began in self._source.blocks)


class Playback:
    """Plays recordings. Used by one thread."""

    def __init__(
        self,
        paths: Sequence[Path],
        settings: Settings,
        *,
        speed: float = 0.0,
        with_tokens: bool = False,
        log_lines: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`speed`: recorded seconds per second; 0: as fast as can be. Raises BadRecording."""
        self._files = [files_of(path) for path in paths]
        self._speed = speed
        self._log_lines = log_lines
        self._pace = Pace()
        self._readings: list[Reading] = []
        self._sources: dict[_Key, _Source] = {}
        self._live_names: dict[tuple[int, str | None], list[str]] = {}
        self._find_sources()
        self._watched = Watched(settings, lambda now: now, with_tokens=with_tokens)
        self._entries: dict[_Key, tuple[Entry, _Line]] = {}
        self._add_entries()
        self._records = self._merged()
        self._next = next(self._records, None)
        self._began_t = self.now = self._next[1].t if self._next else 0.0
        self._began: float | None = None

    # -- the station --------------------------------------------------------------------------

    def start(self) -> None:
        """The clock runs."""
        self._began = time.monotonic()

    def view(self) -> View:
        """Plays what is due, for a quarter of a second at most."""
        self._play(time.monotonic() + _TURN_S)
        if self._pace.due():
            began = time.monotonic()
            self._watched.look()
            self._pace.took(time.monotonic() - began)
        return self._view()

    def settled(self) -> bool:
        """A recording is looked at when it is at its end."""
        return self._next is None

    def final(self) -> View:
        """What is known now; the rest is not played."""
        self._watched.look()
        return self._view()

    def close(self) -> None:
        """Nothing is open."""

    def _view(self) -> View:
        notes = tuple(reading.said for reading in self._readings if reading.said)
        return View(
            rows=tuple(row for row in self._watched.rows(self.now) if row.messages or row.replayed),
            now=self.now,
            elapsed_s=self.now - self._began_t,
            holdings=self._watched.holdings,
            notes=notes,
            log=self._log_lines(),
            ended=self._next is None,
        )

    # -- the first reading --------------------------------------------------------------------

    def _find_sources(self) -> None:
        """Who is in the recordings, and which answers. No frames are kept."""
        answers: list[tuple[int, Record]] = []
        for number, record in self._read_all():
            if record.asked is None:
                self._live_source(number, record)
            else:
                end = (b"", *record.frames[-2:-1]) if record.ends_answer else ()
                answers.append((number, replace(record, frames=(*end, b""))))
        for number, record in answers:
            self._note_answer(number, record)
        if not self._sources:
            raise BadRecording("the recording holds no message")

    def _read_all(self) -> Iterator[tuple[int, Record]]:
        for number, files in enumerate(self._files):
            for path in (*files.live, *files.answers):
                for record in Reading(path):
                    yield number, record

    def _live_source(self, number: int, record: Record) -> None:
        names = self._live_names.setdefault((number, record.version), [])
        if record.source not in names:
            names.append(record.source)
            self._add_source(number, record.source)

    def _add_source(self, number: int, name: str) -> None:
        files = self._files[number]
        file = (files.live or files.answers)[-1]
        of_folder = file.name.startswith(("frames.", "replay."))
        recording = file.absolute().parent.name if of_folder else file.stem
        shown = name if len(self._files) == 1 else f"{recording} {name}"
        self._sources.setdefault((number, name), _Source(Target(shown, Rank(0, "recording"))))

    def _note_answer(self, number: int, record: Record) -> None:
        key = self._answerer(number, record)
        if key is not None:
            self._sources[key].note_answer(record)
        elif not record.ends_answer:
            self._add_source(number, record.source)

    def _answerer(self, number: int, record: Record) -> _Key | None:
        """Whose answer it is; None where it stands for itself, as a stream."""
        names = self._live_names.get((number, record.version), [])
        if record.of is not None:
            return (number, record.of) if record.of in names else None
        return (number, names[0]) if len(names) == 1 else None

    def _add_entries(self) -> None:
        keys = list(self._sources)
        targets = unique([self._sources[key].target for key in keys])
        for key, target in zip(keys, targets, strict=True):
            source = self._sources[key]
            rank = Rank(0, "recording", "recording" if source.blocks else None)
            entry = self._watched.add(replace(target, rank=rank))
            self._entries[key] = (entry, _Line(source))

    # -- playing ------------------------------------------------------------------------------

    def _merged(self) -> Iterator[tuple[int, Record]]:
        """All records by their times; those of one file in their order."""
        streams = [
            self._stream(number, paths)
            for number, files in enumerate(self._files)
            for paths in (files.live, files.answers)
        ]
        return heapq.merge(*streams, key=lambda item: item[1].t)

    def _stream(self, number: int, paths: Sequence[Path]) -> Iterator[tuple[int, Record]]:
        for path in paths:
            reading = Reading(path)
            self._readings.append(reading)
            for record in reading:
                yield number, record

    def _play(self, until: float) -> None:
        """Give what is due, up to this time of the monotonic clock."""
        played = 0
        while self._next is not None:
            number, record = self._next
            if self._speed and record.t > self._due_t():
                self._pass(self._due_t())
                return
            self._pass(record.t)
            self._give(number, record)
            self._next = next(self._records, None)
            played += 1
            if played % _RECORDS_A_CHECK == 0 and time.monotonic() >= until:
                return

    def _due_t(self) -> float:
        began = self._began if self._began is not None else time.monotonic()
        return self._began_t + (time.monotonic() - began) * self._speed

    def _pass(self, t: float) -> None:
        """Let the recording's time pass, for those that wait for an answer."""
        before, self.now = self.now, max(self.now, t)
        if self.now - before < _TICK_S:
            return
        steps = int(min(self.now - before, _PATIENCE_S) / _TICK_S)
        for entry, line in self._entries.values():
            for step in range(1, steps + 1):
                if entry.feed.sync.state is not SourceState.SYNCING:
                    break
                entry.feed.tick(line, before + step * _TICK_S)
                self._refuse(entry, line)

    def _give(self, number: int, record: Record) -> None:
        key = (number, record.source) if record.asked is None else self._answerer(number, record)
        if key is None:
            if not record.ends_answer:
                self._give_as_stream(self._entries[number, record.source], record)
        elif record.asked is None:
            self._give_live(self._entries[key], record.frames)
        else:
            self._give_answer(key, record)

    def _give_live(self, taker: tuple[Entry, _Line], frames: Sequence[bytes]) -> None:
        entry, line = taker
        self._connect(entry, line)
        entry.tally.message(frames, self.now)
        entry.feed.live(line, frames, self.now)
        self._refuse(entry, line)

    def _give_as_stream(self, taker: tuple[Entry, _Line], record: Record) -> None:
        """An answer of which no live stream was recorded: its batches are one."""
        try:
            parse_replay(record.frames)
        except BadFrames:
            self._give_live(taker, record.frames)
        else:
            self._give_live(taker, (b"", *record.frames[-2:]))

    def _give_answer(self, key: _Key, record: Record) -> None:
        entry, line = self._entries[key]
        self._connect(entry, line)
        start = record.asked or 0
        entry.tally.answer(start, record.frames, self.now)
        try:
            reply = parse_replay(record.frames)
        except BadFrames as error:
            entry.feed.bad_frames(error.reason)
            return
        if line.asked is not None and start <= line.asked[1]:
            ask, asked_start = line.asked
            if isinstance(reply, ReplayEnd):
                line.asked = None
                entry.feed.replay_ended(line, ask, self.now)
            elif reply.sequence >= asked_start:
                entry.feed.replayed(line, ask, reply.sequence, reply.payload, self.now)
        self._sources[key].answer_played(record)
        self._refuse(entry, line)

    def _connect(self, entry: Entry, line: _Line) -> None:
        """What was received shows that the connection stood."""
        if entry.feed.sync.state is SourceState.CONNECTING:
            entry.feed.connected(line, self.now)
            self._refuse(entry, line)

    def _refuse(self, entry: Entry, line: _Line) -> None:
        """Answer what cannot be answered."""
        while line.hopeless and line.asked is not None:
            ask, line.asked = line.asked[0], None
            entry.feed.replay_failed(line, ask, port_closed=False, now=self.now)
