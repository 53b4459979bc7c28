"""All facts of a set-up, collected once.

Owns the order, and which parts are asked for at all. Each part has its own collector.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import zmq
from kubernetes.client import ApiClient

from aibrix_extproc.doctor import collect_envoy
from aibrix_extproc.doctor.calls import Caller
from aibrix_extproc.doctor.collect_engines import ask_endpoint, ask_engines
from aibrix_extproc.doctor.collect_environment import read_environment
from aibrix_extproc.doctor.collect_pods import NO_CLUSTER, read_file, read_kubernetes
from aibrix_extproc.doctor.collect_server import read_server
from aibrix_extproc.doctor.collect_streams import look_at_streams
from aibrix_extproc.doctor.facts import (
    Engine,
    Environment,
    EnvoyFacts,
    Facts,
    Missing,
    Pods,
    Probed,
    ServerFacts,
    Stream,
    TokenizerEndpoint,
)
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.kvevents.sockets import LinkOptions, link_options
from aibrix_extproc.settings import Settings, variables

_MAX_MODELS = 20
"""Models that the tokenizer endpoint is asked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the operator wants looked at. Empty texts: nothing."""

    kubernetes: bool = False
    """The cluster, although an endpoints file is set."""
    namespace: str = ""
    kubeconfig: str = ""
    envoy_admin: str = ""
    envoy_dump: str = ""
    server: str = ""
    debug: str = ""
    probe: bool = False
    timeout_s: float = 3.0
    listen_s: float = 1.0


async def collect(
    asked: Asked,
    environment: Mapping[str, str] | None = None,
    client: ApiClient | None = None,
) -> Facts:
    """Everything. `environment` default: this process's; `client`: of the API server."""
    read = read_environment(environment)
    async with Caller(asked.timeout_s) as caller:
        pods, envoy, server = await asyncio.gather(
            _pods(asked, read, client), _envoy(asked, caller), _server(asked, caller)
        )
        if isinstance(pods, Missing):
            why = Missing(f"the pods are not known: {pods.why}")
            return Facts(read, pods, why, why, why, why, envoy, server)
        engines = await ask_engines(caller, pods, read.settings)
        endpoints, (streams, probed) = await asyncio.gather(
            _endpoints(caller, read.settings, engines),
            _streams(asked, caller, read.settings, engines),
        )
    return Facts(read, pods, engines, streams, endpoints, probed, envoy, server)


async def _pods(asked: Asked, environment: Environment, client: ApiClient | None) -> Pods | Missing:
    settings = environment.settings
    if asked.namespace:
        settings = settings.model_copy(update={"namespace": asked.namespace})
    if settings.endpoints_file and not asked.kubernetes:
        return await asyncio.to_thread(read_file, settings)
    found = await read_kubernetes(settings, asked.timeout_s, asked.kubeconfig, client)
    other = asked.envoy_admin or asked.envoy_dump or asked.server or asked.debug
    if isinstance(found, Missing) and found.kind == NO_CLUSTER and not asked.kubernetes and other:
        set_here = any(environment.variables.get(name) for name in variables())
        if not set_here:  # only Envoy or a server was to be looked at
            return Missing("no variable of ours is set, and no cluster is configured")
    return found


async def _envoy(asked: Asked, caller: Caller) -> EnvoyFacts | Missing:
    if asked.envoy_dump:
        return await collect_envoy.from_file(asked.envoy_dump)
    if asked.envoy_admin:
        return await collect_envoy.from_admin(caller, asked.envoy_admin)
    return Missing("neither --envoy-admin nor --envoy-config-dump was given")


async def _server(asked: Asked, caller: Caller) -> ServerFacts | Missing:
    if not asked.server and not asked.debug:
        return Missing("neither --server nor --debug was given")
    return await read_server(caller, asked.server, asked.debug)


async def _endpoints(
    caller: Caller, settings: Settings, engines: tuple[Engine, ...]
) -> tuple[TokenizerEndpoint, ...] | Missing:
    if not settings.use_remote_tokenizer or not settings.tokenizer_endpoint:
        return Missing("no tokenizer endpoint is set")
    models = sorted({engine.declared.model for engine in engines})[:_MAX_MODELS]
    return await ask_endpoint(caller, settings, models)


async def _streams(
    asked: Asked, caller: Caller, settings: Settings, engines: tuple[Engine, ...]
) -> tuple[tuple[Stream, ...] | Missing, tuple[Probed, ...] | Missing]:
    if not settings.kv_event_sync:
        off = Missing("AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED is not true")
        return off, off
    try:
        streams, probed = await look_at_streams(
            caller, engines, settings, _options(settings), asked.listen_s, asked.probe
        )
    except zmq.ZMQError as error:
        failed = Missing(f"no ZMQ socket can be opened: {error}")
        return failed, failed
    if not asked.probe:
        return streams, Missing("--probe was not given: no completion was sent")
    if not probed:
        return streams, Missing("no pod's events can be heard")
    return streams, probed


def _options(settings: Settings) -> LinkOptions:
    """The server's own; without keys where those cannot be used, which `check_variables` tells."""
    try:
        return link_options(settings)
    except SettingsError:
        return LinkOptions(settings.kv_heartbeat_s, settings.kv_max_message_bytes)
