"""The image's health check: ready is 0, all else is 1 with a word why."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aibrix_extproc import health
from aibrix_extproc.settings import Settings, variables
from tests.support import free_port


@contextmanager
def server(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b"what it answers")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_it_is_healthy_where_the_processor_is_ready(
    status: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with server(status) as where:
        monkeypatch.setenv(health.VARIABLE, where)
        assert health.main() == code
    assert f"{status} what it answers" in capsys.readouterr().out


def test_nobody_who_listens_is_unhealthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv(health.VARIABLE, where)
    assert health.main() == 1
    assert where in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", "127.0.0.1:8080"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        (":9000", "127.0.0.1:9000"),
        ("[::]:9000", "[::1]:9000"),
        ("10.0.0.7:9000", "10.0.0.7:9000"),
    ],
)
def test_it_asks_the_admin_address(given: str, asked: str) -> None:
    assert health.address({health.VARIABLE: given}) == asked


def test_it_knows_the_variable_and_its_default() -> None:
    assert health.VARIABLE in variables()
    assert health.address({}) == Settings().admin_address.replace("0.0.0.0", "127.0.0.1")
