"""Everything that can fail, as processes of its own: engines, a tokenizer, two processors, two
Envoys; and in this process the Kubernetes API and relays in front of the engines' event ports.

`faults` says what is done to it, `load` what is asked of it meanwhile.
"""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from aibrix_extproc.settings import BodyMode
from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.envoy_config import OVERRIDE_HOST
from aibrix_extproc.stack.processes import Process, Processes, free_port
from aibrix_extproc.stack.start import Envoy, Server, start_envoy, start_server
from tests.e2e.relay import Relay
from tests.envoy_binary import envoy_path
from tests.fake_kube import FakeKube, kube_pod, kubeconfig
from tests.support import eventually_async

_SICK_ENGINE: Final = Path(__file__).with_name("sick_engine.py")
# Event ports are named by the pods, so that they lead through the relays: not /kv_event_sources.
_VERSION: Final = "0.30.0"
BUFFERED: Final = BodyMode.BUFFERED.value
DUPLEX: Final = BodyMode.DUPLEX.value


@dataclass
class SickEngine:
    """One engine process on ports that it keeps; `tokenizer` has no events."""

    name: str
    fields: dict[str, Any]
    process: Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.fields['port']}"


@dataclass
class Site:
    """What runs, with the means to start it again."""

    processes: Processes
    session: aiohttp.ClientSession
    kube: FakeKube
    rng: random.Random
    environment: dict[str, str]
    tokenizer: SickEngine
    health_interval_s: float
    """How often Envoy asks each processor."""
    engines: list[SickEngine] = field(default_factory=list)
    relays: list[Relay] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    envoys: dict[str, Envoy] = field(default_factory=dict)
    _configs: dict[str, envoy_config.Config] = field(default_factory=dict)

    # -- starting again -----------------------------------------------------------------------

    async def start_engine(self, engine: SickEngine) -> None:
        engine.process = _spawn(self.processes, engine.name, engine.fields)
        await engine.process.first_line()

    async def start_server(self, index: int) -> None:
        old = self.servers[index]
        addresses = {
            "AIBRIX_EXTPROC_GRPC_ADDRESS": old.grpc_address,
            "AIBRIX_EXTPROC_ADMIN_ADDRESS": old.admin_url.removeprefix("http://"),
        }
        variables = self.environment | addresses
        self.servers[index] = await start_server(
            self.processes, self.session, variables, old.process.name, "healthz"
        )

    async def start_envoy(self, gate: str) -> None:
        name = f"envoy-{gate}"
        self.envoys[gate] = await start_envoy(
            self.processes, self.session, envoy_path(), self._configs[gate], name
        )

    async def sicken(self, engine: SickEngine, mode: str) -> None:
        async with self.session.post(f"{engine.url}/sick", params={"mode": mode}) as reply:
            assert reply.status == 200

    # -- looking ------------------------------------------------------------------------------

    async def metrics(self, server: int) -> str:
        async with self.session.get(f"{self.servers[server].admin_url}/metrics") as reply:
            return await reply.text()

    async def counted(self, server: int, name: str, label: str) -> dict[str, float]:
        """The samples of a metric of one label, by its value."""
        found = {}
        for line in (await self.metrics(server)).splitlines():
            if line.startswith(f'{name}{{{label}="'):
                series, _, value = line.rpartition(" ")
                found[series.split('"')[1]] = float(value)
        return found

    async def picks_with_matches(self, gate: str, server: int) -> bool:
        """A prompt that is asked twice is picked, and its prefix found, by a gate."""
        words = f"again {self.rng.getrandbits(40)} " + " ".join(f"w{n}" for n in range(80))
        body = {"model": "tiny", "prompt": words, "max_tokens": 2}
        url = f"{self.envoys[gate].url}/v1/completions"
        matched = "0"
        for _ in range(2):
            async with self.session.post(url, json=body) as reply:
                await reply.read()
                matched = reply.headers.get("x-aibrix-matched-tokens", "0")
        return int(matched) > 0

    async def states(self, server: int) -> set[str]:
        """The states of all sources, by the metric that shows them."""
        lines = (await self.metrics(server)).splitlines()
        mine = [line for line in lines if line.startswith("aibrix_kv_source_state{")]
        return {line.split('state="')[1].split('"')[0] for line in mine if line.endswith(" 1.0")}

    async def seen_by_all(self) -> None:
        """Wait until each Envoy knows each processor to be healthy, by checks of now.

        What it knew before counts for two more checks: a processor that came back within them may
        be taken for healthy, and then for dead.
        """
        await asyncio.sleep(2.5 * self.health_interval_s)
        for envoy in self.envoys.values():
            url = f"{envoy.admin_url}/stats?filter=cluster.ext_proc.membership_healthy"

            async def sees(url: str = url) -> bool:
                async with self.session.get(url) as reply:
                    return (await reply.text()).strip().endswith(f": {len(self.servers)}")

            await eventually_async(sees, timeout_s=30)

    async def healed(self) -> None:
        """Wait until all is as if nothing had been."""
        for server in range(len(self.servers)):

            async def in_step(server: int = server) -> bool:
                states = await self.states(server)
                return bool(states) and states <= {"EXACT", "PARTIAL"}

            await eventually_async(in_step, timeout_s=60)
        for gate in self.envoys:
            await eventually_async(lambda gate=gate: self.picks_with_matches(gate, 0), timeout_s=30)


def _spawn(processes: Processes, name: str, fields: Mapping[str, Any]) -> Process:
    return processes.spawn(name, [sys.executable, str(_SICK_ENGINE), json.dumps(fields)])


async def _new_engine(processes: Processes, name: str, with_events: bool) -> SickEngine:
    ports = {"kv_events_port": free_port(), "kv_replay_port": free_port()}
    fields: dict[str, Any] = {"name": name, "port": free_port(), "vllm_version": _VERSION}
    fields |= ports if with_events else dict.fromkeys(ports)
    engine = SickEngine(name, fields, _spawn(processes, name, fields))
    await engine.process.first_line()
    return engine


def _pod(engine: SickEngine, events: int, replays: int) -> dict[str, Any]:
    labels = {
        "model.aibrix.ai/name": "tiny",
        "model.aibrix.ai/port": str(engine.fields["port"]),
        "model.aibrix.ai/kv-events-enabled": "true",
    }
    ports = [
        {"name": "kv-events", "containerPort": events},
        {"name": "kv-replay", "containerPort": replays},
    ]
    return kube_pod(engine.name, uid=engine.name, ip="127.0.0.1", labels=labels, ports=ports)


def _environment(folder: Path, kube: FakeKube, tokenizer: SickEngine) -> dict[str, str]:
    return {
        "KUBECONFIG": str(kubeconfig(folder, kube.url)),
        "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
        "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
        "AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT": tokenizer.url,
        "AIBRIX_EXTPROC_DEBUG_HEADERS": "true",
        "AIBRIX_EXTPROC_PRE_STOP_DELAY": "2500ms",
        "AIBRIX_EXTPROC_TOKENIZER_BREAKER_COOLDOWN": "1s",
        "AIBRIX_EXTPROC_TOKENIZER_RENDER": "false",
    }


@asynccontextmanager
async def running_site(
    rng: random.Random, engines: int = 2, servers: int = 2, health_interval_s: float = 1.0
) -> AsyncIterator[Site]:
    """All of it, healthy. The Envoy files are the shipped ones, whose interval is 1 s."""
    async with AsyncExitStack() as stack:
        processes = stack.enter_context(Processes())
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        kube = FakeKube().start()
        stack.callback(kube.stop)
        names = [f"engine-{number}" for number in range(engines)]
        tokenizer, *fleet = await asyncio.gather(
            _new_engine(processes, "tokenizer", with_events=False),
            *(_new_engine(processes, name, with_events=True) for name in names),
        )
        environment = _environment(processes.folder, kube, tokenizer)
        site = Site(processes, session, kube, rng, environment, tokenizer, health_interval_s)
        for engine in fleet:
            site.engines.append(engine)
            ports = (engine.fields["kv_events_port"], engine.fields["kv_replay_port"])
            relays = [await stack.enter_async_context(Relay(port, rng)) for port in ports]
            site.relays += relays
            kube.apply(_pod(engine, *(relay.port for relay in relays)))
        site.servers += await asyncio.gather(
            *(
                start_server(processes, session, environment, f"serve-{number}")
                for number in range(servers)
            )
        )
        for mode in BodyMode:
            site._configs[mode.value] = _config(site, mode)
        await asyncio.gather(*(site.start_envoy(mode.value) for mode in BodyMode))
        await site.seen_by_all()
        await site.healed()
        yield site


def _config(site: Site, mode: BodyMode) -> envoy_config.Config:
    config = envoy_config.render(
        envoy_config.shipped(OVERRIDE_HOST),
        listen=f"127.0.0.1:{free_port()}",
        admin="127.0.0.1:0",
        extproc_addresses=[server.grpc_address for server in site.servers],
        engine_addresses=[engine.url.removeprefix("http://") for engine in site.engines],
        body_mode=mode,
    )
    clusters = config["static_resources"]["clusters"]
    check = next(c for c in clusters if c["name"] == "ext_proc")["health_checks"][0]
    interval = f"{site.health_interval_s:g}s"
    check |= {"interval": interval, "no_traffic_interval": interval}
    return config
