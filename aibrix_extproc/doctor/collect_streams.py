"""What the event and replay ports of all ranks say, and, where asked for, a probe of each pod.

Owns the order of questions: who listens there, then a subscription, then (with a probe) a small
completion for each pod while all streams are heard, then the replays, so that a replay must hold
what was heard. What it means is for `check_events` and `check_probe`.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from aibrix_extproc.discovery.ports import split_host_port
from aibrix_extproc.doctor import zmtp
from aibrix_extproc.doctor.batches import summed_up
from aibrix_extproc.doctor.calls import Caller, connect
from aibrix_extproc.doctor.collect_engines import token_ids
from aibrix_extproc.doctor.facts import (
    Answer,
    Engine,
    Greeting,
    Listener,
    Probed,
    Reached,
    StoredSeen,
    Stream,
)
from aibrix_extproc.doctor.sockets import Listening, ask_replays
from aibrix_extproc.kvevents.sockets import LinkOptions
from aibrix_extproc.settings import Settings

_GREETINGS_AT_ONCE: Final = 64
_POLL_S: Final = 0.05
_AFTER_SUBSCRIBING_S: Final = 0.25
"""From a subscriber's handshake until the publisher surely has its subscription."""
_USUAL_BLOCK_SIZE: Final = 16


def streams_of(engines: Sequence[Engine]) -> list[Stream]:
    """Every rank that sends events, with nothing known of it yet."""
    nobody = Greeting(Reached.UNREACHABLE)
    return [
        Stream(
            engine.pod.key,
            engine.pod.model,
            rank.rank,
            rank.event_endpoint,
            rank.replay_endpoint,
            nobody,
            None,
        )
        for engine in engines
        if engine.pod.kv_events
        for rank in engine.pod.ranks
        if rank.event_endpoint
    ]


async def look_at_streams(
    caller: Caller,
    engines: Sequence[Engine],
    settings: Settings,
    options: LinkOptions,
    listen_s: float,
    probe: bool,
) -> tuple[tuple[Stream, ...], tuple[Probed, ...]]:
    """All streams, and what probes came to (none where `probe` is false)."""
    streams = await _greet_all(streams_of(engines), caller.timeout_s)
    spoken_to = [s for s in streams if _may_publish(s.events, options)]
    probed: list[Probed] = []
    heard: dict[str, Stream] = {}
    if spoken_to:
        with Listening([s.event_endpoint for s in spoken_to], options) as listening:
            every = range(len(spoken_to))
            await _until(lambda: all(map(listening.connected, every)), caller.timeout_s)
            if probe:
                await asyncio.sleep(_AFTER_SUBSCRIBING_S)
                # One after another: whose events they are must be plain.
                heard_of = {stream.pod for stream in spoken_to}
                probed += [
                    await _probe(caller, engine, settings, listening, spoken_to)
                    for engine in engines
                    if engine.pod.key in heard_of
                ]
            else:
                await asyncio.sleep(listen_s)
            for number, stream in enumerate(spoken_to):
                live = summed_up(listening.messages(number))
                up = listening.connected(number)
                heard[name(stream)] = replace(stream, connected=up, live=live)
    streams = [heard.get(name(stream), stream) for stream in streams]
    return tuple(await _replay_all(streams, options, caller.timeout_s)), tuple(probed)


def _may_publish(greeting: Greeting, options: LinkOptions) -> bool:
    if greeting.listener is not Listener.ZMQ or not greeting.mechanism:
        return False
    has_our_keys = (greeting.mechanism == "CURVE") is (options.curve is not None)
    return has_our_keys and greeting.socket_type in {"", "PUB", "XPUB"}


def name(stream: Stream) -> str:
    """`namespace/name rank r`."""
    return f"{stream.pod} rank {stream.rank}"


# -- who listens there ----------------------------------------------------------------------------


async def _greet_all(streams: list[Stream], timeout_s: float) -> list[Stream]:
    slots = asyncio.Semaphore(_GREETINGS_AT_ONCE)

    async def one(stream: Stream) -> Stream:
        async with slots:
            events = await greet(stream.event_endpoint, timeout_s)
            replays = None
            if stream.replay_endpoint:
                replays = await greet(stream.replay_endpoint, timeout_s)
        return replace(stream, events=events, replays=replays)

    return list(await asyncio.gather(*map(one, streams)))


async def greet(endpoint: str, timeout_s: float) -> Greeting:
    """Say hello to `tcp://ip:port` as ZMTP does, and read what comes back."""
    host, port = split_host_port(endpoint.removeprefix("tcp://"))
    opened = await connect(host, port, timeout_s)
    if isinstance(opened, Reached):
        return Greeting(opened)
    reader, writer = opened
    heard = bytearray()
    try:
        # libzmq hangs up on another mechanism than its own before it has named that.
        writer.write(zmtp.GREETING[: zmtp.BEFORE_MECHANISM])
        await _hear(reader, heard, lambda said: bool(zmtp.mechanism(said)), min(timeout_s, 1.0))
        if zmtp.mechanism(bytes(heard)) == "NULL":
            writer.write(zmtp.GREETING[zmtp.BEFORE_MECHANISM :])
            await _hear(reader, heard, lambda said: bool(zmtp.socket_type(said)), timeout_s)
        elif not heard:  # an HTTP server may wait for the end of a line
            writer.write(b"\r\n\r\n")
            await _hear(reader, heard, bool, min(timeout_s, 0.5))
    except OSError:
        pass  # it hung up; what was heard counts
    finally:
        writer.close()
    said = bytes(heard)
    return Greeting(Reached.OPEN, zmtp.listener(said), zmtp.mechanism(said), zmtp.socket_type(said))


async def _hear(
    reader: asyncio.StreamReader,
    heard: bytearray,
    enough: Callable[[bytes], bool],
    timeout_s: float,
) -> None:
    """Until it is enough, or no ZMTP, or it hangs up, or time is over."""
    try:
        async with asyncio.timeout(timeout_s):
            while not enough(said := bytes(heard)):
                if said and zmtp.listener(said) is not Listener.ZMQ:
                    return
                part = await reader.read(4096)
                if not part:
                    return
                heard += part
    except TimeoutError:
        pass


async def _until(holds: Callable[[], bool], timeout_s: float) -> None:
    until = asyncio.get_running_loop().time() + timeout_s
    while asyncio.get_running_loop().time() < until:
        if holds():
            return
        await asyncio.sleep(_POLL_S)


# -- replays --------------------------------------------------------------------------------------


async def _replay_all(
    streams: list[Stream], options: LinkOptions, timeout_s: float
) -> list[Stream]:
    asked = [
        (number, stream.replay_endpoint)
        for number, stream in enumerate(streams)
        if stream.replay_endpoint and stream.replays and stream.replays.listener is Listener.ZMQ
    ]
    if not asked:
        return streams
    endpoints = [endpoint for _, endpoint in asked]
    seen = await asyncio.to_thread(ask_replays, endpoints, options, timeout_s)
    found = list(streams)
    for (number, _), replay in zip(asked, seen, strict=True):
        found[number] = replace(streams[number], replay=replay)
    return found


# -- probes ---------------------------------------------------------------------------------------


async def _probe(
    caller: Caller,
    engine: Engine,
    settings: Settings,
    listening: Listening,
    streams: Sequence[Stream],
) -> Probed:
    """One completion of one token, whose prompt no engine can hold yet, and its events."""
    pod = engine.pod
    block_size = max((c.block_size or _USUAL_BLOCK_SIZE for c in engine.caches), default=0)
    prompt = _prompt(2 * (block_size or _USUAL_BLOCK_SIZE) + 8)
    own = [number for number, stream in enumerate(streams) if stream.pod == pod.key]
    before = [len(listening.messages(number)) for number in range(len(streams))]
    root = f"http://{pod.address}"
    tokens = await _tokens(caller, settings.tokenizer_endpoint or root, root, pod.model, prompt)
    body = {"model": pod.model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    answer = await caller.post(f"{root}/v1/completions", body)

    def roots_of(number: int) -> tuple[StoredSeen, ...]:
        return summed_up(listening.messages(number)[before[number] :]).roots

    def is_delivered() -> bool:
        every = [stored for number in range(len(streams)) for stored in roots_of(number)]
        if any(begins(tokens, stored) for stored in every):
            return True
        return tokens is None and any(roots_of(number) for number in own)

    if answer.status == 200:
        await _until(is_delivered, caller.timeout_s)
    return Probed(
        pod.key,
        replace(answer, body=answer.body if answer.status != 200 else b""),
        tokens,
        tuple(
            name(stream)
            for number, stream in enumerate(streams)
            if any(begins(tokens, stored) for stored in roots_of(number))
        ),
        tuple(stored for number in own for stored in roots_of(number)),
    )


def begins(tokens: tuple[int, ...] | None, stored: StoredSeen) -> bool:
    """Whether this stored block is the first of a prompt with these tokens."""
    size = stored.block_size
    return tokens is not None and len(tokens) >= size and stored.token_ids[:size] == tokens[:size]


def _prompt(words: int) -> str:
    """Text of at least so many tokens, that begins like no other."""
    return f"{secrets.token_hex(8)}: " + " ".join(str(n) for n in range(1, words + 1))


async def _tokens(
    caller: Caller, first: str, second: str, model: str, prompt: str
) -> tuple[int, ...] | None:
    body = {"model": model, "prompt": prompt, "add_special_tokens": True}
    for root in dict.fromkeys((first, second)):
        answer: Answer = await caller.post(f"{root}/tokenize", body)
        ids = token_ids(answer)
        if ids is not None:
            return tuple(ids)
    return None
