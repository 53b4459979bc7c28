"""What a client is told when a request cannot be served: each row of the table, in both modes."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from aibrix_extproc.stack import envoy_config
from tests.e2e.beside import (
    BUFFERED,
    BY_ORIGINAL_DST,
    MODES,
    Envoys,
    Wiring,
    added,
    another_envoy,
    samples,
    serves,
    total,
)
from tests.e2e.stack import Reply, Stack, gateway
from tests.e2e.upstream import Upstream, send_raw
from tests.support import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
AS_JSON = {"content-type": "application/json"}

BODY_LIMIT_BYTES = 400_000
MAX_STREAMS = 6
ERRORS = "aibrix_prefix_cache_routing_errors_total"
OUTCOMES = "aibrix_extproc_requests_total"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mirror() -> AsyncIterator[Upstream]:
    async with Upstream("mirror-0") as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(mirror: Upstream) -> AsyncIterator[Envoys]:
    """An engine, a mirror, and a model whose one pod is not ready."""
    environment = {
        "AIBRIX_EXTPROC_MAX_BODY_BYTES": str(BODY_LIMIT_BYTES),
        "AIBRIX_EXTPROC_MAX_STREAMS": str(MAX_STREAMS),
    }
    async with gateway(engines=1, environment=environment) as stack:
        asleep = mirror.endpoint(name="asleep", model="asleep", address="127.0.0.1:1", ready=False)
        stack.list_pods(stack.endpoint(0), mirror.endpoint(), asleep)
        await serves(stack, "tiny", "mirror", "asleep")
        yield Envoys(stack, pods=[stack.engines[0].address, mirror.address])


@dataclass(frozen=True)
class Row:
    """A request and what is told of it. `counted`: the labels error_type and model."""

    name: str
    status: int
    code: str
    counted: tuple[str, str]
    headers: Mapping[str, str]
    says: str
    body: Any = None
    data: bytes | None = None
    path: str = CHAT
    sent: Mapping[str, str] = field(default_factory=dict)
    kind: str = "invalid_request_error"
    param: str | None = None

    async def ask(self, stack: Stack) -> Reply:
        headers = {**AS_JSON, **self.sent}
        if self.data is not None:
            return await stack.request("POST", self.path, data=self.data, headers=headers)
        return await stack.request("POST", self.path, body=self.body, headers=headers)


def chat(model: Any = "tiny", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], **fields}


BAD_BODY = {"x-error-request-body-processing": "true"}
NO_MODEL = {**BAD_BODY, "x-error-no-model-in-request": "true"}


def bad(name: str, says: str, param: str | None = None, **request: Any) -> Row:
    counted = ("bad_body", "unknown")
    code = "invalid_request_body"
    return Row(name, 400, code, counted, BAD_BODY, says, param=param, **request)


def nameless(name: str, **request: Any) -> Row:
    counted, says = ("no_model", "unknown"), "set the field 'model'"
    return Row(name, 400, "no_model_in_request", counted, NO_MODEL, says, param="model", **request)


ROWS = [
    Row(
        "model unknown",
        404,
        "model_not_found",
        ("model_not_found", "unknown"),
        {"x-error-no-model-backends": "gpt-5"},
        "GET /v1/models lists",
        body=chat("gpt-5"),
        param="model",
    ),
    Row(
        "no pod ready",
        503,
        "service_unavailable",
        ("no_pod_ready", "asleep"),
        {"x-error-no-model-backends": "true"},
        "Try again",
        body=chat("asleep"),
        kind="service_unavailable",
    ),
    Row(
        "no pod ready, other path",
        503,
        "service_unavailable",
        ("no_pod_ready", "asleep"),
        {"x-error-no-model-backends": "true"},
        "Try again",
        path="/v1/embeddings",
        body={"model": "asleep", "input": "x"},
        kind="service_unavailable",
    ),
    Row(
        "strategy unknown",
        400,
        "invalid_routing_strategy",
        ("unknown_strategy", "tiny"),
        {"x-error-invalid-routing-strategy": "fastest"},
        "prefix-cache",
        body=chat(),
        sent={"routing-strategy": "fastest"},
        param="routing-strategy",
    ),
    bad("not JSON", "not a JSON object", data=b"model=tiny"),
    bad("cut off", "not a JSON object", data=b'{"model": "tiny", "messages": [{"ro'),
    bad("no object", "not a JSON object", data=b'["tiny"]'),
    bad("empty", "not a JSON object", data=b""),
    bad("chat without messages", "'messages' must be", "messages", body={"model": "tiny"}),
    bad("messages a text", "'messages' must be", "messages", body=chat(messages="Hello")),
    bad("messages empty", "'messages' must be", "messages", body=chat(messages=[])),
    bad("message no object", "'messages' must be", "messages", body=chat(messages=["Hello"])),
    bad(
        "completion without prompt",
        "'prompt' must be",
        "prompt",
        path=COMPLETIONS,
        body={"model": "tiny"},
    ),
    bad(
        "prompt a number",
        "'prompt' must be",
        "prompt",
        path=COMPLETIONS,
        body={"model": "tiny", "prompt": 7},
    ),
    bad(
        "prompt of both kinds",
        "'prompt' must be",
        "prompt",
        path=COMPLETIONS,
        body={"model": "tiny", "prompt": ["a", 1]},
    ),
    bad(
        "token id below 0",
        "'prompt' must be",
        "prompt",
        path=COMPLETIONS,
        body={"model": "tiny", "prompt": [1, -1]},
    ),
    nameless("no model", body={"messages": [{"role": "user", "content": "Hello"}]}),
    nameless("model null", body=chat(None)),
    nameless("model a number", body=chat(7)),
    nameless("model empty", body=chat("")),
    nameless("model not UTF-8", data=b'{"model": "\xff\xfe", "messages": []}'),
    nameless("no model, completion", path=f"{COMPLETIONS}?x=1", body={"prompt": "x"}),
    Row(
        "no choice possible",
        503,
        "no_candidate",
        ("no_candidate", "tiny"),
        {"x-error-routing": "true"},
        "external-filter",
        body=chat(),
        sent={"external-filter": "pod=none-such"},
        kind="service_unavailable",
    ),
    Row(
        "filter unreadable",
        400,
        "invalid_external_filter",
        ("bad_filter", "tiny"),
        {"x-error-routing": "true"},
        "not a label selector",
        body=chat(),
        sent={"external-filter": "a in (b"},
        param="external-filter",
    ),
    Row(
        "body too large",
        413,
        "request_too_large",
        ("body_too_large", "unknown"),
        BAD_BODY,
        "AIBRIX_EXTPROC_MAX_BODY_BYTES",
        body=chat(user="x" * BODY_LIMIT_BYTES),
    ),
]


def assert_told(reply: Reply, row: Row) -> None:
    """The whole answer is as the table says, and says what to do."""
    assert (reply.status, reply.pod) == (row.status, None)
    assert reply.headers["content-type"] == "application/json"
    assert reply.json().keys() == {"error"}
    assert reply.error.keys() == {"message", "type", "code", "param"}
    assert (reply.error["code"], reply.error["type"]) == (row.code, row.kind)
    assert reply.error["param"] == row.param
    assert row.says in reply.error["message"]
    own = {name: value for name, value in reply.headers.items() if name.startswith("x-error")}
    assert own == row.headers
    assert uuid.UUID(reply.headers["request-id"])


@pytest.mark.parametrize("wiring", [*MODES, BY_ORIGINAL_DST[0]], ids=str)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_client_is_told_what_is_wrong_and_it_is_counted(
    envoys: Envoys, mirror: Upstream, row: Row, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    errors, outcomes = await samples(stack, ERRORS), await samples(stack, OUTCOMES)
    reply = await row.ask(stack)
    assert_told(reply, row)
    assert mirror.received == []
    assert added(errors, await samples(stack, ERRORS)) == {(*row.counted, "true"): 1}
    assert added(outcomes, await samples(stack, OUTCOMES)) == {("refused",): 1}


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_body_that_names_no_length_is_refused_where_it_grows_too_large(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)

    async def endless() -> AsyncIterator[bytes]:
        yield b'{"model": "mirror", "prompt": "'
        for _ in range(BODY_LIMIT_BYTES // 10_000 + 1):
            yield b"x" * 10_000
        yield b'"}'

    errors = await samples(stack, ERRORS)
    reply = await stack.request("POST", COMPLETIONS, data=endless(), headers=AS_JSON)
    assert_told(reply, ROWS[-1])
    assert mirror.received == []
    counted = ("body_too_large", "unknown", "true")
    assert added(errors, await samples(stack, ERRORS)) == {counted: 1}


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_body_of_just_the_limit_is_served(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    body = b'{"model": "mirror", "prompt": "x"}'.ljust(BODY_LIMIT_BYTES)
    reply = await stack.request("POST", COMPLETIONS, data=body, headers=AS_JSON)
    assert (reply.status, mirror.received[0].body) == (200, body)
    over = await stack.request("POST", COMPLETIONS, data=body + b" ", headers=AS_JSON)
    assert over.status == 413
    mirror.received.clear()


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_an_upload_is_refused_before_it_is_sent_where_it_names_its_length(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {BODY_LIMIT_BYTES + 1}\r\n\r\n"
    )
    status, answer = await send_raw(stack.url, head.encode())
    assert status == 413
    assert b"request_too_large" in answer


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_above_the_limit_of_open_requests_a_client_is_told_when_to_come_again(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    await all_closed(stack)
    errors = await samples(stack, ERRORS)
    mirror.answer_in_steps([b"data: x\n\n"])
    open_requests = [
        asyncio.create_task(stack.complete("x", model="mirror")) for _ in range(MAX_STREAMS)
    ]
    try:
        await eventually_async(lambda: len(mirror.received) == MAX_STREAMS)
        for path in (CHAT, COMPLETIONS, "/v1/embeddings"):
            row = Row(
                *("too many", 429, "too_many_requests", ("too_many_streams", "unknown"), {}),
                f"{MAX_STREAMS} requests are open",
                path=path,
                body=chat(prompt="x"),
                kind="rate_limit_error",
            )
            async with asyncio.timeout(10):  # one that is let in waits for the mirror
                reply = await row.ask(stack)
            assert_told(reply, row)
            assert reply.headers["retry-after"] == "1"
        assert len(mirror.received) == MAX_STREAMS
    finally:
        mirror.answer_at_once()
        replies = await asyncio.gather(*open_requests)
        mirror.received.clear()
    assert {reply.status for reply in replies} == {200}
    counted = ("too_many_streams", "unknown", "true")
    assert added(errors, await samples(stack, ERRORS)) == {counted: 3}
    await all_closed(stack)
    assert (await stack.chat("Hello")).status == 200


async def all_closed(stack: Stack) -> None:
    """Wait until no request is open."""

    async def closed() -> bool:
        return await total(stack, "aibrix_extproc_streams") == 0

    await eventually_async(closed)


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_names_that_clients_make_up_add_no_series(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    made_up = [f"made-up-{number}" for number in range(30)]
    for name in made_up:
        assert (await stack.chat("Hello", model=name)).status == 404
        strategy = {"routing-strategy": name}
        assert (await stack.chat("Hello", headers=strategy)).status == 400
        await stack.request("POST", f"/v1/{name}", body={"model": name})
    mirror.received.clear()
    async with stack.session.get(f"{stack.admin_url}/metrics") as page:
        text = await page.text()
    assert "made-up" not in text
    labels = set(re.findall(r'[{,]model="([^"]*)"', text))
    assert labels <= {"tiny", "mirror", "asleep", "unknown"}


@pytest.mark.parametrize("wiring", MODES, ids=str)
@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("m" * 1_000, "m" * 125 + "..."),
        ("line\r\nset-cookie: a=b", "line??set-cookie: a=b"),
        ("modèle\x00\x7f", "mod?le??"),
    ],
    ids=["long", "line end", "not printable"],
)
async def test_what_is_echoed_of_a_models_name_is_printable_and_bounded(
    envoys: Envoys, wiring: Wiring, model: str, shown: str
) -> None:
    stack = await envoys.by(wiring)
    reply = await stack.chat("Hello", model=model)
    assert reply.status == 404
    assert reply.headers["x-error-no-model-backends"] == shown
    assert f"'{shown}'" in reply.error["message"]
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_after_an_error_the_same_connection_serves_the_next_request(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    ids = set()
    for row in ROWS:
        if row.status != 413:  # there the client is still sending, and Envoy hangs up
            ids.add((await row.ask(stack)).headers["request-id"])
            assert (await stack.complete("x", model="mirror")).status == 200
    assert len(ids) == len(ROWS) - 1
    assert {one.headers["x-request-id"] for one in mirror.received}.isdisjoint(ids)
    mirror.received.clear()


@pytest.mark.parametrize("mode", ["STREAMED", "NONE", "BUFFERED_PARTIAL"])
async def test_a_body_mode_that_shows_no_whole_bodies_is_told_to_the_operator(
    envoys: Envoys, mirror: Upstream, mode: str
) -> None:
    def set_mode(config: envoy_config.Config) -> None:
        envoy_config.ext_proc(config)["processing_mode"]["request_body_mode"] = mode

    stack = await another_envoy(envoys.stack, BUFFERED, pods=[mirror.address], edit=set_mode)
    errors = await samples(stack, ERRORS)
    for size in (10, 100_000):
        reply = await stack.chat("x" * size, model="mirror")
        assert (reply.status, reply.error["code"]) == (500, "body_mode_unsupported")
        assert f"request_body_mode {mode} " in reply.error["message"]
        assert "Set processing_mode.request_body_mode to BUFFERED" in reply.error["message"]
    counted = ("body_mode", "unknown", "true")
    assert added(errors, await samples(stack, ERRORS)) == {counted: 2}
    assert mirror.received == []
    assert (await stack.request("GET", "/v1/models")).status == 200
    assert (await stack.request("GET", "/v1/files")).pod == "mirror-0"
    mirror.received.clear()
