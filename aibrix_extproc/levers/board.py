"""The levers: what each does, its default, and the record of who moved what.

One lever is moved at a time. Every move is a line of the log (`logs.AUDIT`, written at every log
level), a count, and an entry of a short history. Lives on the event loop.
"""

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from aibrix_extproc import logs
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import ExtprocError, printable
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.setting_server import LogLevel
from aibrix_extproc.settings import Settings

log = logging.getLogger(logs.AUDIT)

HISTORY_MOVES: Final = 100
"""Moves that are remembered; the log has all."""


class Lever(StrEnum):
    """The levers, by their names in paths, metrics and the log."""

    EVENT_SYNC = "event-sync"
    SHADOW = "shadow"
    POD_OUT = "pod-out"
    RESYNC = "resync"
    LOG_LEVEL = "log-level"
    OVERLOAD = "overload"


class LeverRefused(ExtprocError):
    """The lever cannot be moved so; the message says why and what to do."""

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        """`unknown`: it names something that does not exist."""
        super().__init__(message)
        self.message = message
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Pull:
    """One move of a lever."""

    at: str
    """UTC, ISO 8601."""
    who: str
    """Address of the one who asked."""
    lever: Lever
    what: str
    """The pod or source it was about; empty for a lever of the whole process."""
    before: str
    after: str


class LeverBoard:
    """All levers of one process."""

    def __init__(
        self, settings: Settings, metrics: Metrics, registry: Registry, manager: SourceManager
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._registry = registry
        self._manager = manager
        self._moving = asyncio.Lock()
        self._event_sync = settings.kv_event_sync
        self._shadow = False
        self._log_level = settings.log_level
        self._overload = settings.max_start_delay_s > 0
        self._history: deque[Pull] = deque(maxlen=HISTORY_MOVES)
        gauge = metrics.levers
        gauge.labels(Lever.EVENT_SYNC).set_function(
            lambda: float(self._event_sync != settings.kv_event_sync)
        )
        gauge.labels(Lever.SHADOW).set_function(lambda: float(self._shadow))
        gauge.labels(Lever.POD_OUT).set_function(lambda: float(len(registry.taken_out())))
        gauge.labels(Lever.OVERLOAD).set_function(
            lambda: float(self._overload != (settings.max_start_delay_s > 0))
        )
        gauge.labels(Lever.LOG_LEVEL).set_function(
            lambda: float(self._log_level is not settings.log_level)
        )

    # -- what holds now -----------------------------------------------------------------------

    @property
    def event_sync(self) -> bool:
        """Events are followed, and the index is believed."""
        return self._event_sync

    @property
    def shadow(self) -> bool:
        """Decisions are made and recorded, and no header is set."""
        return self._shadow

    @property
    def overload(self) -> bool:
        """Requests that no pod can begin in time are refused."""
        return self._overload

    @property
    def log_level(self) -> LogLevel:
        """The least severe line that is written."""
        return self._log_level

    def pods_out(self) -> tuple[str, ...]:
        """The keys of the pods that are no candidates, sorted."""
        return self._registry.taken_out()

    def history(self) -> tuple[Pull, ...]:
        """The last moves, the newest first."""
        return tuple(reversed(self._history))

    def on_pod(self, before: Pod | None, after: Pod | None) -> None:
        """A listener of the registry: a pod that has gone takes its series along."""
        if before is not None and after is None:
            with suppress(KeyError):
                self._metrics.shadow_picks.remove(before.key)

    # -- moves --------------------------------------------------------------------------------

    async def set_event_sync(self, on: bool, who: str) -> bool:
        """Off: every source is let go and emptied, and load and predictions decide. On: all sync.

        False where it stood so already. Raises LeverRefused where the setting has it off.
        """
        async with self._moving:
            if on and not self._settings.kv_event_sync:
                raise LeverRefused(
                    "Event sync is off by AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED: this lever "
                    "switches off and on again what that variable switches on."
                )
            if on is self._event_sync:
                return False
            self._event_sync = on
            self._record(Lever.EVENT_SYNC, who, _on_off(not on), _on_off(on))
            if on:
                self._manager.start_events()
            else:
                # Whoever asked may leave meanwhile: half of it must not stay undone.
                await asyncio.shield(asyncio.create_task(self._manager.stop_events()))
            return True

    async def set_shadow(self, on: bool, who: str) -> bool:
        """On: decide, record and count, and set no header. False where it stood so already."""
        async with self._moving:
            if on is self._shadow:
                return False
            self._shadow = on
            self._record(Lever.SHADOW, who, _on_off(not on), _on_off(on))
            return True

    async def set_overload(self, on: bool, who: str) -> bool:
        """Off: no request is refused or sent elsewhere because pods are busy. False where it stood
        so already. Raises LeverRefused where there is no limit to go by."""
        async with self._moving:
            if on and not self._settings.max_start_delay_s:
                raise LeverRefused(
                    "There is no limit by AIBRIX_EXTPROC_MAX_START_DELAY: this lever switches off "
                    "and on again what that variable switches on."
                )
            if on is self._overload:
                return False
            self._overload = on
            self._record(Lever.OVERLOAD, who, _on_off(not on), _on_off(on))
            return True

    async def set_pod_out(self, pod: str, out: bool, who: str) -> bool:
        """Out: no candidate for as long as this pod's UID lives. False where it stood so already.

        Raises LeverRefused for a pod that is not known.
        """
        async with self._moving:
            try:
                moved = self._registry.take_out(pod) if out else self._registry.put_back(pod)
            except KeyError:
                raise LeverRefused(
                    f"There is no pod {_shown(pod)}. Write namespace/name; /debug/sources lists "
                    "them.",
                    unknown=True,
                ) from None
            if moved:
                words = ("in", "out") if out else ("out", "in")
                self._record(Lever.POD_OUT, who, *words, what=pod)
            return moved

    async def resync(self, pod: str, rank: int, who: str) -> None:
        """Empty one source and follow it anew. Raises LeverRefused where it is not followed."""
        async with self._moving:
            name = f"{pod} rank {rank}"
            before = self._state_of(pod, rank)
            try:
                await asyncio.shield(asyncio.create_task(self._manager.resync(pod, rank)))
            except KeyError:
                raise LeverRefused(
                    f"There is no source {_shown(name)}; /debug/sources lists them.", unknown=True
                ) from None
            except ValueError:
                raise LeverRefused(
                    f"{name} sends no events, or event sync is off: there is nothing to sync."
                ) from None
            self._record(Lever.RESYNC, who, before, "CONNECTING", what=name)

    async def set_log_level(self, level: LogLevel, who: str) -> bool:
        """The least severe line that is written. False where it stood so already."""
        async with self._moving:
            before = self._log_level
            if level is before:
                return False
            logs.set_level(level)
            self._log_level = level
            self._record(Lever.LOG_LEVEL, who, before, level)
            return True

    # -- inside -------------------------------------------------------------------------------

    def _state_of(self, pod: str, rank: int) -> str:
        for view in self._manager.views():
            if (view.pod, view.rank) == (pod, rank):
                return view.state or "not followed"
        return "unknown"

    def _record(self, lever: Lever, who: str, before: str, after: str, what: str = "") -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._history.append(Pull(at, who, lever, what, before, after))
        self._metrics.lever_pulls.labels(lever).inc()
        subject = f"{lever} of {what}" if what else lever
        log.warning("lever %s: %s → %s (by %s)", subject, before, after, who)


def _on_off(on: bool) -> str:
    return "on" if on else "off"


def _shown(text: str) -> str:
    return f"'{printable(text)}'"
