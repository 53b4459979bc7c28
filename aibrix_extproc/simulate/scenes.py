"""What happens to the pods while a simulation runs, and at which virtual time.

Owns the kinds of scenes and how they are written on a command line. Knows neither engines nor
gateways: the loop carries them out.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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


Scene = PodJoins | PodRestarts


def check(scenes: Sequence[Scene], pods: int) -> None:
    """Raises SettingsError for a pod that there is not."""
    joins = sorted(scene.at_s for scene in scenes if isinstance(scene, PodJoins))
    for scene in scenes:
        if isinstance(scene, PodRestarts):
            there = pods + sum(1 for at_s in joins if at_s <= scene.at_s)
            if scene.pod >= there:
                raise SettingsError(
                    f"no pod {scene.pod} can restart at {scene.at_s:g} s: they are 0 to {there - 1}"
                )


def parse_scene(text: str) -> Scene:
    """`pod-joins@60`, `pod-restarts@60:3` or `pod-restarts@60:3:20`. Raises ArgumentTypeError."""
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


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


_KINDS: Final[Mapping[type[Scene], str]] = {PodJoins: "pod-joins", PodRestarts: "pod-restarts"}
_READERS: Final[Mapping[str, Callable[[Sequence[str]], Scene]]] = {
    "pod-joins": _joins,
    "pod-restarts": _restarts,
}
FORMS: Final = "pod-joins@SECONDS or pod-restarts@SECONDS:POD[:DOWN_SECONDS]"
