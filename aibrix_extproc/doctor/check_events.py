"""What event ports and replay ports say. Pure.

Owns these codes. Probes (a completion, and the events that must follow) are for `check_probe`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from aibrix_extproc.doctor.collect_streams import name
from aibrix_extproc.doctor.facts import (
    Batches,
    Engine,
    Facts,
    Listener,
    Missing,
    Reached,
    ReplaySeen,
    Stream,
)
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity

PORT_CLOSED: Final = Code(
    "event-port-closed",
    Area.EVENTS,
    Severity.RED,
    "nobody listens on the event port",
    "Start the engine with --kv-events-config (an endpoint with `*`); check the port.",
)
PORT_UNREACHABLE: Final = Code(
    "event-port-unreachable",
    Area.EVENTS,
    Severity.RED,
    "the event port does not answer",
    "Check the network policies: event and replay ports of every rank must be open to the "
    "processor. Run doctor where the processor runs.",
)
NOT_ZMQ: Final = Code(
    "event-port-not-zmq",
    Area.EVENTS,
    Severity.RED,
    "something else than a ZMQ publisher listens on the event port",
    "Check the port: it may be that of the HTTP API or of metrics.",
)
SWAPPED: Final = Code(
    "event-ports-swapped",
    Area.EVENTS,
    Severity.RED,
    "the event port answers replays, and the replay port publishes",
    "Swap the two: the event port is `endpoint`, the replay port `replay_endpoint` of the "
    "engine's --kv-events-config.",
)
WRONG_SOCKET: Final = Code(
    "event-port-wrong-socket",
    Area.EVENTS,
    Severity.RED,
    "a ZMQ socket of another kind is on the event or replay port",
    "Check the ports: the event port is a PUB, the replay port a ROUTER.",
)
CURVE: Final = Code(
    "event-curve",
    Area.EVENTS,
    Severity.RED,
    "engine and settings do not agree on CURVE, or its keys do not fit",
    "Set `AIBRIX_KV_CURVE_SERVER_KEY_FILE` and `AIBRIX_KV_CURVE_CLIENT_KEY_FILE` where the engine "
    "has CURVE, and only there; give the engine's public certificate.",
)
NO_HANDSHAKE: Final = Code(
    "event-handshake",
    Area.EVENTS,
    Severity.RED,
    "a subscription to the event port does not come about",
    "Look at the engine's log; restart its publisher.",
)
BAD_FRAMES: Final = Code(
    "event-frames",
    Area.EVENTS,
    Severity.RED,
    "messages are no batches of vLLM's or SGLang's shape (topic, 8 bytes of sequence, payload)",
    "Check what publishes on this port; report it with the engine's version.",
)
UNREADABLE: Final = Code(
    "event-payload",
    Area.EVENTS,
    Severity.RED,
    "events cannot be read",
    "Report it with the engine's version. Unknown kinds of events are YELLOW: they are left out.",
    milder=True,
)
SEQUENCE: Final = Code(
    "event-sequence",
    Area.EVENTS,
    Severity.RED,
    "the numbers of the batches went down: two engines publish here, or it restarts again and "
    "again",
    "Check that one engine alone is behind this address and port, and its restarts.",
)
REPLAY_NONE: Final = Code(
    "replay-port-none",
    Area.EVENTS,
    Severity.YELLOW,
    "the engine has no replay port: after each loss and each start its source is PARTIAL",
    "Add `replay_endpoint` to the engine's --kv-events-config.",
)
REPLAY_CLOSED: Final = Code(
    "replay-port-closed",
    Area.EVENTS,
    Severity.RED,
    "nobody listens on the replay port: the source is PARTIAL at best",
    "Add `replay_endpoint` to the engine's --kv-events-config, or correct the port; "
    "`replay_port: null` in the endpoints file, where there is to be none.",
)
REPLAY_NOT_ZMQ: Final = Code(
    "replay-port-not-zmq",
    Area.EVENTS,
    Severity.RED,
    "something else than a ZMQ socket listens on the replay port",
    "Check the port.",
)
REPLAY_SILENT: Final = Code(
    "replay-no-answer",
    Area.EVENTS,
    Severity.RED,
    "the replay port takes the question and does not answer to the end",
    "Look at the engine: it answers between two steps. Raise --timeout for a very long buffer.",
)
REPLAY_OTHER: Final = Code(
    "replay-other-engine",
    Area.EVENTS,
    Severity.RED,
    "the replay port does not hold what the event port has just sent: it is another engine's",
    "Check both ports of this pod, and of its ranks.",
)
BUFFER_SMALL: Final = Code(
    "replay-buffer-small",
    Area.EVENTS,
    Severity.YELLOW,
    "the replay buffer holds few batches and does not reach back to the engine's start: after an "
    "outage a source is PARTIAL soon",
    "Raise `buffer_steps` in the engine's --kv-events-config (10000 is vLLM's default).",
)
BLOCK_SIZE: Final = Code(
    "block-size-differs",
    Area.EVENTS,
    Severity.YELLOW,
    "events carry another block size than the engine's metrics say",
    "Nothing, where the engine groups blocks (hybrid models, context parallelism): events count. "
    "Else check that this event port is of this engine.",
)
NOTHING_PUBLISHED: Final = Code(
    "events-none-published",
    Area.EVENTS,
    Severity.YELLOW,
    "the engine has computed prompts since its start, and published no event",
    "Check `enable_kv_cache_events` and --enable-prefix-caching; some builds and plugins of vLLM "
    "take the flag and publish nothing.",
)

_USUAL_BUFFER: Final = 10_000
_MUCH_LOOKED_UP_TOKENS: Final = 10_000
_ONLY_LEFT_OUT: Final = frozenset({"unknown_event"})


def streams(facts: Facts) -> Sequence[Stream]:
    """Every source. Raises NotLooked."""
    if isinstance(facts.streams, Missing):
        raise NotLooked(facts.streams.why)
    if not facts.streams:
        raise NotLooked("no pod sends events")
    return facts.streams


def check_event_ports(facts: Facts) -> Iterator[Finding]:
    """Who is on the event ports."""
    curve = bool(facts.settings.kv_curve_server_key_file)
    for stream in streams(facts):
        seen, where = stream.events, f"{name(stream)}: {stream.event_endpoint}"
        if seen.reached is Reached.REFUSED:
            yield PORT_CLOSED.found(name(stream), f"{where} refuses connections")
        elif seen.reached is not Reached.OPEN:
            yield PORT_UNREACHABLE.found(name(stream), f"{where}: {seen.reached}")
        elif seen.listener is not Listener.ZMQ:
            yield NOT_ZMQ.found(name(stream), f"{where} is {seen.listener}")
        elif not seen.mechanism:
            yield NO_HANDSHAKE.found(name(stream), f"{where}: its greeting is not whole")
        elif (seen.mechanism == "CURVE") is not curve:
            ours = "CURVE" if curve else "no keys"
            yield CURVE.found(name(stream), f"{where} speaks {seen.mechanism}; here are {ours}")
        elif seen.socket_type not in {"", "PUB", "XPUB"}:
            yield _wrong_socket(stream)
        elif not stream.connected:
            code = CURVE if curve else NO_HANDSHAKE
            yield code.found(name(stream), f"{where}: the handshake does not succeed")


def _wrong_socket(stream: Stream) -> Finding:
    replay = stream.replays.socket_type if stream.replays else ""
    seen = f"{stream.event_endpoint} is a {stream.events.socket_type}"
    if stream.events.socket_type == "ROUTER" and replay in {"PUB", "XPUB"}:
        return SWAPPED.found(name(stream), f"{seen}, {stream.replay_endpoint} a {replay}")
    return WRONG_SOCKET.found(name(stream), f"{seen}; a PUB is needed")


def check_batches(facts: Facts) -> Iterator[Finding]:
    """Whether what came can be read, and is of one engine."""
    for stream in streams(facts):
        replayed = stream.replay.batches if stream.replay else Batches()
        for reason, count in _joined(stream.live.bad_frames, replayed.bad_frames).items():
            yield BAD_FRAMES.found(name(stream), f"{count} messages: {reason}")
        reasons = _joined(stream.live.unreadable, replayed.unreadable)
        if reasons:
            told = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
            mild = Severity.YELLOW if set(reasons) <= _ONLY_LEFT_OUT else None
            yield UNREADABLE.found(name(stream), told, mild)
        if stream.live.fell is not None:
            before, after = stream.live.fell
            yield SEQUENCE.found(name(stream), f"batch {after} came after {before}")


def _joined(*counts: Mapping[str, int]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def check_replays(facts: Facts) -> Iterator[Finding]:
    """Whether replays answer, from 0, with what the event port sent."""
    for stream in streams(facts):
        if stream.replay_endpoint is None or stream.replays is None:
            yield REPLAY_NONE.found(name(stream), f"{name(stream)} has no replay port")
            continue
        seen, where = stream.replays, f"{name(stream)}: {stream.replay_endpoint}"
        if seen.reached is not Reached.OPEN:
            yield REPLAY_CLOSED.found(name(stream), f"{where}: {seen.reached}")
        elif seen.listener is not Listener.ZMQ:
            yield REPLAY_NOT_ZMQ.found(name(stream), f"{where} is {seen.listener}")
        elif seen.socket_type not in {"", "ROUTER"}:
            if stream.events.socket_type != "ROUTER":  # else told as swapped
                yield WRONG_SOCKET.found(
                    name(stream), f"{where} is a {seen.socket_type}; a ROUTER is needed"
                )
        elif stream.replay is not None:
            yield from _replay(stream, stream.replay)


def _replay(stream: Stream, replay: ReplaySeen) -> Iterator[Finding]:
    if replay.failure:
        yield REPLAY_SILENT.found(name(stream), f"{stream.replay_endpoint}: {replay.failure}")
        return
    if replay.ended and _is_of_another(stream.live, replay.batches):
        yield REPLAY_OTHER.found(
            name(stream),
            f"batch {stream.live.last_sequence} of {stream.event_endpoint} is not what "
            f"{stream.replay_endpoint} has",
        )
    first, count = replay.batches.first_sequence, replay.batches.count
    if replay.ended and first and count < _USUAL_BUFFER:
        yield BUFFER_SMALL.found(
            name(stream), f"it holds {count} batches; those before {first} are gone"
        )


def _is_of_another(live: Batches, replayed: Batches) -> bool:
    last = live.last_sequence
    if last is None or last not in live.payloads:
        return False
    if replayed.last_sequence is None or replayed.last_sequence < last:
        return True
    theirs = replayed.payloads.get(last)
    return theirs is not None and theirs != live.payloads[last]


def check_blocks(facts: Facts) -> Iterator[Finding]:
    """Events against the engine's own metrics."""
    engines: dict[str, Engine] = {}
    if not isinstance(facts.engines, Missing):
        engines = {engine.pod.key: engine for engine in facts.engines}
    for stream in streams(facts):
        engine = engines.get(stream.pod)
        if engine is None:
            continue
        replayed = stream.replay.batches if stream.replay else Batches()
        sizes = stream.live.block_sizes | replayed.block_sizes
        told = {cache.block_size for cache in engine.caches if cache.block_size}
        if sizes and told and not sizes <= told:
            yield BLOCK_SIZE.found(
                name(stream),
                f"events: {', '.join(map(str, sorted(sizes)))}; metrics: "
                f"{', '.join(map(str, sorted(told)))}",
            )
        ended = stream.replay is not None and stream.replay.ended
        silent = ended and not replayed.count and not stream.live.count
        if silent and (engine.looked_up_tokens or 0) > _MUCH_LOOKED_UP_TOKENS:
            yield NOTHING_PUBLISHED.found(
                name(stream), f"{engine.looked_up_tokens} tokens were looked up in its cache"
            )


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
