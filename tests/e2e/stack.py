"""A whole gateway for one test: fake engines here, real processors and a real Envoy as processes.

    async with gateway(engines=2) as stack:
        reply = await stack.chat("Hello")
        assert reply.status == 200 and reply.pod == "engine-0"

The Envoy files are the shipped ones. Everything has free ports of its own and is gone at the end,
whatever the test did to it; after a failure the processes' logs are named in the exception.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.settings import BodyMode
from aibrix_extproc.stack import envoy_config, scrape
from aibrix_extproc.stack.envoy_config import OVERRIDE_HOST, PickSource
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.stack.start import Envoy, Server, start_envoy, start_server, write_endpoints
from tests.envoy_binary import envoy_path

EVENT_SYNC = {
    "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
    "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
}
"""What `environment` adds to; a test that wants sync off sets these to `false`."""

DEFAULTS = {
    **EVENT_SYNC,
    # So that a test sees pod, strategy and matched tokens in the answer.
    "AIBRIX_EXTPROC_DEBUG_HEADERS": "true",
    # Tests that compare matched tokens with the engine's own count need every prompt tokenized
    # first: a known prefix is a lower bound. test_e2e_conversations.py has it on.
    "AIBRIX_EXTPROC_CONVERSATION_CACHE": "false",
    "AIBRIX_EXTPROC_LOG_LEVEL": "DEBUG",
}


@dataclass(frozen=True)
class Reply:
    """An answer as a client sees it. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def pod(self) -> str | None:
        """The engine that answered, by its own word; None: no engine did."""
        return self.headers.get("x-fake-pod")

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        found: dict[str, Any] = self.json()["error"]
        return found

    @property
    def cached_tokens(self) -> int:
        """What the engine says it reused; of a whole answer or a stream with usage."""
        if "event-stream" in self.headers.get("content-type", ""):
            chunks = [json.loads(data) for data in self.events() if data != "[DONE]"]
            usage = next(chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage"))
        else:
            usage = self.json()["usage"]
        return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    def events(self) -> list[str]:
        """The data of each server-sent event."""
        lines = self.body.decode().splitlines()
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


@dataclass
class Stack:
    """What `gateway` started. Engines are in this process: look into `engine.ranks`, or close
    one to make its pod go away. `servers[n].process.kill()` ends a processor.
    """

    engines: list[FakeEngine]
    servers: list[Server]
    envoy: Envoy
    session: aiohttp.ClientSession
    processes: Processes
    endpoints_path: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Envoy's, for clients."""
        return self.envoy.url

    @property
    def admin_url(self) -> str:
        """Of the first processor."""
        return self.servers[0].admin_url

    def endpoint(self, index: int, **changes: Any) -> dict[str, Any]:
        """The entry of an engine in the endpoints file, with other or more fields."""
        return endpoint(self.engines[index]) | changes

    def list_pods(self, *pods: Mapping[str, Any]) -> None:
        """Replace the endpoints file; the processors see it as soon as they look again."""
        write_endpoints(self.endpoints_path, pods)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request through Envoy, with a JSON `body` or raw `data`. Raises aiohttp's errors."""
        async with self.session.request(
            method, self.url + path, json=body, data=data, headers=headers
        ) as reply:
            content = await reply.read()
            names = {name.lower(): value for name, value in reply.headers.items()}
            return Reply(reply.status, names, content)

    async def chat(
        self,
        content: str | Sequence[Mapping[str, Any]],
        *,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Reply:
        """A chat of one user message, or of these messages; `fields` go into the body."""
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        body = {"model": self._model(), "messages": messages, "max_tokens": 4} | fields
        return await self.request("POST", "/v1/chat/completions", body=body, headers=headers)

    async def complete(
        self, prompt: Any, *, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> Reply:
        """A completion; `fields` go into the body."""
        body = {"model": self._model(), "prompt": prompt, "max_tokens": 4} | fields
        return await self.request("POST", "/v1/completions", body=body, headers=headers)

    async def admin(self, path: str, server: int = 0) -> Any:
        """The JSON of a processor's admin page, whatever its status."""
        async with self.session.get(self.servers[server].admin_url + path) as reply:
            return await reply.json(content_type=None)

    async def debug(self, path: str, server: int = 0) -> Any:
        """The JSON of a processor's debug page, whatever its status."""
        async with self.session.get(self.servers[server].debug_url + path) as reply:
            return await reply.json(content_type=None)

    async def metrics(self, server: int = 0) -> scrape.Samples:
        """A processor's metrics by name, summed over labels."""
        return await scrape.samples(self.session, f"{self.servers[server].admin_url}/metrics")

    async def envoy_stats(self, pattern: str) -> dict[str, int]:
        """Envoy's counters and gauges whose names match a regular expression."""
        url = f"{self.envoy.admin_url}/stats?format=json&filter={pattern}"
        async with self.session.get(url) as reply:
            stats = (await reply.json(content_type=None))["stats"]
        return {stat["name"]: stat["value"] for stat in stats if "name" in stat}

    async def start_server(self, index: int, wait_for: str = "readyz") -> Server:
        """Start a processor again on its ports, after its process has ended."""
        old = self.servers[index]
        self.servers[index] = await start_server(
            self.processes,
            self.session,
            self.environment | old.addresses,
            old.process.name,
            wait_for,
        )
        return self.servers[index]

    async def add_server(self, environment: Mapping[str, str], *arguments: str) -> Server:
        """Start one more processor, which Envoy does not know; it stands last in `servers`."""
        self.servers.append(
            await start_server(
                self.processes,
                self.session,
                self.environment | dict(environment),
                f"serve-{len(self.servers)}",
                arguments=arguments,
            )
        )
        return self.servers[-1]

    async def start_engine(self, index: int) -> FakeEngine:
        """Start an engine again on its ports, with an empty cache, after it was closed."""
        old = self.engines[index]
        self.engines[index] = await FakeEngine(old.config).start()
        return self.engines[index]

    def _model(self) -> str:
        return self.engines[0].config.model if self.engines else "tiny"


def endpoint(engine: FakeEngine) -> dict[str, Any]:
    """An engine's entry in the endpoints file; the label `pod` is its name."""
    config = engine.config
    entry: dict[str, Any] = {
        "name": config.name,
        "model": config.model,
        "address": engine.address,
        "labels": {"pod": config.name},
        "adapters": list(config.adapters),
        "ranks": config.data_parallel_size,
    }
    if engine.event_ports:
        replay = engine.replay_ports[0] if engine.replay_ports else None
        entry["kv_events"] = {"port": engine.event_ports[0], "replay_port": replay}
    return entry


@asynccontextmanager
async def gateway(
    *,
    engines: int | Sequence[EngineConfig] = 2,
    servers: int = 1,
    environment: Mapping[str, str] | None = None,
    template: str = OVERRIDE_HOST,
    body_mode: BodyMode = BodyMode.BUFFERED,
    failure_mode_allow: bool | None = None,
    message_timeout_s: float | None = None,
    pick_source: PickSource = PickSource.HEADER,
    listed: bool = True,
    wait_for: str = "readyz",
    edit: Callable[[envoy_config.Config], None] | None = None,
) -> AsyncIterator[Stack]:
    """Engines, processors and Envoy, all ready.

    `engines`: a number (named `engine-0` and on), or configurations. `environment` is added to
    `DEFAULTS`. `listed=False` starts with an empty endpoints file; `wait_for="healthz"` does not
    wait until the processors are ready. `edit` changes Envoy's configuration further. The rest is
    `envoy_config.render`'s.
    """
    async with AsyncExitStack() as stack:
        processes = stack.enter_context(Processes())
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        started: list[FakeEngine] = []
        stack.push_async_callback(_close, started)
        for config in _configs(engines):
            started.append(FakeEngine(config))
            await started[-1].start()
        # An engine that is started again must have the ports that the files name.
        for engine in started:
            engine.config = _with_ports(engine)
        path = processes.folder / "endpoints.yaml"
        write_endpoints(path, [endpoint(engine) for engine in started] if listed else [])
        variables = {**DEFAULTS, "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path), **(environment or {})}
        replicas = [
            await start_server(processes, session, variables, f"serve-{number}", wait_for)
            for number in range(servers)
        ]
        config = envoy_config.render(
            envoy_config.shipped(template),
            listen="127.0.0.1:0",
            admin="127.0.0.1:0",
            extproc_addresses=[server.grpc_address for server in replicas],
            engine_addresses=[engine.address for engine in started],
            body_mode=body_mode,
            failure_mode_allow=failure_mode_allow,
            message_timeout_s=message_timeout_s,
            pick_source=pick_source,
        )
        if edit is not None:
            edit(config)
        envoy = await start_envoy(processes, session, envoy_path(), config)
        yield Stack(started, replicas, envoy, session, processes, path, variables)


def _configs(engines: int | Sequence[EngineConfig]) -> Sequence[EngineConfig]:
    if isinstance(engines, int):
        return [EngineConfig(name=f"engine-{number}") for number in range(engines)]
    return engines


def _with_ports(engine: FakeEngine) -> EngineConfig:
    return replace(
        engine.config,
        port=int(engine.address.rpartition(":")[2]),
        kv_events_port=engine.event_ports[0] if engine.event_ports else None,
        kv_replay_port=engine.replay_ports[0] if engine.replay_ports else None,
    )


async def _close(engines: Sequence[FakeEngine]) -> None:
    for engine in engines:
        await engine.close()
