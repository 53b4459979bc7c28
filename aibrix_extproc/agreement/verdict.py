"""Whether the tokens of a model agree with its engines', from what looks at promises have shown.

Pure. Owns the window of the last looks for each pod and kind of request, the rule for "they do
not agree", and the words for its likely causes.

The rule: of a pod's last WINDOW looks of one kind at least ENOUGH have shown something, and at
most DOUBT_SHARE of these found the prompt. It is over when most of the last ENOUGH found it.
Looks older than MAX_AGE_S are forgotten.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from aibrix_extproc.agreement.promises import FAILED, Found, Kind

WINDOW: Final = 32
ENOUGH: Final = 8
DOUBT_SHARE: Final = 0.1
MAX_AGE_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What else is known that points to a cause."""

    pods_disagree: bool = False
    """Their `/tokenize` gives other ids for one text."""
    lengths_differ: bool = False
    """An engine counted another number of tokens for a prompt."""
    partial_sources: bool = False
    unnamed_adapters: bool = False
    """Events of an adapter's id without a name were seen."""
    groups_not_indexed: bool = False


@dataclass(slots=True)
class _Track:
    """One pod's looks of one kind, the latest last."""

    looks: deque[tuple[float, Found]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    totals: dict[Found, int] = field(default_factory=dict)
    is_doubted: bool = False

    def add(self, found: Found, now: float) -> None:
        self.totals[found] = self.totals.get(found, 0) + 1
        if found is Found.VOID:
            return
        self.looks.append((now, found))
        self.judge(now)

    def judge(self, now: float) -> None:
        while self.looks and now - self.looks[0][0] > MAX_AGE_S:
            self.looks.popleft()
        confirmed = [found is Found.CONFIRMED for _, found in self.looks]
        if self.is_doubted:
            self.is_doubted = 2 * sum(confirmed[-ENOUGH:]) <= min(len(confirmed), ENOUGH) > 0
        else:
            enough = len(confirmed) >= ENOUGH
            self.is_doubted = enough and sum(confirmed) <= DOUBT_SHARE * len(confirmed)


class Verdicts:
    """All pods and kinds. Not thread-safe."""

    def __init__(self) -> None:
        self._tracks: dict[tuple[str, str, Kind], _Track] = {}

    def add(self, model: str, pod: str, kind: Kind, found: Found, now: float) -> None:
        """One look at a promise of a pod is settled."""
        self._tracks.setdefault((model, pod, kind), _Track()).add(found, now)

    def doubted(self, now: float) -> dict[tuple[str, Kind], list[str]]:
        """(model, kind) → the pods whose tokens do not agree with those that are matched, sorted;
        an entry for all that was looked at."""
        found: dict[tuple[str, Kind], list[str]] = {}
        for (model, pod, kind), track in self._tracks.items():
            pods = found.setdefault((model, kind), [])
            track.judge(now)
            if track.is_doubted:
                pods.append(pod)
        for pods in found.values():
            pods.sort()
        return found

    def is_silent(self, model: str, kind: Kind, pods: Iterable[str]) -> bool:
        """Whether no event at all came for what these pods have computed."""
        failed = [
            found
            for pod in pods
            for _, found in self._tracks[model, pod, kind].looks
            if found in FAILED
        ]
        return bool(failed) and all(found is Found.SILENT for found in failed)

    def is_partly(self, model: str, kind: Kind, pods: Iterable[str]) -> bool:
        """Whether beginnings of prompts are found at these pods."""
        looks = [found for pod in pods for _, found in self._tracks[model, pod, kind].looks]
        return 2 * sum(found is Found.PARTLY for found in looks) > len(looks)

    def models(self) -> set[str]:
        """Models that were looked at."""
        return {model for model, _, _ in self._tracks}

    def forget_pod(self, pod: str) -> None:
        """It is gone, or another engine by now."""
        for key in [key for key in self._tracks if key[1] == pod]:
            del self._tracks[key]

    def page(self, model: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Pod → kind → counts since the start, and whether it is doubted. Plain values."""
        pods: dict[str, dict[str, dict[str, Any]]] = {}
        for (of_model, pod, kind), track in sorted(self._tracks.items()):
            if of_model == model:
                counts: dict[str, Any] = {str(f): track.totals.get(f, 0) for f in Found}
                pods.setdefault(pod, {})[str(kind)] = counts | {"doubted": track.is_doubted}
        return pods


def causes(kind: Kind, evidence: Evidence, *, silent: bool, partly: bool) -> tuple[str, ...]:
    """The likely causes, the likeliest first; what the evidence points to goes before the rest."""
    if silent:
        return (
            "the event port is another engine's, or the engine does not cache prefixes "
            "(--no-enable-prefix-caching)",
            "the engine's publisher has stopped",
        )
    first: list[str] = []
    rest: list[str] = []

    def cause(text: str, points_to_it: bool) -> None:
        (first if points_to_it else rest).append(text)

    if kind is Kind.SALTED:
        first.append("requests carry a cache_salt, and vLLM before 0.17 sends none in its events")
    if kind is Kind.ADAPTER:
        cause(
            "events name the LoRA adapter by an id without a name (vLLM before 0.14): set the "
            "label model.aibrix.ai/lora-id",
            evidence.unnamed_adapters,
        )
    cause(
        "the tokenizer or the chat template of the engine is another than the one that prompts "
        "are tokenized by: it changed, or the tokenizer endpoint serves another version",
        evidence.pods_disagree or evidence.lengths_differ,
    )
    cause(
        "sources are PARTIAL: blocks from before this server's start are not known; raise the "
        "engine's buffer_steps, or reset its prefix cache once",
        evidence.partial_sources,
    )
    cause(
        "the engine stores its prompts in a cache group that is not indexed (sliding window, "
        "Mamba), or with a lookahead that is longer than its blocks",
        evidence.groups_not_indexed or partly,
    )
    rest.append("the label model.aibrix.ai/name of the pod is another model's")
    return (*first, *rest)
