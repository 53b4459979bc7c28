"""The pods, as the processor would learn of them: from its endpoints file or from Kubernetes.

Owns the reading of both, once. Everything is listed, not only what carries our label; what that
means is for `check_pods` and `check_manifests`.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from kubernetes import config
from kubernetes.client import ApiClient, ApiException, AppsV1Api, Configuration, CoreV1Api
from urllib3.exceptions import HTTPError

from aibrix_extproc.discovery.endpoints_file import MAX_FILE_BYTES
from aibrix_extproc.discovery.endpoints_format import BadEndpoints, parse_pods
from aibrix_extproc.discovery.kube_pages import TooLarge, check_count, read_page
from aibrix_extproc.discovery.kube_pods import Meta, PodObject, to_pod
from aibrix_extproc.discovery.kubernetes import BAD_KUBECONFIG, load_client
from aibrix_extproc.doctor.facts import KubernetesFacts, Missing, Pods, Workload
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.settings import Settings

_PAGE: Final = 500

DENIED: Final = "denied"
UNREACHABLE: Final = "unreachable"
NO_CLUSTER: Final = "no cluster"
FILE: Final = "file"


class _ListMeta(msgspec.Struct):
    next_page: str | None = msgspec.field(name="continue", default=None)


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Container(msgspec.Struct):
    command: list[str] | None = None
    args: list[str] | None = None


class _PodSpec(msgspec.Struct):
    containers: list[_Container] | None = None


class _Commands(msgspec.Struct):
    spec: _PodSpec | None = None


class _Template(msgspec.Struct):
    metadata: Meta = Meta()


class _WorkloadSpec(msgspec.Struct):
    template: _Template = msgspec.field(default_factory=_Template)


class _WorkloadObject(msgspec.Struct):
    metadata: Meta
    spec: _WorkloadSpec = msgspec.field(default_factory=_WorkloadSpec)


def read_file(settings: Settings) -> Pods | Missing:
    """The pods of AIBRIX_EXTPROC_ENDPOINTS_FILE."""
    path = Path(settings.endpoints_file)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise BadEndpoints(f"larger than {MAX_FILE_BYTES} bytes: list fewer pods in one file")
        listing = parse_pods(content.decode(), settings.kv_event_port, settings.kv_replay_port)
    except OSError as error:
        return Missing(f"{path}: {error.strerror or error}", True, FILE)
    except UnicodeDecodeError:
        return Missing(f"{path}: not UTF-8 text", True, FILE)
    except BadEndpoints as error:
        return Missing(f"{path}: {error}", True, error.about or FILE)
    return Pods(listing.pods, str(path), listing.ranks_written)


async def read_kubernetes(
    settings: Settings, timeout_s: float, kubeconfig: str = "", client: ApiClient | None = None
) -> Pods | Missing:
    """The pods and workloads of `settings.namespace`, or of all namespaces."""
    try:
        api = await asyncio.to_thread(_client, kubeconfig) if client is None else client
    except SettingsError as error:
        return Missing(str(error), True, NO_CLUSTER)
    try:
        return await asyncio.to_thread(_read, api, settings, timeout_s)
    finally:
        if client is None:
            api.close()  # type: ignore[no-untyped-call]


def _client(kubeconfig: str) -> ApiClient:
    if not kubeconfig:
        return load_client()
    configuration = Configuration()
    configuration.retries = 0
    try:
        config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except BAD_KUBECONFIG as error:
        why = " ".join(str(error).split())
        raise SettingsError(f"--kubeconfig: {kubeconfig} cannot be used: {why}") from None
    return ApiClient(configuration)


def _read(api: ApiClient, settings: Settings, timeout_s: float) -> Pods | Missing:
    where = f"namespace {settings.namespace}" if settings.namespace else "all namespaces"
    core = CoreV1Api(api)
    try:
        items = _all(
            core.list_namespaced_pod, core.list_pod_for_all_namespaces, settings, timeout_s
        )
        objects = [msgspec.json.decode(item, type=PodObject) for item in items]
        commands = {obj.key: _words(item) for obj, item in zip(objects, items, strict=True)}
    except (ApiException, HTTPError, TooLarge, msgspec.MsgspecError) as error:
        return _missing("pods", error)
    mapped = [to_pod(obj, settings.kv_event_port, settings.kv_replay_port) for obj in objects]
    problems = {
        obj.key: one.problems for obj, one in zip(objects, mapped, strict=True) if one.problems
    }
    facts = KubernetesFacts(
        tuple(objects), commands, _workloads(api, settings, timeout_s), problems
    )
    pods = tuple(sorted((m.pod for m in mapped if m.pod), key=lambda pod: pod.key))
    return Pods(pods, f"Kubernetes, {where}", kubernetes=facts)


def _workloads(
    api: ApiClient, settings: Settings, timeout_s: float
) -> tuple[Workload, ...] | Missing:
    apps = AppsV1Api(api)
    found: list[Workload] = []
    for kind, one, every in (
        ("Deployment", apps.list_namespaced_deployment, apps.list_deployment_for_all_namespaces),
        (
            "StatefulSet",
            apps.list_namespaced_stateful_set,
            apps.list_stateful_set_for_all_namespaces,
        ),
    ):
        try:
            items = _all(one, every, settings, timeout_s)
            found += [_workload(kind, item) for item in items]
        except (ApiException, HTTPError, TooLarge, msgspec.MsgspecError) as error:
            return _missing(f"{kind}s", error)
    return tuple(found)


def _all(
    one: Callable[..., Any], every: Callable[..., Any], settings: Settings, timeout_s: float
) -> list[msgspec.Raw]:
    """Every object of one kind, page after page."""
    return list(_pages(one, every, settings.namespace, timeout_s))


def _pages(
    one: Callable[..., Any], every: Callable[..., Any], namespace: str, timeout_s: float
) -> Iterator[msgspec.Raw]:
    params: dict[str, Any] = {
        "limit": _PAGE,
        "_preload_content": False,
        "_request_timeout": (timeout_s, timeout_s),
    }
    count = 0
    while True:
        response = one(namespace, **params) if namespace else every(**params)
        page = msgspec.json.decode(read_page(response), type=_List)
        for item in page.items or ():
            count += 1
            check_count(count)
            yield item
        if not page.metadata.next_page:
            return
        params["_continue"] = page.metadata.next_page


def _missing(what: str, error: Exception) -> Missing:
    if isinstance(error, ApiException) and error.status in {401, 403}:
        return Missing(f"listing {what} is refused: {error.status} {error.reason}", True, DENIED)
    if isinstance(error, ApiException) and error.status:
        return Missing(f"listing {what}: {error.status} {error.reason}", True, UNREACHABLE)
    why = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
    return Missing(f"listing {what}: {why}", True, UNREACHABLE)


def _words(item: msgspec.Raw) -> tuple[str, ...]:
    spec = msgspec.json.decode(item, type=_Commands).spec
    containers = (spec.containers if spec else None) or ()
    return tuple(word for c in containers for word in (*(c.command or ()), *(c.args or ())))


def _workload(kind: str, item: msgspec.Raw) -> Workload:
    obj = msgspec.json.decode(item, type=_WorkloadObject)
    return Workload(
        kind,
        f"{obj.metadata.namespace}/{obj.metadata.name}",
        obj.metadata.labels or {},
        obj.spec.template.metadata.labels or {},
    )
