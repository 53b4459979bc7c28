"""What happens to pods, gateways and traffic while a simulation runs, and at which virtual time.

Owns the kinds of scenes and how they are written on a command line. Knows neither engines nor
gateways: the loop carries them out.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from aibrix_extproc.errors import SettingsError


@dataclass(frozen=True, slots=True)
class PodJoins:
    """One pod more, with an empty cache and an empty queue. Gateways know it at once."""

    at_s: float


@dataclass(frozen=True, slots=True)
class PodRestarts:
    """The engine process of a pod ends, and another one runs after `down_s`.

    Its cache and its queue are gone, and its events begin anew at number 0. While it is down it
    is no candidate, which gateways know at once. What it had not answered is sent again at once,
    by a new decision: a request counts once, with its times from its first arrival.
    """

    at_s: float
    pod: int
    down_s: float = 0.0


class Begins(StrEnum):
    """What a gateway that starts knows of caches."""

    REPLAY = "replay"
    """What the engines' replay buffers bring: vLLM's 10,000 batches each."""
    SNAPSHOT = "snapshot"
    """What the process before saved as it ended, and then what a replay brings since."""
    NOTHING = "nothing"
    """Only what events tell from then on, as if the engines had no replay port."""


@dataclass(frozen=True, slots=True)
class GatewayRestarts:
    """A process takes the place of a gateway, at once, with no ledger and no predictions."""

    at_s: float
    begins: Begins = Begins.REPLAY
    gateway: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """No request comes for a while: sessions that would begin after `at_s` do so `lasts_s` later,
    and so do turns that would fall into the pause."""

    at_s: float
    lasts_s: float


Scene = PodJoins | PodRestarts | GatewayRestarts | Pause


def session_start(pauses: Iterable[Pause], start_s: float) -> float:
    """When a session begins, with pauses in the order of time."""
    for pause in pauses:
        if start_s >= pause.at_s:
            start_s += pause.lasts_s
    return start_s


def turn_start(pauses: Iterable[Pause], at_s: float) -> float:
    """When a later turn is sent, with pauses in the order of time."""
    for pause in pauses:
        if pause.at_s <= at_s < pause.at_s + pause.lasts_s:
            at_s += pause.lasts_s
    return at_s


def check(scenes: Sequence[Scene], pods: int, gateways: int) -> None:
    """Raises SettingsError for a pod or a gateway that there is not."""
    joins = sorted(scene.at_s for scene in scenes if isinstance(scene, PodJoins))
    for scene in scenes:
        if isinstance(scene, PodRestarts):
            there = pods + sum(1 for at_s in joins if at_s <= scene.at_s)
            if scene.pod >= there:
                raise SettingsError(
                    f"no pod {scene.pod} can restart at {scene.at_s:g} s: they are 0 to {there - 1}"
                )
        if isinstance(scene, GatewayRestarts) and scene.gateway >= gateways:
            raise SettingsError(
                f"no gateway {scene.gateway} can restart: they are 0 to {gateways - 1}"
            )


def parse_scene(text: str) -> Scene:
    """A scene as `FORMS` has it. Raises ArgumentTypeError."""
    kind, _, rest = text.partition("@")
    reader = _READERS.get(kind)
    if reader is not None:
        try:
            return reader(rest.split(":"))
        except (ValueError, TypeError):
            pass
    raise argparse.ArgumentTypeError(f"{text!r} is no scene: write {FORMS}")


def told(scene: Scene) -> dict[str, Any]:
    """A scene for a report."""
    return {"kind": _KINDS[type(scene)], **asdict(scene)}


def _joins(given: Sequence[str]) -> Scene:
    return PodJoins(*map(_seconds, given))


def _restarts(given: Sequence[str]) -> Scene:
    at_s, pod, *down_s = given
    if int(pod) < 0:
        raise ValueError(pod)
    return PodRestarts(_seconds(at_s), int(pod), *map(_seconds, down_s))


def _gateway_restarts(given: Sequence[str]) -> Scene:
    at_s, begins, *number = given
    if number and int(number[0]) < 0:
        raise ValueError(number)
    return GatewayRestarts(_seconds(at_s), Begins(begins), *map(int, number))


def _pause(given: Sequence[str]) -> Scene:
    at_s, lasts_s = given
    return Pause(_seconds(at_s), _seconds(lasts_s))


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


_KINDS: Final[Mapping[type[Scene], str]] = {
    PodJoins: "pod-joins",
    PodRestarts: "pod-restarts",
    GatewayRestarts: "gateway-restarts",
    Pause: "pause",
}
_READERS: Final[Mapping[str, Callable[[Sequence[str]], Scene]]] = {
    "pod-joins": _joins,
    "pod-restarts": _restarts,
    "gateway-restarts": _gateway_restarts,
    "pause": _pause,
}
FORMS: Final = (
    "pod-joins@SECONDS, pod-restarts@SECONDS:POD[:DOWN_SECONDS], "
    "gateway-restarts@SECONDS:replay|snapshot|nothing[:GATEWAY] or pause@SECONDS:SECONDS"
)
