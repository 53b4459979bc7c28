"""The station of a running server: its sources as it sees them, read from its debug port.

Owns the calls, on a thread of their own, and the translation into rows. Opens no ZMQ socket: what
the server does not tell (which numbers are missing, bytes) is not known here. Who holds what is
read from the server's snapshot, and only where that was asked for: it costs the server a copy of
its index.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx
import msgspec

from aibrix_extproc.errors import ExtprocError
from aibrix_extproc.index.saved import decode
from aibrix_extproc.snapshot import peer
from aibrix_extproc.snapshot.format import RecordHead, SnapshotRefused
from aibrix_extproc.watch.holdings import Held, Holdings, held_by, holdings
from aibrix_extproc.watch.rates import Rates
from aibrix_extproc.watch.rows import Row, View
from aibrix_extproc.watch.watched import Pace
from aibrix_extproc.watch.words import readable

TIMEOUT_S: Final = 3.0
LOOK_S: Final = 10.0
"""Between two snapshots, at least."""
OFF: Final = "off"

T = TypeVar("T")


class ServerUnreadable(ExtprocError):
    """The debug port cannot be read; the message says why, and what to check."""


class _Source(msgspec.Struct, frozen=True):
    """One entry of `/debug/sources`, as far as it is shown."""

    pod: str
    rank: int
    model: str
    state: str | None
    stale: bool
    sequence: int | None
    lag_s: float | None
    placements: int
    event_endpoint: str | None
    pending_bytes: int
    full: bool

    def __post_init__(self) -> None:
        numbers = (self.rank, self.sequence or 0, self.placements, self.pending_bytes)
        if not all(0 <= number < 2**64 for number in numbers):
            raise ValueError("a number is below 0, or has more than 64 bits")

    @property
    def name(self) -> str:
        return _shown(self.pod, self.rank)


_sources_of: Final = msgspec.json.Decoder(list[_Source]).decode
_UNREADABLE: Final = (msgspec.DecodeError, RecursionError, ValueError)


@dataclass(frozen=True, slots=True)
class _Pages:
    """What the server said at one moment."""

    sources: Sequence[_Source]
    notes: tuple[str, ...]


class Server:
    """Watches a server. `start` and `close` come from one thread."""

    def __init__(
        self,
        url: str,
        *,
        interval_s: float = 1.0,
        with_holdings: bool = False,
        log_lines: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`url`: of the debug port."""
        self._url = url
        self._interval_s = interval_s
        self._with_holdings = with_holdings
        self._log_lines = log_lines
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S, follow_redirects=False)
        self._pages: _Pages | None = None
        self._failed: str | None = None
        self._holdings: Holdings | None = None
        self._rates: dict[str, tuple[int, Rates]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watch-server", daemon=True)
        self._began = time.monotonic()

    def start(self) -> None:
        """Read the pages once, then again and again. Raises ServerUnreadable."""
        self._began = time.monotonic()
        self._take(self._read())
        self._thread.start()

    def view(self) -> View:
        with self._lock:
            pages, failed = self._pages, self._failed
            now = time.monotonic()
            rows = tuple(self._row(source, now) for source in pages.sources) if pages else ()
        return View(
            rows=rows,
            now=time.time(),
            elapsed_s=now - self._began,
            holdings=self._holdings,
            notes=pages.notes if pages else (),
            failures=(failed,) if failed else (),
            log=self._log_lines(),
        )

    def settled(self) -> bool:
        return self._pages is not None

    def final(self) -> View:
        if self._with_holdings and self._holdings is None:
            self._look()
        return self.view()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()

    # -- reading ------------------------------------------------------------------------------

    def _poll(self) -> None:
        pace = Pace(LOOK_S)
        while not self._closing.wait(self._interval_s):
            try:
                self._take(self._read())
            except ServerUnreadable as error:
                with self._lock:
                    self._failed = str(error)
                continue
            if self._with_holdings and pace.due():
                began = time.monotonic()
                self._look()
                pace.took(time.monotonic() - began)

    def _read(self) -> _Pages:
        sources = self._get("/debug/sources", _sources_of)
        warnings = self._get("/debug/agreement", lambda body: _warnings(json.loads(body)))
        moved = self._get("/debug/levers", lambda body: _moved(json.loads(body)))
        return _Pages(sources, (*warnings, *moved))

    def _get(self, path: str, read: Callable[[bytes], T]) -> T:
        try:
            reply = self._client.get(path)
            if reply.status_code != 200:
                raise ServerUnreadable(
                    f"{self._url}{path} answered {reply.status_code}: is it the debug port "
                    "(AIBRIX_EXTPROC_DEBUG_ADDRESS, 8081)?"
                )
            return read(reply.content)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise ServerUnreadable(f"{self._url}{path} cannot be read: {why}") from None
        except _UNREADABLE as error:
            raise ServerUnreadable(
                f"{self._url}{path}: the answer has another shape: {readable(str(error))}"
            ) from None

    def _take(self, pages: _Pages) -> None:
        now = time.monotonic()
        with self._lock:
            for source in pages.sources:
                self._count(source, now)
            for gone in self._rates.keys() - {source.name for source in pages.sources}:
                del self._rates[gone]
            self._pages, self._failed = pages, None

    def _count(self, source: _Source, now: float) -> None:
        """Batches since the last reading: the numbers of one process grow by one each."""
        name, sequence = source.name, source.sequence
        if sequence is None:
            return
        before, rates = self._rates.get(name, (sequence, Rates(1)))
        rates.add(0, max(0, sequence - before), now)
        self._rates[name] = (sequence, rates)

    def _look(self) -> None:
        try:
            held = asyncio.run(self._fetch())
        except (SnapshotRefused, ValueError, OSError) as error:
            with self._lock:
                self._failed = f"{self._url}{peer.PAGE}: {error}"
        else:
            self._holdings = holdings(held)

    async def _fetch(self) -> list[Held]:
        file = await peer.fetch(self._url, None, peer.UNLIMITED_BYTES)
        try:
            return [
                held_by(_head_name(one.head), one.head.model, decode(file.export(one)))
                for one in file.contents.records
            ]
        finally:
            file.close()

    def _row(self, source: _Source, now: float) -> Row:
        name = source.name
        rates = self._rates.get(name)
        orphans = self._holdings.orphans.get(name) if self._holdings else None
        return Row(
            name=name,
            state=readable(source.state or OFF),
            stale=source.stale,
            endpoint=source.event_endpoint,
            model=readable(source.model),
            sequence=source.sequence,
            orphans=orphans,
            lag_s=source.lag_s,
            batches_per_s=rates[1].per_s(now)[0] if rates else None,
            held=source.placements,
            waiting_bytes=source.pending_bytes,
            full=source.full,
        )


def _head_name(head: RecordHead) -> str:
    return _shown(head.pod, head.rank)


def _shown(pod: str, rank: int) -> str:
    name = readable(pod.removeprefix("default/"))
    return f"{name}#{rank}" if rank else name


def _warnings(page: Any) -> list[str]:
    """What `/debug/agreement` warns of, a line each."""
    models = page.get("models", {}) if isinstance(page, dict) else {}
    lines = []
    for model, said in models.items() if isinstance(models, dict) else ():
        warnings = said.get("warnings") if isinstance(said, dict) else None
        lines += [f"{readable(model)}: {_warning(warning)}" for warning in _listed(warnings)]
    return lines


def _warning(said: Any) -> str:
    if not isinstance(said, dict):
        return readable(str(said))
    pods = ", ".join(map(str, _listed(said.get("pods"))))
    likely = [str(cause) for cause in _listed(said.get("likely_causes"))][:1]
    return readable(": ".join([f"{said.get('kind')} ({pods})", *likely]))


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _moved(page: Any) -> list[str]:
    """Levers that are not at their default."""
    levers = page.get("levers", {}) if isinstance(page, dict) else {}
    return [
        readable(f"lever {name} is {said.get('now')} (default {said.get('default')})")
        for name, said in (levers.items() if isinstance(levers, dict) else ())
        if isinstance(said, dict) and said.get("at_default") is False
    ]
