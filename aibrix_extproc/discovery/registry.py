"""Which pods there are, which name means which model, and who is told of a change.

Owns the merge of what discovery says of a pod with what the pod says of itself, and the table of
names. Lives on the event loop's thread: it is not thread-safe, and does no input or output. It
does not know where pods come from, nor what its listeners do.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from aibrix_extproc.discovery.pods import Pod, PodFacts, ServedModel
from aibrix_extproc.discovery.ports import is_address
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics

log = logging.getLogger(__name__)

PodListener = Callable[[Pod | None, Pod | None], None]
"""(before, after), None for absent. Called only for a real change, with the registry already
changed; another identity under the same key is one call."""

_NO_FACTS: Final = PodFacts()


@dataclass(frozen=True, slots=True)
class _Entry:
    """One pod: as discovery says, what it said of itself, and both together."""

    declared: Pod
    facts: PodFacts
    ranks_written: bool
    """The operator wrote its ports down: the pod's own word about ranks does not count."""
    pod: Pod

    @property
    def naming(self) -> object:
        """All that decides which names the pod serves; equal means the same names."""
        pod = self.declared
        return (pod.model, pod.adapters, pod.lora_id is None, self.facts.models)


def _entry(declared: Pod, facts: PodFacts, ranks_written: bool, is_out: bool) -> _Entry:
    use_facts = facts.ranks is not None and declared.kv_events and not ranks_written
    pod = replace(declared, ranks=facts.ranks) if use_facts and facts.ranks else declared
    if pod.ready and (is_out or not is_address(pod.address)):
        pod = replace(pod, ready=False)
    return _Entry(declared, facts, ranks_written, pod)


def _ranks_of(entry: _Entry | None) -> int:
    return 0 if entry is None else len(entry.pod.ranks)


def _pod(entry: _Entry | None) -> Pod | None:
    return None if entry is None else entry.pod


def _names(entry: _Entry) -> Iterator[ServedModel]:
    """Every name that one pod serves, its label's first."""
    pod = entry.declared
    listed = entry.facts.models or ()
    adapters = {m.id for m in listed if m.parent is not None} | set(pod.adapters)
    label_is_adapter = pod.lora_id is not None or pod.model in adapters
    yield ServedModel(pod.model, pod.model, pod.model if label_is_adapter else None)
    for name in {m.id for m in listed} | adapters:
        if name != pod.model:
            yield ServedModel(name, pod.model, name if name in adapters else None)


class Registry:
    """The pods. `replace`, `upsert` and `remove` are discovery's, `learn` is the probe's,
    `take_out` and `put_back` an operator's."""

    def __init__(
        self, metrics: Metrics, max_sources: int = 10_000, max_names: int = 10_000
    ) -> None:
        """`max_sources`: ranks of all pods together; `max_names`: what clients may send."""
        self.listed = False
        """True after the first complete listing."""
        self._metrics = metrics
        self._max_sources = max_sources
        self._max_names = max_names
        self._sources = 0
        self._left_out: dict[str, tuple[Pod, bool]] = {}
        """Pods for which there is no room now: at most as many as there is room for."""
        self._states = StateLog(log)
        self._entries: dict[str, _Entry] = {}
        self._listeners: list[PodListener] = []
        self._pods: tuple[Pod, ...] | None = None
        self._served: dict[str, ServedModel] | None = None
        self._servers: dict[tuple[str, str], list[str]] = {}
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._conflicts: dict[str, list[str]] = {}
        self._out: dict[str, str] = {}
        """Key → UID of pods that an operator has taken out."""

    # -- discovery ----------------------------------------------------------------------------

    def replace(self, pods: Iterable[Pod], ranks_written: Collection[str] = ()) -> None:
        """Take a complete listing: what is not in it is removed, at once.

        `ranks_written` holds the keys of pods whose ports the operator wrote down, so that they
        rule over what the pod says of itself (it may be reached through a mapped port).
        """
        fresh = {pod.key: pod for pod in pods}
        self._left_out.clear()
        changes = [self._put(key, None) for key in list(self._entries) if key not in fresh]
        # Those that are known keep their places.
        order = sorted(fresh, key=lambda key: key not in self._entries)
        changes += [self._put(key, fresh[key], key in ranks_written) for key in order]
        self.listed = True
        for before, after in changes:
            self._tell(before, after)
        self._let_in()

    def upsert(self, pod: Pod) -> None:
        """Add a pod, or change it; what it said of itself stays unless its identity changes."""
        self._tell(*self._put(pod.key, pod))
        self._let_in()

    def remove(self, key: str) -> None:
        """Remove a pod by `namespace/name`; an unknown key is no error."""
        self._tell(*self._put(key, None))
        self._let_in()

    def learn(self, identity: tuple[str, str, str], facts: PodFacts) -> None:
        """Take what a pod said of itself; a field of None keeps what was known.

        Ignored where the pod is gone, or is another by now.
        """
        entry = self._entries.get(identity[0])
        if entry is None or entry.declared.identity != identity:
            return
        known = entry.facts
        merged = PodFacts(
            models=known.models if facts.models is None else facts.models,
            ranks=known.ranks if facts.ranks is None else facts.ranks,
        )
        if merged != known:
            after = self._entry(entry.declared, merged, entry.ranks_written)
            if not self._has_room(entry, after):
                self._note_full()
                return
            self._set(identity[0], entry, after)
            self._tell(entry.pod, after.pod)

    # -- the operator -------------------------------------------------------------------------

    def take_out(self, key: str) -> bool:
        """Make a pod no candidate, as if it were not ready, for as long as its UID lives.

        Its cache is still tracked. False where it is out already. KeyError for an unknown pod.
        """
        entry = self._entries[key]
        if key in self._out:
            return False
        self._out[key] = entry.declared.uid
        self._renew(key)
        return True

    def put_back(self, key: str) -> bool:
        """Make it a candidate again. False where it was not out. KeyError for an unknown pod."""
        self._entries[key]
        if self._out.pop(key, None) is None:
            return False
        self._renew(key)
        return True

    def taken_out(self) -> tuple[str, ...]:
        """The keys of the pods that are out, sorted."""
        return tuple(sorted(self._out))

    # -- questions ----------------------------------------------------------------------------

    def pods(self) -> tuple[Pod, ...]:
        """Every pod, with the ranks that it said it has, sorted by key."""
        if self._pods is None:
            self._pods = tuple(self._entries[key].pod for key in sorted(self._entries))
        return self._pods

    def get(self, key: str) -> Pod | None:
        """The pod of `namespace/name`."""
        entry = self._entries.get(key)
        return entry.pod if entry else None

    def resolve(self, name: str) -> ServedModel | None:
        """What a name that a client sends means; None where no pod, ready or not, serves it."""
        return self._names().get(name)

    def candidates(self, served: ServedModel) -> tuple[Pod, ...]:
        """The ready pods that serve this name under this model, sorted by key.

        For the label's own name that is every pod of the label; for an alias or an adapter only
        the pods that list or declare it.
        """
        return tuple(pod for pod in self._serving(served) if pod.ready)

    def has_pods(self, served: ServedModel) -> bool:
        """Whether any pod, ready or not, serves this name."""
        return bool(self._serving(served))

    def model_names(self) -> tuple[str, ...]:
        """Every name that a client may send, sorted."""
        return tuple(sorted(self._names()))

    def subscribe(self, listener: PodListener) -> None:
        """Call `listener` for every later change."""
        self._listeners.append(listener)

    # -- inside -------------------------------------------------------------------------------

    def _put(
        self, key: str, declared: Pod | None, ranks_written: bool = False
    ) -> tuple[Pod | None, Pod | None]:
        before = self._entries.get(key)
        after = None
        if key in self._out and (declared is None or declared.uid != self._out[key]):
            del self._out[key]
            log.info("%s: the pod that was taken out is gone", key)
        if declared is not None:
            self._check_address(declared, before)
            same = before is not None and before.declared.identity == declared.identity
            facts = before.facts if before is not None and same else _NO_FACTS
            after = self._entry(declared, facts, ranks_written)
        self._left_out.pop(key, None)
        if declared is not None and after is not None and not self._has_room(before, after):
            if len(self._left_out) < self._max_sources:
                self._left_out[key] = (declared, ranks_written)
            self._note_full()
            after = None
        if before != after:
            self._set(key, before, after)
        return (_pod(before), _pod(after))

    def _check_address(self, declared: Pod, before: _Entry | None) -> None:
        """Discovery makes no other; one that came all the same must not get into a header."""
        known = before is not None and before.declared.address == declared.address
        if not known and not is_address(declared.address):
            self._metrics.discovery_errors.labels("pod_address").inc()
            log.error(
                "%s is never picked: its address %r is not ip:port",
                declared.key,
                declared.address[:128],
            )

    def _entry(self, declared: Pod, facts: PodFacts, ranks_written: bool) -> _Entry:
        return _entry(declared, facts, ranks_written, declared.key in self._out)

    def _renew(self, key: str) -> None:
        before = self._entries[key]
        after = self._entry(before.declared, before.facts, before.ranks_written)
        if before != after:
            self._set(key, before, after)
            self._tell(before.pod, after.pod)

    def _set(self, key: str, before: _Entry | None, after: _Entry | None) -> None:
        if after is None:
            del self._entries[key]
        else:
            self._entries[key] = after
        self._pods = None
        self._sources += _ranks_of(after) - _ranks_of(before)
        if before is None or after is None or before.naming != after.naming:
            self._served = None
        self._count(_pod(before), -1)
        self._count(_pod(after), +1)

    def _has_room(self, before: _Entry | None, after: _Entry) -> bool:
        more = _ranks_of(after) - _ranks_of(before)
        return more <= 0 or self._sources + more <= self._max_sources

    def _note_full(self) -> None:
        self._metrics.discovery_errors.labels("too_many_sources").inc()
        why = f"{self._max_sources} ranks are known; AIBRIX_EXTPROC_MAX_SOURCES"
        self._states.changed("pods", "further ones are left out", why)

    def _let_in(self) -> None:
        """Take pods that were left out, the oldest first, as long as there is room."""
        if not self._left_out:
            self._states.changed("pods", "ok")
            return
        for key, (pod, ranks_written) in list(self._left_out.items()):
            if not self._has_room(None, self._entry(pod, _NO_FACTS, ranks_written)):
                return
            self._tell(*self._put(key, pod, ranks_written))

    def _tell(self, before: Pod | None, after: Pod | None) -> None:
        if before == after:
            return
        for listener in self._listeners:
            try:
                listener(before, after)
            except Exception:  # one listener's fault must not hide the change from the others
                self._metrics.discovery_errors.labels("listener").inc()
                log.exception("a listener failed on a change of %s", after or before)

    def _count(self, pod: Pod | None, by: int) -> None:
        if pod is None:
            return
        counts = self._counts[pod.model]
        counts[pod.ready] += by
        if any(counts):
            for ready, label in enumerate(("false", "true")):
                self._metrics.pods.labels(pod.model, label).set(counts[ready])
            return
        del self._counts[pod.model]
        for label in ("false", "true"):
            self._metrics.pods.remove(pod.model, label)

    def _serving(self, served: ServedModel) -> list[Pod]:
        self._names()
        keys = self._servers.get((served.name, served.model), ())
        return [self._entries[key].pod for key in keys]

    def _names(self) -> dict[str, ServedModel]:
        """The table of names, made anew after a change that touches it."""
        if self._served is not None:
            return self._served
        meanings: dict[str, dict[str, str | None]] = defaultdict(dict)
        servers: dict[tuple[str, str], list[str]] = defaultdict(list)
        for key in sorted(self._entries):
            for served in _names(self._entries[key]):
                # An adapter by the word of one pod is one for all of its label: a pod that was
                # not asked yet only does not know it.
                known = meanings[served.name].get(served.model)
                meanings[served.name][served.model] = served.adapter or known
                servers[served.name, served.model].append(key)
        self._note_conflicts(meanings)
        self._servers = dict(servers)
        self._served = {
            name: ServedModel(name, model, by_model[model])
            for name, by_model in self._bounded(meanings)
            for model in (_winner(name, by_model),)
        }
        self._metrics.models.serve(self._served.keys())
        return self._served

    def _bounded(
        self, meanings: Mapping[str, dict[str, str | None]]
    ) -> Iterable[tuple[str, dict[str, str | None]]]:
        """All names, or the first by sort order; labels' own names go before all others."""
        excess = len(meanings) - self._max_names
        if excess <= 0:
            self._states.changed("names of models", "ok")
            return meanings.items()
        self._metrics.discovery_errors.labels("too_many_names").inc()
        why = f"{self._max_names} are known; AIBRIX_EXTPROC_MAX_MODELS"
        self._states.changed("names of models", "further ones are unknown", why)
        order = sorted(meanings.items(), key=lambda item: (item[0] not in item[1], item[0]))
        return order[: self._max_names]

    def _note_conflicts(self, meanings: Mapping[str, Collection[str]]) -> None:
        conflicts = {name: sorted(models) for name, models in meanings.items() if len(models) > 1}
        for name, models in conflicts.items():
            if self._conflicts.get(name) != models:
                log.warning(
                    "the name %r is served by pods of several labels (%s): it means %s",
                    name,
                    ", ".join(models),
                    _winner(name, models),
                )
        self._conflicts = conflicts


def _winner(name: str, models: Collection[str]) -> str:
    """The label that a name means: the label of that name, else the first by sort order."""
    return name if name in models else min(models)
