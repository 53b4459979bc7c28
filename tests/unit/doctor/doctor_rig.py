"""Set-ups for doctor to look at: fake engines over real HTTP and ZMQ, an endpoints file, an Envoy.

What is examined is what an operator would be told, so tests compare codes.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web
from kubernetes.client import ApiClient, Configuration

from aibrix_extproc.discovery.pods import KV_EVENTS_LABEL, MODEL_LABEL, PORT_LABEL
from aibrix_extproc.doctor.catalog import run_checks
from aibrix_extproc.doctor.collect import Asked, collect
from aibrix_extproc.doctor.findings import Finding, Severity
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.fakes.tokenizer import Tokenizer
from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.stack.start import start_envoy
from tests.envoy_binary import envoy_path
from tests.fake_kube import FakeKube, kube_pod

BAD = (Severity.RED, Severity.YELLOW)

SYNC = {
    "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
    "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
    # A tokenizer on a busy machine is not what these tests are about.
    "AIBRIX_EXTPROC_DECISION_TIMEOUT": "5s",
}
QUICK: dict[str, Any] = {"timeout_s": 2.0, "listen_s": 0.05}


def told(findings: Sequence[Finding]) -> dict[str, Severity]:
    """Code → severity of all that is not right."""
    return {f.code: f.severity for f in findings if f.severity in BAD}


def unskipped(findings: Sequence[Finding]) -> set[str]:
    """The areas of which something was looked at."""
    return {str(f.area) for f in findings if f.severity is not Severity.SKIPPED}


@dataclass
class Site:
    """Engines, and what an operator has written down about them."""

    folder: Path
    engines: list[FakeEngine]
    environment: dict[str, str] = field(default_factory=lambda: dict(SYNC))
    pods: list[dict[str, Any]] = field(default_factory=list)
    """Entries of the endpoints file; right ones at first."""

    async def examine(self, **asked: Any) -> list[Finding]:
        """What doctor says of it."""
        path = self.folder / "pods.yaml"
        path.write_text(yaml.safe_dump({"pods": self.pods}))
        environment = {"AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path), **self.environment}
        return run_checks(await collect(Asked(**(QUICK | asked)), environment))

    async def complete(self, number: int = 0, prompt: str = "one two three " * 40) -> None:
        """A completion, straight to an engine."""
        engine = self.engines[number]
        body = {"model": engine.config.model, "prompt": prompt, "max_tokens": 1}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{engine.address}/v1/completions", json=body) as reply,
        ):
            assert reply.status == 200, await reply.text()


def entry(engine: FakeEngine) -> dict[str, Any]:
    """The right entry of an engine in an endpoints file."""
    replay = engine.replay_ports[0] if engine.replay_ports else None
    return {
        "name": engine.config.name,
        "model": engine.config.model,
        "address": engine.address,
        "ranks": engine.config.data_parallel_size,
        "kv_events": {"port": engine.event_ports[0], "replay_port": replay}
        if engine.event_ports
        else True,
    }


@asynccontextmanager
async def site(
    folder: Path, *engines: Mapping[str, Any], tokenizers: Sequence[Tokenizer | None] = ()
) -> AsyncIterator[Site]:
    """One engine for each mapping of options (two where none is given)."""
    options = list(engines) or [{}, {}]
    brains = [*tokenizers, *[None] * (len(options) - len(tokenizers))]
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(
                FakeEngine(EngineConfig(**{"name": f"engine-{number}", **one}), brain)
            )
            for number, (one, brain) in enumerate(zip(options, brains, strict=True))
        ]
        yield Site(folder, started, pods=[entry(engine) for engine in started])


@asynccontextmanager
async def http_engine(pages: Mapping[str, Any]) -> AsyncIterator[str]:
    """A server that answers these paths: a text, or JSON; `ip:port`."""

    async def answer(request: web.Request) -> web.Response:
        page = pages.get(request.path)
        if page is None:
            raise web.HTTPNotFound()
        if isinstance(page, int):
            return web.Response(status=page)
        return web.Response(text=page) if isinstance(page, str) else web.json_response(page)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# -- Kubernetes -----------------------------------------------------------------------------------


def engine_pod(engine: FakeEngine, **changes: Any) -> dict[str, Any]:
    """The right pod of an engine. `labels`, `annotations` and `ports` are merged, None removes;
    `args` are the container's; the rest goes to `kube_pod`."""
    labels = {
        MODEL_LABEL: engine.config.model,
        PORT_LABEL: engine.address.rpartition(":")[2],
        KV_EVENTS_LABEL: "true",
    } | changes.pop("labels", {})
    ports = {
        "kv-events": engine.event_ports[0] if engine.event_ports else 5557,
        "kv-replay": engine.replay_ports[0] if engine.replay_ports else 5558,
    } | changes.pop("ports", {})
    args = changes.pop("args", None)
    pod = kube_pod(
        engine.config.name,
        uid=engine.config.name,
        ip=changes.pop("ip", "127.0.0.1"),
        labels={key: value for key, value in labels.items() if value is not None},
        ports=[{"name": n, "containerPort": p} for n, p in ports.items() if p is not None],
        **changes,
    )
    if args is not None:
        pod["spec"]["containers"][0]["args"] = args
    return pod


def workload(labels: Mapping[str, str], template_labels: Mapping[str, str]) -> dict[str, Any]:
    """A Deployment."""
    return {
        "metadata": {"name": "llama", "namespace": "default", "labels": dict(labels)},
        "spec": {"template": {"metadata": {"labels": dict(template_labels)}}},
    }


async def examine_cluster(
    kube: FakeKube, environment: Mapping[str, str], **asked: Any
) -> list[Finding]:
    """What doctor says of the pods that an API server lists."""
    configuration = Configuration(host=kube.url)
    configuration.retries = 0
    client = ApiClient(configuration)
    try:
        options = Asked(kubernetes=True, **(QUICK | asked))
        return run_checks(await collect(options, environment, client))
    finally:
        client.close()


# -- Envoy ----------------------------------------------------------------------------------------


async def real_dump(name: str, **options: Any) -> str:
    """What a real Envoy answers to /config_dump?include_eds, with a shipped file or a changed one
    (`change(config)`)."""
    change = options.pop("change", None)
    config = envoy_config.render(
        envoy_config.shipped(name),
        listen="127.0.0.1:0",
        admin="127.0.0.1:0",
        extproc_addresses=["127.0.0.1:50052"],
        engine_addresses=["127.0.0.1:8000", "127.0.0.1:8001"],
        access_log="/dev/null",
        **options,
    )
    if change is not None:
        change(config)
    async with aiohttp.ClientSession() as session:
        with Processes() as processes:
            envoy = await start_envoy(processes, session, envoy_path(), config)
            async with session.get(f"{envoy.admin_url}/config_dump?include_eds") as reply:
                return await reply.text()


async def examine_dump(
    folder: Path, document: str | Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> list[Finding]:
    """What doctor says of an Envoy's configuration alone."""
    path = folder / "dump.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    pods = folder / "pods.yaml"
    addresses = ("127.0.0.1:8000", "127.0.0.1:8001")
    listed = [
        {"name": f"engine-{n}", "model": "tiny", "address": address, "ready": True}
        for n, address in enumerate(addresses)
    ]
    pods.write_text(yaml.safe_dump({"pods": listed}))
    found = {"AIBRIX_EXTPROC_ENDPOINTS_FILE": str(pods), **(environment or {})}
    asked = Asked(envoy_dump=str(path), timeout_s=0.2, listen_s=0.05)
    return [f for f in run_checks(await collect(asked, found)) if f.area == "envoy"]
