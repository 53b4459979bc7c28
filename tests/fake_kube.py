"""A small Kubernetes API server over real HTTP: pods, pages, watches, and every way to fail.

It keeps what the real one promises to a list-watch client: one version counter, snapshots for
`continue`, a history that can be compacted, events by label selector (a pod that leaves the
selector is DELETED for the watcher). Threads, so that it serves a client of either kind.
"""

import contextlib
import copy
import json
import socket
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]

MODEL_LABEL = "model.aibrix.ai/name"


def kube_pod(
    name: str = "llama-0",
    *,
    namespace: str = "default",
    uid: str = "uid-1",
    ip: str | None = "10.0.0.1",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    ports: list[Json] | None = None,
    ready: bool = True,
    phase: str = "Running",
    deleting: bool = False,
) -> Json:
    """A v1 Pod as the API server writes it, of the model `llama` unless the labels say else."""
    metadata: Json = {
        "name": name,
        "namespace": namespace,
        "uid": uid,
        "labels": {MODEL_LABEL: "llama"} if labels is None else labels,
        "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:podIP": {}}}}],
    }
    if annotations:
        metadata["annotations"] = annotations
    if deleting:
        metadata["deletionTimestamp"] = "2025-01-01T00:00:00Z"
    status: Json = {
        "phase": phase,
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastProbeTime": None},
            {"type": "Ready", "status": "True" if ready else "False"},
        ],
    }
    if ip is not None:
        status["podIP"] = ip
    container: Json = {"name": "engine", "image": "vllm"}
    if ports is not None:
        container["ports"] = ports
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [container]},
        "status": status,
    }


class FakeKube:
    """The server. Its fields and methods may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._pods: dict[str, Json] = {}
        self.workloads: dict[str, list[Json]] = {"deployments": [], "statefulsets": []}
        """Objects of the group apps; listed, not watched."""
        self.denied: set[str] = set()
        """Resources (`pods`, `deployments`, …) whose listing is refused with 403."""
        self._version = 100
        self._history: list[tuple[int, Json]] = []
        self._oldest = 100
        self._snapshots: dict[str, tuple[int, list[Json]]] = {}
        self._watch_sockets: set[socket.socket] = set()
        self.stopping = False
        self.list_status: int | None = None
        """Answer of every listing, where it is set."""
        self.watch_status: int | None = None
        self.expire_continue = False
        """The next page of a listing is refused with 410, once."""
        self.gone_as_event = False
        """A watch from a compacted version gets an ERROR event instead of the status 410."""
        self.chunked = True
        """False: a watch is sent as it is and ends with its connection, as some proxies do."""
        self.gzip = False
        """A watch is compressed, each event flushed."""
        self.max_page = 10_000
        self.lists: list[dict[str, str]] = []
        """The query of every listing, a page each."""
        self.watches: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> "FakeKube":
        """Serve on the loopback; after `stop`, on the same port again."""
        fake = self
        self.stopping = False

        class Handler(_Handler):
            kube = fake

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def stop(self) -> None:
        """Go away: nothing listens, and every watch is cut."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.shutdown()
        with self._lock:
            self.stopping = True
            self._lock.notify_all()
        self.drop_watches()
        server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- the cluster --------------------------------------------------------------------------

    def apply(self, pod: Json) -> None:
        """Create or change a pod; watchers see the event that the label selector makes of it."""
        with self._lock:
            self._version += 1
            pod = copy.deepcopy(pod)
            pod["metadata"]["resourceVersion"] = str(self._version)
            key = _key(pod)
            before = self._pods.get(key)
            self._pods[key] = pod
            was, now = before is not None and _matches(before), _matches(pod)
            if now:
                self._event("MODIFIED" if was else "ADDED", pod)
            elif was:
                self._event("DELETED", pod)

    def delete(self, key: str) -> None:
        with self._lock:
            self._version += 1
            pod = self._pods.pop(key)
            pod["metadata"]["resourceVersion"] = str(self._version)
            if _matches(pod):
                self._event("DELETED", pod)

    def bookmark(self) -> str:
        """Let the version move on (other objects changed) and tell watchers; returns it."""
        with self._lock:
            self._version += 10
            meta = {"resourceVersion": str(self._version), "creationTimestamp": None}
            self._event("BOOKMARK", {"kind": "Pod", "apiVersion": "v1", "metadata": meta})
            return str(self._version)

    def compact(self) -> None:
        """Forget the history: a watch from an older version is refused from now on."""
        with self._lock:
            self._version += 1
            self._oldest = self._version

    def send_raw(self, line: bytes) -> None:
        """Send these bytes to the watchers of now, as they are."""
        with self._lock:
            self._history.append((self._version, {"raw": line}))
            self._lock.notify_all()

    def send_event(self, kind: str, obj: Json) -> None:
        """Send an event as it is, without a version of its own."""
        self.send_raw(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def drop_watches(self) -> None:
        """Cut every watch's connection, without a proper end."""
        with self._lock:
            sockets, self._watch_sockets = self._watch_sockets, set()
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def open_watches(self) -> int:
        with self._lock:
            return len(self._watch_sockets)

    def _event(self, kind: str, obj: Json) -> None:
        self._history.append((self._version, {"type": kind, "object": copy.deepcopy(obj)}))
        self._lock.notify_all()

    # -- what the handler asks ----------------------------------------------------------------

    def page(self, path: str, query: dict[str, str]) -> tuple[int, Json]:
        """Status and body of one page of a listing."""
        with self._lock:
            self.lists.append(query)
            if self.list_status is not None:
                return self.list_status, _status(self.list_status)
            if path.rpartition("/")[2] in self.denied:
                return 403, _status(403)
            token = query.get("continue", "")
            if token and self.expire_continue:
                self.expire_continue = False
                return 410, _status(410)
            version, items = self._snapshots.pop(token) if token else self._listing(path, query)
            limit = min(int(query.get("limit", 10_000)), self.max_page)
            meta = {"resourceVersion": str(version)}
            if len(items) > limit:
                meta["continue"] = f"token-{len(self.lists)}"
                self._snapshots[meta["continue"]] = (version, items[limit:])
            body = {"kind": "PodList", "apiVersion": "v1", "metadata": meta}
            return 200, body | {"items": items[:limit]}

    def _listing(self, path: str, query: dict[str, str]) -> tuple[int, list[Json]]:
        parts = path.split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts else None
        listed = self.workloads.get(parts[-1])
        if listed is None:
            listed = [pod for _, pod in sorted(self._pods.items())]
        found = [
            copy.deepcopy(one)
            for one in listed
            if (_matches(one) or "labelSelector" not in query)
            and namespace in {None, one["metadata"]["namespace"]}
        ]
        return self._version, found

    def watch_refusal(self, query: dict[str, str]) -> tuple[int, bool]:
        """Status of a watch, and whether it is told as an ERROR event under status 200."""
        with self._lock:
            self.watches.append(query)
            if self.watch_status is not None:
                return self.watch_status, False
            if int(query["resourceVersion"]) < self._oldest:
                return 410, self.gone_as_event
            return 200, False

    def next_events(self, after: int, until: float) -> tuple[int, list[Json]] | None:
        """Wait for history past position `after`; None when the watch's time is up."""
        with self._lock:
            while len(self._history) <= after:
                left_s = until - time.monotonic()
                if left_s <= 0 or self.stopping:
                    return None
                self._lock.wait(left_s)
            return len(self._history), [event for _, event in self._history[after:]]

    def position_of(self, version: int) -> int:
        """Where in the history a watch from `version` begins."""
        with self._lock:
            return sum(1 for at, _ in self._history if at <= version)

    def opened(self, sock: socket.socket) -> None:
        with self._lock:
            self._watch_sockets.add(sock)

    def closed(self, sock: socket.socket) -> None:
        with self._lock:
            self._watch_sockets.discard(sock)


class _Handler(BaseHTTPRequestHandler):
    kube: FakeKube
    protocol_version = "HTTP/1.1"
    _gzip: Any = None

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.kube.paths.append(url.path)
        with contextlib.suppress(OSError):
            if query.get("watch", "").lower() == "true":
                self._watch(query)
            else:
                self._reply(*self.kube.page(url.path, query))

    def _reply(self, status: int, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _watch(self, query: dict[str, str]) -> None:
        status, as_event = self.kube.watch_refusal(query)
        if status != 200 and not as_event:
            self._reply(status, _status(status))
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if self.kube.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        if self.kube.gzip:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if as_event:
            self._chunk(json.dumps({"type": "ERROR", "object": _status(status)}).encode() + b"\n")
            self._chunk(b"")
            return
        self.kube.opened(self.connection)
        # One that ends well leaves its connection open: a client would else send its next request
        # just as it is closed.
        self.close_connection = True
        try:
            self._stream(
                self.kube.position_of(int(query["resourceVersion"])),
                time.monotonic() + int(query["timeoutSeconds"]),
            )
            self.close_connection = self.kube.stopping or not self.kube.chunked
        finally:
            self.kube.closed(self.connection)

    def _stream(self, position: int, until: float) -> None:
        while (news := self.kube.next_events(position, until)) is not None:
            position, events = news
            for event in events:
                line = event["raw"] if "raw" in event else json.dumps(event).encode() + b"\n"
                # In two chunks, as a proxy may cut a line anywhere.
                for part in (line[: len(line) // 2], line[len(line) // 2 :]):
                    if part:  # an empty chunk would be the end
                        self._chunk(self._packed(part))
        if not self.kube.stopping:
            self._chunk(b"")

    def _packed(self, data: bytes) -> bytes:
        if not self.kube.gzip:
            return data
        if self._gzip is None:
            self._gzip = zlib.compressobj(wbits=31)
        return self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH)

    def _chunk(self, data: bytes) -> None:
        if self.kube.chunked:
            data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
        self.wfile.write(data)
        self.wfile.flush()


def _key(pod: Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _matches(pod: Json) -> bool:
    return MODEL_LABEL in (pod["metadata"].get("labels") or {})


def _status(code: int) -> Json:
    reason = {410: "Expired", 403: "Forbidden", 401: "Unauthorized"}.get(code, "InternalError")
    message = "too old resource version" if code == 410 else "refused"
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def kubeconfig(folder: Path, server: str) -> Path:
    """A file for `KUBECONFIG` that names this API server, and no rights."""
    path = folder / "kubeconfig"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n"
        f"clusters: [{{name: here, cluster: {{server: '{server}'}}}}]\n"
        "users: [{name: me, user: {}}]\n"
        "contexts: [{name: here, context: {cluster: here, user: me}}]\n"
    )
    return path
