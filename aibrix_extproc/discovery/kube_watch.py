"""List and watch pods: the loop that keeps up with the API server, whatever happens to it.

Owns pages, resource versions, bookmarks, 410, dropped connections and back-off. It runs in a
thread of its own (the official client is synchronous) and hands over decoded objects; it does
not know what a pod object means, nor who listens.

The official client makes the request (its configuration, TLS and tokens), but its answer is read
raw (`_preload_content=False`) and decoded by msgspec into the few fields that are used; its own
`Watch` class is not used, because it builds full models, hides the HTTP status behind its
retries and forgets bookmarks where no object was seen.
"""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import urllib3
from kubernetes.client import ApiClient, ApiException, CoreV1Api

from aibrix_extproc.discovery.kube_pages import TooLarge, check_count, read_page
from aibrix_extproc.discovery.kube_pods import Meta, PodObject
from aibrix_extproc.discovery.pods import MODEL_LABEL

_PAGE: Final = 500
"""Pods per page, as kubectl asks for."""
_MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""etcd holds no object above 1.5 MiB; a longer line is no watch event."""
_BUFFER_BYTES: Final = 64 * 1024
_TRIES_BEFORE_LIST: Final = 3
"""Watches refused or broken in a row at one version, after which a new listing is tried."""
_RESUME_S: Final = 1.0
"""A watch that ends sooner than this, without an event, counts as a failure."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take, in seconds."""

    connect_s: float = 5.0
    list_read_s: float = 30.0
    watch_s: float = 60.0
    """The server ends a watch after this long; it sends a bookmark before, and the watch goes on
    from there. Short, because it bounds how long a dead connection can go unnoticed."""
    watch_grace_s: float = 15.0
    """Silence of a watch beyond `watch_s` after which its connection is taken to be dead."""
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0


USUAL: Final = Timing()


class PodSink(Protocol):
    """What the loop tells, from its own thread."""

    def listed(self, pods: list[PodObject]) -> bool:
        """A complete listing; False: it is not believed, ask again."""
        ...

    def changed(self, pod: PodObject) -> None:
        """A pod was added or modified."""

    def deleted(self, pod: PodObject) -> None:
        """A pod is gone, or its labels are no longer those that were asked for."""

    def healthy(self) -> None:
        """The API server answers as it should."""

    def trouble(self, reason: str, why: str) -> None:
        """It does not; the loop tries again. `reason` is from REASONS."""

    def unreadable(self, why: str) -> None:
        """One object could not be read, and is left out."""


REASONS: Final = (
    "kubernetes_connection",
    "kubernetes_denied",
    "kubernetes_status",
    "kubernetes_expired",
    "kubernetes_watch",
    "kubernetes_empty",
    "kubernetes_too_large",
)
"""The closed list of `trouble`: no answer or a lost connection; 401 or 403; another status; 410
(a new listing follows at once); a watch that ended at once or sent what is no event; a listing
without any pod, which is not believed yet; one past the bounds of `kube_pages`."""


class _Trouble(Exception):
    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason
        self.why = why


class _Gone(_Trouble):
    """410: the version is too old."""

    def __init__(self, why: str) -> None:
        super().__init__("kubernetes_expired", why)


class _ListMeta(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    next_page: str | None = msgspec.field(name="continue", default=None)


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int | None = None
    reason: str | None = None
    message: str | None = None


class _OnlyMeta(msgspec.Struct):
    metadata: Meta


_list_decoder: Final = msgspec.json.Decoder(_List)
_event_decoder: Final = msgspec.json.Decoder(_Event)
_status_decoder: Final = msgspec.json.Decoder(_Status)
_pod_decoder: Final = msgspec.json.Decoder(PodObject)
_meta_decoder: Final = msgspec.json.Decoder(_OnlyMeta)

_NotJson: Final = (msgspec.DecodeError, UnicodeDecodeError)
"""What decoding raises: the second for bytes that are no UTF-8."""


class PodWatch:
    """The loop. `run` blocks its thread until `stop`, which may come from any other."""

    def __init__(
        self, api_client: ApiClient, namespace: str, sink: PodSink, timing: Timing = USUAL
    ) -> None:
        self._api = CoreV1Api(api_client)
        self._namespace = namespace
        self._sink = sink
        self._timing = timing
        self._stopped = threading.Event()
        self._response: Any = None
        self._version: str | None = None
        """Where the next watch begins; None: a listing comes first."""
        self._failures = 0
        """Troubles since a watch last brought an event, or stayed open for a while."""
        self._gone = 0
        """Times that it was 410 among them."""
        self._last_reason = ""

    def stop(self) -> None:
        """End `run` soon: a read that waits is woken by shutting its socket down."""
        self._stopped.set()
        response = self._response
        if response is not None:
            _shut_down(response)

    def run(self) -> None:
        """List, watch, and begin again where it must, until stopped."""
        while not self._stopped.is_set():
            try:
                if self._version is None:
                    self._version = self._list()
                self._watch()
            except _Trouble as trouble:
                self._recover(trouble)
            except ApiException as error:
                self._recover(_from_status(error))
            except TooLarge as error:
                self._recover(_Trouble("kubernetes_too_large", str(error)))
            except (urllib3.exceptions.HTTPError, OSError) as error:
                self._recover(_Trouble("kubernetes_connection", _short(error)))

    # -- recovery -----------------------------------------------------------------------------

    def _progress(self) -> None:
        self._failures = self._gone = 0
        self._last_reason = ""
        self._sink.healthy()

    def _recover(self, trouble: _Trouble) -> None:
        """Decide from where to go on, and wait before it unless this is the first 410."""
        if self._stopped.is_set():
            return
        self._sink.trouble(trouble.reason, trouble.why)
        self._last_reason = trouble.reason
        self._failures += 1
        gone = isinstance(trouble, _Gone)
        self._gone += gone
        refused = trouble.reason in {"kubernetes_status", "kubernetes_watch"}
        if gone or (refused and self._failures % _TRIES_BEFORE_LIST == 0):
            # A listing is always right, and only costs. A version that the server does not know
            # (after etcd was restored) is refused in other ways than by 410.
            self._version = None
        if not (gone and self._gone == 1):
            self._stopped.wait(self._delay_s())

    def _delay_s(self) -> float:
        """Twice as long each time up to the limit, and between half of it and all of it."""
        exponent = min(self._failures - 1, 16)
        delay_s = min(self._timing.backoff_s * 2.0**exponent, self._timing.backoff_max_s)
        return delay_s * random.uniform(0.5, 1.0)

    # -- listing ------------------------------------------------------------------------------

    def _list(self) -> str:
        """All pages; hands the pods over and returns the version that a watch goes on from."""
        pods: list[PodObject] = []
        page = self._page(limit=_PAGE)
        self._collect(page, pods)
        while page.metadata.next_page:
            try:
                page = self._page(limit=_PAGE, _continue=page.metadata.next_page)
            except ApiException as error:
                if error.status != 410:
                    raise
                # The snapshot expired between pages: all at once, as client-go does.
                pods.clear()
                page = self._page()
            self._collect(page, pods)
        if not self._stopped.is_set() and not self._sink.listed(pods):
            raise _Trouble("kubernetes_empty", "no pod is listed; those known stay for a while")
        return page.metadata.resource_version

    def _page(self, **params: Any) -> _List:
        times = self._timing
        response = self._request((times.connect_s, times.list_read_s), **params)
        body = read_page(response)
        try:
            return _list_decoder.decode(body)
        except _NotJson as error:
            raise _Trouble("kubernetes_status", f"the listing cannot be read: {error}") from None

    def _collect(self, page: _List, pods: list[PodObject]) -> None:
        check_count(len(pods) + len(page.items or ()))
        for raw in page.items or ():
            try:
                pods.append(_pod_decoder.decode(raw))
            except _NotJson as error:
                self._sink.unreadable(str(error))

    # -- watching -----------------------------------------------------------------------------

    def _watch(self) -> None:
        """One watch, from the last version until the server ends it. Raises what ended it else."""
        times = self._timing
        began = time.monotonic()
        response = self._request(
            (times.connect_s, times.watch_s + times.watch_grace_s),
            watch=True,
            resource_version=self._version,
            allow_watch_bookmarks=True,
            timeout_seconds=max(1, round(times.watch_s * random.uniform(0.8, 1.0))),
        )
        self._response = response
        if self._last_reason != "kubernetes_watch":
            self._sink.healthy()
        try:
            seen = self._read(response)
        finally:
            self._response = None
            response.close()  # not released: the rest of a stream is nobody's answer
            lasted = time.monotonic() - began >= _RESUME_S
            if lasted:
                self._failures = self._gone = 0
        if not (seen or lasted or self._stopped.is_set()):
            raise _Trouble("kubernetes_watch", "the watch ended at once")
        self._progress()

    def _read(self, response: Any) -> bool:
        """Take every line; True where there was one."""
        seen = False
        if self._stopped.is_set():  # `stop` came before there was a response to shut down
            return seen
        for line in _lines(response):
            if self._stopped.is_set():
                break
            self._take(line)
            seen = True
        return seen

    def _take(self, line: bytes) -> None:
        """One line of the stream. Raises _Trouble where the watch cannot go on."""
        try:
            event = _event_decoder.decode(line)
        except _NotJson as error:
            raise _Trouble("kubernetes_watch", f"a line is no watch event: {error}") from None
        if event.type == "ERROR":
            raise _from_error_event(event.object)
        if event.type not in {"ADDED", "MODIFIED", "DELETED", "BOOKMARK"}:
            return
        try:
            meta = _meta_decoder.decode(event.object).metadata
        except _NotJson as error:
            raise _Trouble("kubernetes_watch", f"an event has no metadata: {error}") from None
        if event.type == "DELETED":  # whatever else of it cannot be read
            self._sink.deleted(PodObject(meta))
        elif event.type != "BOOKMARK":
            self._hand_over(event)
        self._version = meta.resource_version or self._version
        self._progress()

    def _hand_over(self, event: _Event) -> None:
        try:
            pod = _pod_decoder.decode(event.object)
        except _NotJson as error:
            self._sink.unreadable(str(error))
        else:
            self._sink.changed(pod)

    def _request(self, timeout: tuple[float, float], **params: Any) -> Any:
        """One GET of pods: urllib3's response, its body unread. Raises ApiException by status."""
        params |= {
            "label_selector": MODEL_LABEL,
            "_preload_content": False,
            "_request_timeout": timeout,
        }
        if self._namespace:
            return self._api.list_namespaced_pod(self._namespace, **params)
        return self._api.list_pod_for_all_namespaces(**params)


def _lines(response: Any) -> Iterator[bytes]:
    """The lines of a watch as they come. The API server sends each event as a chunk or more."""
    buffer = bytearray()
    for chunk in _parts(response):
        buffer += chunk
        *lines, rest = buffer.split(b"\n") if b"\n" in chunk else (buffer,)
        for line in lines:
            if line.strip():
                yield bytes(line)
        buffer = bytearray(rest)
        if len(buffer) > _MAX_LINE_BYTES:
            raise _Trouble("kubernetes_watch", f"a line is longer than {_MAX_LINE_BYTES} bytes")


def _parts(response: Any) -> Iterator[bytes]:
    """What has come, as soon as it has. `stream` would wait for a whole buffer where the answer is
    not chunked, because a proxy took its chunks apart."""
    if response.chunked:
        yield from response.stream(_BUFFER_BYTES, decode_content=True)
        return
    while part := response.read1(_BUFFER_BYTES, decode_content=True):
        yield part


def _from_error_event(raw: msgspec.Raw) -> _Trouble:
    """An ERROR event carries a Status; 410 or its reasons mean that the version is too old."""
    try:
        status = _status_decoder.decode(raw)
    except _NotJson:
        return _Trouble("kubernetes_watch", "an ERROR event without a status")
    why = f"{status.code} {status.reason}: {status.message}"
    if status.code == 410 or status.reason in {"Expired", "Gone"}:
        return _Gone(why)
    return _Trouble("kubernetes_watch", why)


def _from_status(error: ApiException) -> _Trouble:
    why = f"{error.status} {error.reason}"
    if error.status == 410:
        return _Gone(why)
    if error.status in {401, 403}:
        hint = "the service account needs get, list and watch on pods"
        return _Trouble("kubernetes_denied", f"{why}: {hint}")
    if not error.status:  # how the client wraps a failure of TLS
        return _Trouble("kubernetes_connection", _short(error))
    return _Trouble("kubernetes_status", why)


def _short(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error  # urllib3 puts the URL around it
    return " ".join(str(cause).split())[:200] or type(error).__name__


def _shut_down(response: Any) -> None:
    """Wake a thread that waits in this response's socket; closing it would not."""
    connection = getattr(response, "connection", None)
    sock = getattr(connection, "sock", None)
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
