"""What engines say over HTTP, against what is believed of them. Pure.

Owns these codes. Events are for `check_events`, tokens for `check_tokenizer`.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from aibrix_extproc.doctor.collect_engines import error_text
from aibrix_extproc.doctor.facts import Engine, Facts, Missing, Reached
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity

CLOSED: Final = Code(
    "engine-http-closed",
    Area.ENGINES,
    Severity.RED,
    "nobody listens on the engine's HTTP port",
    "Check the port (label `model.aibrix.ai/port`, or `address` in the endpoints file), and "
    "whether the engine is up and listens on 0.0.0.0.",
)
UNREACHABLE: Final = Code(
    "engine-http-unreachable",
    Area.ENGINES,
    Severity.RED,
    "the engine's HTTP port does not answer",
    "Check the network policies of the engine's namespace, the address, and whether the engine "
    "hangs. Run doctor where the processor runs: `kubectl exec`.",
)
NOT_AN_ENGINE: Final = Code(
    "engine-not-openai",
    Area.ENGINES,
    Severity.RED,
    "what answers at the engine's address has no `/v1/models`",
    "Check the port: it may be that of metrics, of a sidecar or of another service.",
)
KEY_WANTED: Final = Code(
    "engine-api-key",
    Area.ENGINES,
    Severity.YELLOW,
    "the engine wants an API key: its adapters and other names cannot be learnt",
    "Clients' keys reach the engine; for names beside the label's, list `adapters` in the "
    "endpoints file, or run the engine without --api-key behind a network policy.",
)
MODEL_DIFFERS: Final = Code(
    "model-name-differs",
    Area.ENGINES,
    Severity.RED,
    "the pod's model name is none that its engine serves: the engine answers 404",
    "Give the engine --served-model-name as in the label `model.aibrix.ai/name` (in the endpoints "
    "file `model`), or change that.",
)
EVENTS_OFF: Final = Code(
    "engine-events-off",
    Area.ENGINES,
    Severity.RED,
    "by its own `/kv_event_sources` the engine sends no events, and it is marked as sending them",
    "Start it with --kv-events-config as in the README.",
)
PORTS_DIFFER: Final = Code(
    "event-port-differs",
    Area.ENGINES,
    Severity.YELLOW,
    "the engine names other event ports than the endpoints file, whose word counts",
    "Correct `kv_events` in the endpoints file; nothing, where the ports are mapped on the way.",
)
RANKS_DIFFER: Final = Code(
    "ranks-differ",
    Area.ENGINES,
    Severity.RED,
    "the engine has another number of data-parallel ranks than is known here",
    "Set the annotation `model.aibrix.ai/data-parallel-size`, or `ranks` in the endpoints file.",
)
CACHING_OFF: Final = Code(
    "prefix-caching-off",
    Area.ENGINES,
    Severity.RED,
    "the engine's prefix cache is off: nothing is reused and no block is announced",
    "Start it with --enable-prefix-caching.",
)
SIZES_MIXED: Final = Code(
    "block-sizes-mixed",
    Area.ENGINES,
    Severity.YELLOW,
    "pods of one model have different block sizes: what they hold is compared in unequal steps",
    "Start all with the same --block-size.",
)

_DENIED: Final = (401, 403)


def asked(facts: Facts) -> Sequence[Engine]:
    """The engines. Raises NotLooked."""
    if isinstance(facts.engines, Missing):
        raise NotLooked(facts.engines.why)
    return facts.engines


def check_http(facts: Facts) -> Iterator[Finding]:
    """Who answers at the pods' addresses, and by which names."""
    for engine in asked(facts):
        pod, answer = engine.declared, engine.models_answer
        if answer.reached is Reached.REFUSED:
            yield CLOSED.found(pod.key, f"{pod.address} refuses connections")
        elif answer.failure and answer.reached is not Reached.OPEN:
            yield UNREACHABLE.found(pod.key, f"{pod.address}: {answer.failure}")
        elif answer.status in _DENIED:
            yield KEY_WANTED.found(pod.key, f"/v1/models answers {answer.status}")
        elif engine.models is None:
            why = "no list of models" if answer.status == 200 else error_text(answer)
            yield NOT_AN_ENGINE.found(pod.key, f"{pod.address}/v1/models: {why}")
        else:
            yield from _names(engine)


def _names(engine: Engine) -> Iterator[Finding]:
    names = [model.id for model in engine.models or ()]
    if engine.declared.model not in names:
        listed = ", ".join(names[:5]) or "nothing"
        yield MODEL_DIFFERS.found(
            engine.declared.key,
            f"{engine.declared.key} is of the model {engine.declared.model}; its engine lists "
            f"{listed}",
        )


def check_sources(facts: Facts) -> Iterator[Finding]:
    """What engines say of their events and ranks."""
    for engine in asked(facts):
        declared, own = engine.declared, engine.engine_ranks
        if declared.kv_events and own is not None:
            if not any(rank.event_endpoint for rank in own):
                yield EVENTS_OFF.found(declared.key, f"{declared.key} publishes no events")
                continue
            if engine.pod.ranks == declared.ranks and own != declared.ranks:
                yield from _ports(engine)
        # Several API servers of one engine may each tell of the same rank.
        ranks = len(own) if own else len({cache.engine for cache in engine.caches})
        if ranks and declared.kv_events and ranks != len(engine.pod.ranks):
            yield RANKS_DIFFER.found(
                declared.key,
                f"{declared.key} has {ranks} ranks; {len(engine.pod.ranks)} are followed",
            )


def _ports(engine: Engine) -> Iterator[Finding]:
    ours = {rank.rank: rank for rank in engine.declared.ranks}
    for rank in engine.engine_ranks or ():
        known = ours.get(rank.rank)
        if known is None:
            continue
        for what, theirs, written in (
            ("events", rank.event_endpoint, known.event_endpoint),
            ("replays", rank.replay_endpoint, known.replay_endpoint),
        ):
            if theirs != written:
                yield PORTS_DIFFER.found(
                    engine.declared.key,
                    f"rank {rank.rank}: {what} are at {theirs} by the engine, at {written} here",
                )


def check_cache(facts: Facts) -> Iterator[Finding]:
    """Prefix caching and block sizes by the engines' metrics."""
    sizes: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for engine in asked(facts):
        if any(cache.prefix_caching is False for cache in engine.caches):
            yield CACHING_OFF.found(engine.pod.key, "enable_prefix_caching is False")
        for size in sorted({c.block_size for c in engine.caches if c.block_size}):
            sizes[engine.pod.model][size].append(engine.pod.key)
    for model, by_size in sorted(sizes.items()):
        if len(by_size) > 1:
            parts = [f"{size}: {', '.join(by_size[size][:5])}" for size in sorted(by_size)]
            yield SIZES_MIXED.found(model, "; ".join(parts))


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
