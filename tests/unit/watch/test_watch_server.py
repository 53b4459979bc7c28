"""A real server's debug port, watched."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from aibrix_extproc.watch.rows import Sort, View, troubles
from aibrix_extproc.watch.server import Server, ServerUnreadable
from aibrix_extproc.watch.text import line, summary
from tests.kv_publisher import KvPublisher, stored
from tests.support import eventually, free_port

MODEL = "tiny"


class Running:
    """A server, its two engines, and the URL of its debug port."""

    def __init__(self, url: str, engines: tuple[KvPublisher, KvPublisher]) -> None:
        self.url = url
        self.engines = engines

    def lever(self, path: str, **move: object) -> None:
        httpx.post(f"{self.url}/debug/levers/{path}", json=move).raise_for_status()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with KvPublisher() as one, KvPublisher() as other:
        path = tmp_path_factory.mktemp("server") / "pods.yaml"
        path.write_text("pods:\n" + entry("pod-0", one, 1) + entry("pod-1", other, 2))
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "aibrix_extproc.cli", "serve"],
            env=environment(path, port),
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: answers(url), timeout_s=30)
            yield Running(url, (one, other))
        finally:
            process.kill()
            process.wait()


def entry(name: str, engine: KvPublisher, host: int) -> str:
    ports = f"{{port: {engine.port}, replay_port: {engine.replay_port}}}"
    address = f"127.0.0.1:{host}"
    return f"- {{name: {name}, model: {MODEL}, address: '{address}', kv_events: {ports}}}\n"


def environment(path: Path, port: int) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AIBRIX_", "ROUTING_"))}
    return clean | {
        "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path),
        "AIBRIX_EXTPROC_GRPC_ADDRESS": "127.0.0.1:0",
        "AIBRIX_EXTPROC_ADMIN_ADDRESS": "127.0.0.1:0",
        "AIBRIX_EXTPROC_DEBUG_ADDRESS": f"127.0.0.1:{port}",
        "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
        "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
    }


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/debug/sources").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def station(running: Running) -> Iterator[Server]:
    server = Server(running.url, interval_s=0.15)
    server.start()
    yield server
    server.close()


def seen(station: Server, held: int) -> View:
    """The view once the first pod holds so many blocks."""

    def there() -> View | None:
        view = station.view()
        return view if view.rows and view.rows[0].held == held else None

    view = eventually(there)
    assert view is not None
    return view


def test_sources_are_shown_as_the_server_sees_them(running: Running, station: Server) -> None:
    one, other = running.engines
    one.publish(stored([1, 2, 3]))
    other.publish({**stored([1, 2]), "block_hashes": [91, 92]})
    view = seen(station, 3)
    assert [row.name for row in view.rows] == ["pod-0", "pod-1"]
    first = view.rows[0]
    assert (first.state, first.model, first.sequence) == ("EXACT", MODEL, 0)
    assert first.endpoint == one.endpoint
    assert (first.missing, first.bytes, first.stored) == (None, None, None), "nobody tells"
    assert troubles(view) == []


def test_batches_are_counted_by_their_numbers(running: Running, station: Server) -> None:
    engine = running.engines[0]
    for block in range(10, 15):
        engine.publish(stored([block]))
    eventually(lambda: (station.view().rows[0].batches_per_s or 0) > 0)


def test_who_holds_what_is_read_from_the_snapshot(running: Running) -> None:
    station = Server(running.url, with_holdings=True)
    station.start()
    try:
        found = station.final().holdings
    finally:
        station.close()
    assert found is not None
    assert found.shared == 2
    assert found.groups[0].holders == ("pod-0", "pod-1")
    assert found.pairs[0].shared == 2


def test_levers_that_were_moved_are_noted(running: Running, station: Server) -> None:
    running.lever("pod-out", pod="default/pod-1", out=True)
    try:
        eventually(lambda: "lever pod-out is ['default/pod-1']" in " ".join(station.view().notes))
    finally:
        running.lever("pod-out", pod="default/pod-1", out=False)
    eventually(lambda: station.view().notes == ())


def test_sources_are_off_while_event_sync_is_off(running: Running, station: Server) -> None:
    running.lever("event-sync", on=False)
    try:
        eventually(lambda: {row.state for row in station.view().rows} == {"off"})
        assert troubles(station.view()) == []
    finally:
        running.lever("event-sync", on=True)
    eventually(lambda: {row.state for row in station.view().rows} == {"EXACT"})


def test_the_wrong_port_is_told() -> None:
    nobody = Server(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ServerUnreadable, match="cannot be read"):
        nobody.start()
    nobody.close()


def test_another_page_is_told(running: Running) -> None:
    elsewhere = Server(f"{running.url}/elsewhere")
    with pytest.raises(ServerUnreadable, match=r"answered 404: is it the debug port"):
        elsewhere.start()
    elsewhere.close()


# -- a server that is none ------------------------------------------------------------------------

SOURCE = {
    **{
        "pod": "default/a",
        "rank": 0,
        "model": "m",
        "state": "EXACT",
        "stale": False,
        "full": False,
    },
    **{"sequence": 7, "lag_s": 0.1, "placements": 3, "event_endpoint": None, "pending_bytes": 0},
}
ESCAPE = "\x1b[2J"
"""Clears a terminal."""


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers what a test has put down."""

    pages: dict[str, str]

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.pages[self.path].encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pages() -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of a server, and its pages by their paths."""
    kind = type("These", (Pages,), {"pages": {"/debug/agreement": "{}", "/debug/levers": "{}"}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", kind.pages  # type: ignore[attr-defined]
        finally:
            listening.shutdown()
            thread.join()


Served = tuple[str, dict[str, str]]


@pytest.mark.parametrize(
    "page",
    [
        "[7]",
        "{}",
        '{"x": ' + "[" * 100_000,
        json.dumps([SOURCE | {"rank": "x"}]),
        json.dumps([SOURCE | {"lag_s": float("nan")}]),
        json.dumps([SOURCE | {"placements": 10**400}]),
        json.dumps([SOURCE | {"sequence": -1}]),
    ],
    ids=["numbers", "no list", "endless", "no rank", "no number", "huge", "below 0"],
)
def test_sources_of_another_shape_are_told(pages: Served, page: str) -> None:
    url, served = pages
    served["/debug/sources"] = page
    station = Server(url)
    with pytest.raises(ServerUnreadable, match="/debug/sources: the answer has another shape"):
        station.start()
    station.close()


@pytest.mark.parametrize(
    "said",
    [
        7,
        {"models": []},
        {"models": {"m": 7}},
        {"models": {"m": {"warnings": 7}}},
        {"models": {"m": {"warnings": [7, {"pods": 7, "likely_causes": None}]}}},
    ],
)
def test_warnings_and_levers_of_another_shape_break_nothing(pages: Served, said: object) -> None:
    url, served = pages
    served |= {
        "/debug/sources": json.dumps([SOURCE]),
        "/debug/agreement": json.dumps(said),
        "/debug/levers": json.dumps({"levers": said}),
    }
    station = Server(url)
    station.start()
    assert [row.name for row in station.view().rows] == ["a"]
    station.close()


def test_nothing_that_a_server_says_steers_the_terminal(pages: Served) -> None:
    url, served = pages
    bad = {"pod": f"default/{ESCAPE}", "model": ESCAPE, "state": ESCAPE}
    warning = {"kind": ESCAPE, "pods": [ESCAPE], "likely_causes": [ESCAPE]}
    served |= {
        "/debug/sources": json.dumps([SOURCE | bad]),
        "/debug/agreement": json.dumps({"models": {ESCAPE: {"warnings": [ESCAPE, warning]}}}),
        "/debug/levers": json.dumps({"levers": {ESCAPE: {"now": ESCAPE, "at_default": False}}}),
    }
    station = Server(url)
    station.start()
    view = station.view()
    station.close()
    assert len(view.notes) == 3
    assert "\x1b" not in "".join([*summary(view, Sort.NAME), line(view), *view.notes])


def test_what_is_gone_is_not_remembered(pages: Served) -> None:
    url, served = pages
    served["/debug/sources"] = json.dumps([SOURCE | {"pod": f"a{n}"} for n in range(5)])
    station = Server(url, interval_s=0.05)
    station.start()
    assert len(station._rates) == 5
    served["/debug/sources"] = json.dumps([SOURCE])
    try:
        eventually(lambda: len(station._rates) == 1)
    finally:
        station.close()
