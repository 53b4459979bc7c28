"""What is done to a site: one coroutine for each fault, which begins it, holds it and ends it.

Each says by itself for which requests it is an excuse (`load.Excuse`). Faults of event sync, of the
tokenizer and of Kubernetes are none for any request.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.e2e.load import Excuse, noted
from tests.e2e.relay import Spoils
from tests.e2e.sick_engine import WELL
from tests.e2e.site import BUFFERED, DUPLEX, SickEngine, Site
from tests.support import eventually_async

Fault = Callable[["Scene"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scene:
    """One fault's share of a run."""

    site: Site
    rng: random.Random
    hold_s: float
    excuses: list[Excuse]

    async def hold(self) -> None:
        await asyncio.sleep(self.hold_s)


# -- the tokenizer ----------------------------------------------------------------------------


async def tokenizer_dies(scene: Scene) -> None:
    """Its own server refuses; the pods' own are there."""
    scene.site.tokenizer.process.kill()
    await scene.hold()
    await scene.site.start_engine(scene.site.tokenizer)


def sick(mode: str, *, everywhere: bool) -> Fault:
    async def fault(scene: Scene) -> None:
        site = scene.site
        ill: list[SickEngine] = [site.tokenizer, *(site.engines if everywhere else ())]
        for engine in ill:
            await site.sicken(engine, mode)
        await scene.hold()
        for engine in ill:
            await site.sicken(engine, WELL)

    fault.__name__ = f"tokenizer_{mode}{'_everywhere' if everywhere else ''}"
    return fault


# -- Kubernetes -------------------------------------------------------------------------------


async def kubernetes_away(scene: Scene) -> None:
    kube = scene.site.kube
    await asyncio.to_thread(kube.stop)
    await scene.hold()
    kube.start()


async def kubernetes_fails(scene: Scene) -> None:
    kube = scene.site.kube
    kube.list_status = kube.watch_status = 500
    kube.compact()
    kube.drop_watches()
    await scene.hold()
    kube.list_status = kube.watch_status = None


async def kubernetes_lists_nothing(scene: Scene) -> None:
    """A sudden empty list: no event says that a pod went."""
    kube = scene.site.kube
    with kube._lock:
        pods, kube._pods = kube._pods, {}
    kube.compact()
    kube.drop_watches()
    await scene.hold()
    with kube._lock:
        kube._pods = pods
    kube.compact()


# -- event sync -------------------------------------------------------------------------------


def events(how: Spoils) -> Fault:
    async def fault(scene: Scene) -> None:
        spoilt = [r for r in scene.site.relays if scene.rng.random() < 0.7] or scene.site.relays
        for relay in spoilt:
            relay.spoil(how)
        await scene.hold()
        for relay in spoilt:
            relay.spoil(Spoils.NOTHING)

    fault.__name__ = f"events_{how}"
    return fault


# -- processes --------------------------------------------------------------------------------


async def engine_killed(scene: Scene) -> None:
    """What it was answering is lost, and nothing after that: requests go on to the other."""
    engine = scene.rng.choice(scene.site.engines)
    with noted(scene.excuses, "engine killed", BUFFERED, DUPLEX, in_flight_only=True):
        engine.process.kill()
    await scene.hold()
    await scene.site.start_engine(engine)


async def server_killed(scene: Scene) -> None:
    index = scene.rng.randrange(len(scene.site.servers))
    with noted(scene.excuses, "processor killed", DUPLEX, in_flight_only=True):
        scene.site.servers[index].process.kill()
        await scene.hold()
        await scene.site.start_server(index)


async def all_servers_killed(scene: Scene) -> None:
    """Nobody decides: in BUFFERED requests go on to the fallback."""
    site = scene.site
    with noted(scene.excuses, "no processor", DUPLEX, in_flight_only=False):
        for server in site.servers:
            server.process.kill()
        await scene.hold()
        await asyncio.gather(*(site.start_server(index) for index in range(len(site.servers))))
        await eventually_async(lambda: site.picks_with_matches(DUPLEX, 0), timeout_s=30)


async def server_drained(scene: Scene) -> None:
    index = scene.rng.randrange(len(scene.site.servers))
    process = scene.site.servers[index].process
    process.terminate()
    assert await process.wait() == 0
    await scene.hold()
    await scene.site.start_server(index)


async def server_stopped(scene: Scene) -> None:
    """Frozen as a whole: only Envoy can notice, by its message time-out and its health check."""
    process = scene.rng.choice(scene.site.servers).process
    with noted(scene.excuses, "processor stopped", DUPLEX, in_flight_only=False):
        process.signal(signal.SIGSTOP)
        await scene.hold()
        process.signal(signal.SIGCONT)


async def envoy_restarted(scene: Scene) -> None:
    """Its own clients notice, of course; those that come after it is back do not."""
    gate = scene.rng.choice((BUFFERED, DUPLEX))
    with noted(scene.excuses, "Envoy restarted", gate, in_flight_only=False):
        scene.site.envoys[gate].process.kill()
        await scene.site.start_envoy(gate)
    await scene.hold()


SICK_MODES = ("error", "hang", "slow", "flap", "garbage", "cut")

OUTSIDE: tuple[Fault, ...] = (
    tokenizer_dies,
    *(sick(mode, everywhere=wide) for mode in SICK_MODES for wide in (False, True)),
    kubernetes_away,
    kubernetes_fails,
    kubernetes_lists_nothing,
    events(Spoils.CORRUPT),
    events(Spoils.SILENT),
    events(Spoils.CUT),
)
"""Of event sync, the tokenizer and Kubernetes: no request may fail by them."""

PROCESSES: tuple[Fault, ...] = (
    engine_killed,
    server_killed,
    all_servers_killed,
    server_drained,
    server_stopped,
    envoy_restarted,
)

EVERY = OUTSIDE + PROCESSES


async def play(
    site: Site, seed: str, faults: int, hold_s: tuple[float, float], excuses: list[Excuse]
) -> list[str]:
    """A sequence drawn from the seed: each kind about as often, in an order of chance.

    One at a time, but for faults from outside, which may overlap with a processor's or an
    engine's. Returns what was played.
    """
    rng = random.Random(seed)
    drawn: list[Fault] = []
    while len(drawn) < faults:
        drawn += rng.sample(EVERY, len(EVERY))
    played = []
    for fault in drawn[:faults]:
        scene = Scene(site, rng, rng.uniform(*hold_s), excuses)
        together = [fault]
        # A processor that starts while nothing is listed has no pods to keep.
        if fault in PROCESSES and rng.random() < 0.5:
            beside = [one for one in OUTSIDE if one is not kubernetes_lists_nothing]
            # Two hands on one process would get in each other's way.
            if fault is engine_killed:
                beside = [one for one in beside if "everywhere" not in one.__name__]
            together.append(rng.choice(beside))
        played.append(" + ".join(one.__name__ for one in together))
        print(f"{played[-1]} for {scene.hold_s:.1f} s", flush=True)
        await asyncio.gather(*(one(scene) for one in together))
        if fault in PROCESSES:
            await site.seen_by_all()  # else the next one may take the last that Envoy knows of
    return played
