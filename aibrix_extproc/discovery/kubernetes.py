"""Pods from Kubernetes: a thread that lists and watches, and its way to the registry.

Owns the thread, the API client's configuration and the step from objects to `Pod`s. `kube_watch`
owns the conversation with the API server, `kube_pods` the meaning of an object. While the API
server is away the last known pods stay.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import yaml
from kubernetes import config
from kubernetes.client import ApiClient, Configuration

from aibrix_extproc.discovery.kube_pods import PodObject, to_pod
from aibrix_extproc.discovery.kube_watch import USUAL, PodWatch, Timing
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

log = logging.getLogger(__name__)

BAD_KUBECONFIG: Final = (
    config.ConfigException,
    yaml.YAMLError,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
)
"""What the client's reader raises for a file that is missing, or is none."""
_JOIN_S: Final = 2.0
_FAULT_PAUSE_S: Final = 1.0


class KubernetesPods:
    """Keeps the registry in step with the pods that carry the label `model.aibrix.ai/name`.

    Also the sink of its `PodWatch`: those methods run in the watch's thread, map the objects
    there and post the result to the event loop, in order.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        api_client: ApiClient | None = None,
        timing: Timing = USUAL,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._api_client = api_client
        self._own_client = api_client is None
        self._timing = timing
        self._states = StateLog(log)
        self._problems: dict[str, tuple[str, ...]] = {}
        self._keys: set[str] = set()
        self._empty_since: float | None = None
        """When the listings without any pod began."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: PodWatch | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    async def start(self) -> None:
        """Begin to list and watch. Raises SettingsError where no cluster is configured."""
        self._loop = asyncio.get_running_loop()
        if self._api_client is None:
            self._api_client = await asyncio.to_thread(load_client)
        self._watch = PodWatch(self._api_client, self._settings.namespace, self, self._timing)
        self._thread = threading.Thread(target=self._run, name="kubernetes-pods", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop; no change reaches the registry after this. Safe where it was never started."""
        self._closed.set()
        if self._watch is None or self._thread is None:
            return
        self._watch.stop()
        await asyncio.to_thread(self._thread.join, _JOIN_S)
        if self._own_client and self._api_client is not None:
            self._api_client.close()  # type: ignore[no-untyped-call]

    def _run(self) -> None:
        assert self._watch is not None  # noqa: S101 - set before the thread starts
        while not self._closed.is_set():
            try:
                self._watch.run()
            except Exception as error:  # a fault of ours must not end discovery
                self.trouble("kubernetes_fault", repr(error))
                log.exception("the watch of pods failed")
                self._closed.wait(_FAULT_PAUSE_S)

    # -- PodSink, in the watch's thread -------------------------------------------------------

    def listed(self, pods: list[PodObject]) -> bool:
        """Post a complete listing.

        One that suddenly has no pod is believed when it goes on for the grace: an API server that
        lost its data, or its cache, must not take a whole fleet away.
        """
        if not pods and self._keys and not self._empty_for_long():
            return False
        self._empty_since = None
        here = {pod.key for pod in pods}
        self._keys = here
        for key in self._problems.keys() - here:
            del self._problems[key]
        mapped = [pod for pod in map(self._map, pods) if pod is not None]
        self._post(self._registry.replace, mapped)
        return True

    def _empty_for_long(self) -> bool:
        now = time.monotonic()
        if self._empty_since is None:
            self._empty_since = now
        return now - self._empty_since >= self._settings.empty_listing_grace_s

    def changed(self, pod: PodObject) -> None:
        """Post one pod; a pod that is none (no IP yet, ended) is removed."""
        mapped = self._map(pod)
        self._keys.add(pod.key)
        if mapped is None:
            self._post(self._registry.remove, pod.key)
        else:
            self._post(self._registry.upsert, mapped)

    def deleted(self, pod: PodObject) -> None:
        """Post a removal."""
        self._problems.pop(pod.key, None)
        self._keys.discard(pod.key)
        self._post(self._registry.remove, pod.key)

    def healthy(self) -> None:
        """Say so, if it was not before."""
        self._states.changed("the Kubernetes API", "ok")

    def trouble(self, reason: str, why: str) -> None:
        """Count a failure; the pods stay as they are."""
        self._metrics.discovery_errors.labels(reason).inc()
        if reason != "kubernetes_expired":  # an ordinary turn: a new listing follows
            self._states.changed("the Kubernetes API", reason, why)

    def unreadable(self, why: str) -> None:
        """Count an object that is left out."""
        self._metrics.discovery_errors.labels("kubernetes_object").inc()
        log.warning("a pod object cannot be read and is left out: %s", why)

    def _map(self, obj: PodObject) -> Pod | None:
        mapped = to_pod(obj, self._settings.kv_event_port, self._settings.kv_replay_port)
        self._note(obj.key, mapped.problems)
        return mapped.pod

    def _note(self, key: str, problems: tuple[str, ...]) -> None:
        """Log each problem of a pod once, and again only after it was gone."""
        for problem in problems:
            if problem not in self._problems.get(key, ()):
                self._metrics.discovery_errors.labels("kubernetes_pod").inc()
                log.error("pod %s: %s", key, problem)
        if problems:
            self._problems[key] = problems
        else:
            self._problems.pop(key, None)

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None  # noqa: S101 - set by start
        try:
            self._loop.call_soon_threadsafe(self._apply, call, *args)
        except RuntimeError:  # the loop is closed
            self._closed.set()

    def _apply(self, call: Callable[..., None], *args: Any) -> None:
        if not self._closed.is_set():
            call(*args)


def load_client() -> ApiClient:
    """The API client of the pod's service account, else of the kubeconfig.

    Raises SettingsError where there is neither.
    """
    configuration = Configuration()
    configuration.retries = 0  # the loop has its own, with back-off
    try:
        config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException as outside:
        try:
            config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except BAD_KUBECONFIG as error:
            why = " ".join(str(error).split())
            raise SettingsError(
                f"no Kubernetes to watch: {outside} {why} Run in a cluster, set KUBECONFIG, or "
                "list the pods in a file and set AIBRIX_EXTPROC_ENDPOINTS_FILE"
            ) from None
    return ApiClient(configuration)
