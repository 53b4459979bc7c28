"""Builds the parts, starts them in two stages, drains and stops them.

Stage one is state: pods, index, tokenizer, ledger, the gRPC service and the two HTTP ports. Stage
two is event sync, which needs the pods. Owns the order and nothing else: what a part does is
written in its room.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Mapping

import grpc

from aibrix_extproc import __version__, background, collector, logs
from aibrix_extproc.admin.agreement import AgreementPages
from aibrix_extproc.admin.debug import DebugServer
from aibrix_extproc.admin.decision_pages import DecisionPages
from aibrix_extproc.admin.insight import InsightPages
from aibrix_extproc.admin.lever_pages import LeverPages
from aibrix_extproc.admin.live.hub import Hub
from aibrix_extproc.admin.live.pages import LivePages
from aibrix_extproc.admin.live.sight import Sight
from aibrix_extproc.admin.peers import PeerServer
from aibrix_extproc.admin.server import AdminServer
from aibrix_extproc.admin.snapshot_page import SnapshotPage
from aibrix_extproc.agreement.service import AgreementService
from aibrix_extproc.decide import Decider
from aibrix_extproc.discovery.endpoints_file import EndpointsFile
from aibrix_extproc.discovery.kubernetes import KubernetesPods
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.probe import Probe
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import SettingsError, UnknownStrategy
from aibrix_extproc.extproc.drain import drain
from aibrix_extproc.extproc.health import Health
from aibrix_extproc.extproc.service import Processor, listen, make_server
from aibrix_extproc.extproc.tls import Certificates
from aibrix_extproc.extproc.watchdog import Watchdog
from aibrix_extproc.file_limit import raise_file_limit
from aibrix_extproc.index import Backend, BackendMissing, PrefixIndex, open_index
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.kvusage.poll import UsagePoll
from aibrix_extproc.levers import LeverBoard
from aibrix_extproc.metric_process import watch_process
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.cache_use import CacheUse
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.strategies import STRATEGIES
from aibrix_extproc.routing.strategies.inputs import lacking
from aibrix_extproc.settings import IndexBackend, Settings
from aibrix_extproc.snapshot import Snapshots
from aibrix_extproc.tokenizer.pool import TokenizerPool

log = logging.getLogger(__name__)

_READINESS_POLL_S = 0.1


class App:
    """The server as one object: `start`, then `drain` and `stop`, or `run` for all of it."""

    def __init__(self, settings: Settings, from_peer: str = "") -> None:
        """Build every part; nothing is opened yet. `from_peer`: URL of a running replica's peers'
        or debug port, whose index is taken over. Raises SettingsError."""
        self.settings = settings
        self.metrics = Metrics(max_model_labels=settings.max_model_labels)
        watch_process(self.metrics.registry)
        logs.throttle.on_dropped = self.metrics.log_lines_dropped.inc
        self.registry = Registry(self.metrics, settings.max_sources, settings.max_models)
        self.index_backend, self.index = self._open_index()
        self.predictions = Predictions(settings.prediction_max_blocks)
        self.ledger = Ledger(settings.reservation_limit_s, settings.max_reservations)
        self.manager = SourceManager(
            self.index,
            settings,
            self.metrics,
            self._emptied,
            self._removed,
            self._new_engine,
        )
        self.tokenizer = TokenizerPool(settings, self.metrics)
        self.levers = LeverBoard(settings, self.metrics, self.registry, self.manager)
        self.caches = CacheUse()
        self.decider = self._decider()
        self.agreement = self._agreement()
        self.certificates = Certificates(settings, self.metrics) if settings.grpc_tls_cert else None
        self.health = Health()
        self.processor = Processor(settings, self.metrics, self.decider)
        self.admin = AdminServer(
            settings=settings,
            metrics=self.metrics,
            registry=self.registry,
            index=self.index,
            readiness=self.readiness,
            index_backend=self.index_backend,
        )
        self.snapshots = Snapshots(settings, self.metrics, self.index, self.manager, from_peer)
        self._snapshot_page = SnapshotPage(self.snapshots)
        self.live = Hub(self._sight(), self.metrics)
        self.debug = self._debug_server()
        self.peers = PeerServer(settings, self._snapshot_page)
        self.probe = Probe(self.registry, settings, self.metrics)
        self.usage = self._usage_poll()
        self.watchdog = Watchdog(settings.watchdog_timeout_s, self.metrics)
        self.discovery = self._discovery()
        self.registry.subscribe(self.manager.on_pod)
        self.registry.subscribe(self.levers.on_pod)
        self.registry.subscribe(self._show_indexer)
        self.registry.subscribe(self._forget_series)
        self._ready_by = time.monotonic() + settings.ready_grace_s
        self._told: Mapping[str, bool] = {"pods_listed": False, "first_sync_done": False}
        """What held when gRPC health was last told."""
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._server: grpc.aio.Server | None = None

    def _emptied(self, source: int) -> None:
        """What a source held is void: what was predicted of it, and what its events were to
        confirm. From any thread."""
        self.predictions.drop(source)
        self.decider.agreement.emptied(source)

    def _removed(self, source: int) -> None:
        """A source is gone, and what it was sent with it."""
        self.ledger.forget(source)
        self.decider.gate.forget(source)

    def _new_engine(self, pod: str) -> None:
        """The engine of a pod is another one, or may be. From any thread."""
        self.agreement.new_engine(pod)

    def _open_index(self) -> tuple[Backend, PrefixIndex]:
        settings = self.settings
        asked = settings.kv_index_backend
        wanted = None if asked is IndexBackend.AUTO else Backend(asked)
        try:
            backend, index = open_index(
                wanted, settings.kv_index_max_bytes, settings.kv_max_orphans
            )
        except BackendMissing as error:
            raise SettingsError(f"AIBRIX_KV_INDEX_BACKEND: {error}") from None
        if wanted is None and backend is Backend.REFERENCE:
            log.warning(
                "the compiled index is not built: the one in plain Python serves, which is far "
                "slower (install where cargo is at hand, or set AIBRIX_KV_INDEX_BACKEND=reference)"
            )
        for known in Backend:
            self.metrics.index_backend_info.labels(known).set(known is backend)
        return backend, index

    def _decider(self) -> Decider:
        try:
            return Decider(
                self.settings,
                self.metrics,
                self.registry,
                self.manager,
                self.index,
                self.tokenizer,
                self.ledger,
                self.predictions,
                shadow=lambda: self.levers.shadow,
                gate_open=lambda: not self.levers.overload,
                caches=self.caches,
            )
        except UnknownStrategy as error:
            raise SettingsError(f"ROUTING_ALGORITHM: {error.message}") from None

    def _agreement(self) -> AgreementService:
        return AgreementService(
            self.settings,
            self.metrics,
            self.registry,
            self.decider.agreement,
            self.tokenizer.flush,
            self.manager.engine_metrics,
        )

    def _usage_poll(self) -> UsagePoll:
        parts = (self.settings, self.metrics, self.registry, self.manager)
        return UsagePoll(*parts, self.ledger, self.caches, time.monotonic)

    def _sight(self) -> Sight:
        about = {
            "version": __version__,
            "strategy": self.settings.routing_algorithm,
            "strategies": list(STRATEGIES),
            "index": self.index_backend,
            "event_sync": self.settings.kv_event_sync,
        }
        return Sight(
            about,
            self.registry,
            self.manager,
            self.index,
            self.ledger,
            self.decider.ring,
            self.levers,
            self.readiness,
        )

    def _debug_server(self) -> DebugServer:
        return DebugServer(
            self.settings,
            [
                InsightPages(self.manager, self.decider, self.settings.max_body_bytes),
                AgreementPages(self.decider.agreement),
                DecisionPages(self.decider.ring),
                LeverPages(self.levers, self.settings),
                self._snapshot_page,
                LivePages(self.live),
            ],
        )

    def _discovery(self) -> EndpointsFile | KubernetesPods:
        settings = self.settings
        if settings.endpoints_file:
            return EndpointsFile(settings.endpoints_file, self.registry, settings, self.metrics)
        return KubernetesPods(self.registry, settings, self.metrics)

    async def start(self) -> None:
        """Stage one, then stage two. Raises SettingsError where a file or port cannot be used."""
        for name, why in lacking(self.settings):
            log.warning("%s: %s; requests are routed by load", name, why)
        await self.tokenizer.start()
        await self.discovery.start()
        await self.probe.start()
        await self.usage.start()
        await self.agreement.start()
        await self._serve()
        await self.admin.start()
        await self.debug.start()
        await self.snapshots.open()
        # After it: a name that means every replica may mean this one, which has nothing to give.
        await self.peers.start()
        if self.settings.kv_event_sync:
            self.manager.start_events()
        self.snapshots.start()
        self.watchdog.start()
        self._tasks.append(asyncio.create_task(self._follow_readiness()))
        if self.certificates is not None:
            self._tasks.append(asyncio.create_task(self.certificates.follow()))
        log.info(
            "serving on %s, admin on %s, debug on %s, strategy %s, index %s, event sync %s",
            self.settings.grpc_address,
            self.settings.admin_address,
            self.settings.debug_address,
            self.settings.routing_algorithm,
            self.index_backend,
            "on" if self.settings.kv_event_sync else "off",
        )

    async def _serve(self) -> None:
        self._server = make_server(self.settings)
        self.processor.register(self._server)
        await self.health.start(self._server)
        credentials = self.certificates.credentials() if self.certificates else None
        self.grpc_port = listen(self._server, self.settings.grpc_address, credentials)
        await self._server.start()

    async def drain(self) -> None:
        """Leave without failing a request; see `extproc.drain`.

        The index is saved before, in case that this is cut short, and after.
        """
        self._draining = True
        await self.snapshots.save()
        if self._server is not None:
            await drain(self._server, self.processor, self.health, self.settings)
        await self.snapshots.save()

    async def stop(self) -> None:
        """Close every part, the last opened first."""
        await background.end(*self._tasks)
        self.watchdog.close()
        await self.snapshots.close()
        await self.peers.close()
        await self.live.close()
        await self.debug.close()
        await self.admin.close()
        if self._server is not None:
            await self._server.stop(None)
        await self.agreement.close()
        await self.usage.close()
        await self.probe.close()
        await self.discovery.close()
        await self.tokenizer.close()
        await asyncio.to_thread(self.manager.close)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then drain; a second signal leaves at once."""
        raise_file_limit()
        stop = asyncio.Event()
        leaving: asyncio.Task[None] | None = None
        hurry = False

        def told() -> None:
            nonlocal hurry
            hurry = stop.is_set()
            stop.set()
            if leaving is not None:
                leaving.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told)
        try:
            await self.start()
            collector.settle()
            await stop.wait()
            if not hurry:
                log.info("draining")
                leaving = asyncio.create_task(self.drain())
                with contextlib.suppress(asyncio.CancelledError):
                    await leaving
        finally:
            await self.stop()
        return 0

    def readiness(self) -> Mapping[str, bool]:
        """What must hold before traffic should come; all true means ready.

        As gRPC health was last told: no page says ready before Envoy's own check would.
        """
        return {**self._told, "not_draining": not self._draining}

    async def _follow_readiness(self) -> None:
        """Until it is ready: from then on only a drain changes it, and that says so itself."""
        while not self._draining:
            found = self._conditions()
            ready = all(found.values())
            await self.health.set_serving(ready)
            self._told = found
            if ready:
                return
            await asyncio.sleep(_READINESS_POLL_S)

    def _conditions(self) -> Mapping[str, bool]:
        """What holds at this moment."""
        listed = self.registry.listed
        synced = listed and self.manager.synced()
        return {
            "pods_listed": listed,
            "first_sync_done": synced or time.monotonic() > self._ready_by,
        }

    def _forget_series(self, before: Pod | None, after: Pod | None) -> None:
        """A pod that is gone leaves the metrics."""
        if before is not None and after is None:
            self.metrics.forget_pod(before.key)

    def _show_indexer(self, before: Pod | None, after: Pod | None) -> None:
        """Keep `indexer_status` in step with the models that have pods."""
        models = {pod.model for pod in (before, after) if pod is not None}
        gauge = self.metrics.indexer_status
        for model in models:
            # Stops at the first one found: a listing of 10,000 pods calls this for each.
            if any(pod.model == model for pod in self.registry.pods()):
                gauge.labels(model, "sync").set_function(lambda: self.manager.following)
                gauge.labels(model, "local").set_function(lambda: not self.manager.following)
            else:
                for indexer in ("sync", "local"):
                    with contextlib.suppress(KeyError):
                        gauge.remove(model, indexer)
