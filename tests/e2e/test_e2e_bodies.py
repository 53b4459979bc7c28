"""Bodies and answers pass whole, in both body modes, whatever they are and wherever they go."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.stack import envoy_config
from tests.e2e.beside import (
    BUFFERED,
    BY_ORIGINAL_DST,
    DESTINATION_HEADERS,
    DUPLEX,
    EVERY_WIRING,
    MODES,
    Envoys,
    Wiring,
    added,
    another_envoy,
    caught_up,
    predicted,
    samples,
    serves,
    total,
)
from tests.e2e.stack import gateway
from tests.e2e.upstream import Received, Upstream, send_raw
from tests.e2e.watching import PICKED, text
from tests.support import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
AS_JSON = {"content-type": "application/json"}

LARGE_BYTES = 300_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mirror() -> AsyncIterator[Upstream]:
    async with Upstream("mirror-0") as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(mirror: Upstream) -> AsyncIterator[Envoys]:
    """Two engines and a mirror of another model, behind Envoys that know all three."""
    engines = [EngineConfig(name=f"engine-{number}", num_blocks=8192) for number in range(2)]
    async with gateway(engines=engines) as stack:
        stack.list_pods(stack.endpoint(0), stack.endpoint(1), mirror.endpoint())
        await serves(stack, "tiny", "mirror")
        yield Envoys(stack, pods=[pod.address for pod in (*stack.engines, mirror)])


def odd_chat(size_bytes: int) -> bytes:
    """A chat of about this size that no JSON encoder would write just so."""
    filler = "ünïcödé \\u00e9\\n \\ud83d\\ude00 words " * (size_bytes // 38 + 1)
    head = '{ "messages" :[\n\t{"role":"user","content":"'
    body = f'{head}{filler}"}}],\r\n  "model":"mirror" , "x_unknown": 1.50e+01,"max_tokens":4 }}'
    return body.encode() + b" \n" * 3


async def in_pieces(body: bytes, size: int = 7_001) -> AsyncIterator[bytes]:
    """The body as a client sends it that does not know its length."""
    for start in range(0, len(body), size):
        yield body[start : start + size]


def last(mirror: Upstream) -> Received:
    [received] = mirror.received
    mirror.received.clear()
    return received


# -- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, LARGE_BYTES, 2_000_000], ids=["small", "300 kB", "2 MB"])
@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_a_picked_request_reaches_the_pod_byte_for_byte(
    envoys: Envoys, mirror: Upstream, wiring: Wiring, size: int
) -> None:
    stack = await envoys.by(wiring)
    body = odd_chat(size)
    sized = await stack.request("POST", f"{CHAT}?q=a%20b&r=", data=body, headers=AS_JSON)
    assert (sized.status, sized.headers.get(PICKED)) == (200, "mirror-0")
    received = last(mirror)
    assert received.path == f"{CHAT}?q=a%20b&r="
    assert received.body == body
    assert received.headers["content-type"] == "application/json"

    chunked = await stack.request("POST", CHAT, data=in_pieces(body), headers=AS_JSON)
    assert (chunked.status, chunked.headers[PICKED]) == (200, "mirror-0")
    assert last(mirror).body == body


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_prompt_of_300_kb_is_tokenized_whole_and_found_again(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    prompt = text(f"large{wiring.body_mode}", LARGE_BYTES // 14)
    assert len(prompt) >= LARGE_BYTES
    expected = stack.engines[0].tokenizer.encode(prompt)
    first = await stack.complete(prompt)
    assert first.json()["usage"]["prompt_tokens"] == len(expected)
    await caught_up(stack)
    again = await stack.complete(prompt)
    assert again.pod == first.pod
    assert predicted(again) == again.cached_tokens == (len(expected) - 1) // 16 * 16


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_client_that_waits_for_100_continue_gets_it(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    body = odd_chat(LARGE_BYTES)
    async with stack.session.post(
        stack.url + CHAT, data=body, headers=AS_JSON, expect100=True
    ) as reply:
        assert reply.status == 200
    assert last(mirror).body == body


@pytest.mark.parametrize("wiring", [*MODES, *BY_ORIGINAL_DST], ids=str)
async def test_many_bodies_at_once_are_not_mixed_up(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    bodies = [odd_chat(20_000 + 9_000 * number) for number in range(16)]
    replies = await asyncio.gather(
        *(stack.request("POST", CHAT, data=body, headers=AS_JSON) for body in bodies)
    )
    assert [reply.status for reply in replies] == [200] * 16
    assert sorted(one.body for one in mirror.received) == sorted(bodies)
    mirror.received.clear()


def takes_trailers(config: envoy_config.Config) -> None:
    """Envoy takes trailers of HTTP/1.1 clients, and gives them on; both must be asked for."""
    manager = envoy_config.connection_manager(config)
    manager["http_protocol_options"] = {"enable_trailers": True}
    options = envoy_config.cluster(config, "engines")["typed_extension_protocol_options"]
    [protocol] = options.values()
    protocol["explicit_http_config"] = {"http_protocol_options": {"enable_trailers": True}}


def shows_trailers(config: envoy_config.Config) -> None:
    """The processor sees them too."""
    takes_trailers(config)
    envoy_config.ext_proc(config)["processing_mode"]["request_trailer_mode"] = "SEND"


def without_retries(config: envoy_config.Config) -> None:
    """Envoy 1.40 sends a body twice over in duplex where trailers follow it and the route may
    retry, whatever the processor answers."""
    shows_trailers(config)
    del envoy_config.connection_manager(config)["route_config"]["virtual_hosts"][0]["retry_policy"]


@pytest.mark.parametrize(
    ("wiring", "edit"),
    [(BUFFERED, takes_trailers), (BUFFERED, shows_trailers), (DUPLEX, without_retries)],
    ids=["buffered", "buffered, shown", "duplex"],
)
async def test_trailers_of_a_request_follow_its_body(
    envoys: Envoys, mirror: Upstream, wiring: Wiring, edit: Callable[[envoy_config.Config], None]
) -> None:
    stack = await another_envoy(envoys.stack, wiring, pods=[mirror.address], edit=edit)
    for path, kind in ((CHAT, "application/json"), ("/v1/files", "text/plain")):
        for body in (odd_chat(1), odd_chat(LARGE_BYTES)):
            head = (
                f"POST {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n"
                f"content-type: {kind}\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
            )
            chunk = b"%x\r\n%s\r\n" % (len(body), body)
            status, _ = await send_raw(stack.url, head.encode(), chunk, b"0\r\nx-sum: 42\r\n\r\n")
            assert status == 200
            received = last(mirror)
            assert (len(received.body), received.trailers) == (len(body), {"x-sum": "42"})
            assert received.body == body
            assert ("target-pod" in received.headers) is (path == CHAT)


# -- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_a_streamed_answer_arrives_piece_by_piece_as_the_pod_makes_it(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    parts = [b'data: {"piece": %d}\n\n' % number for number in range(4)]
    mirror.answer_in_steps(parts)
    asked = asyncio.create_task(
        stack.session.post(stack.url + CHAT, data=odd_chat(1), headers=AS_JSON)
    )
    try:
        await eventually_async(lambda: mirror.received)
        assert not asked.done()
        mirror.step()
        # From here on the pod sends the next piece only when the one before has arrived.
        async with asyncio.timeout(10), await asked as reply:
            assert reply.status == 200
            assert reply.headers["content-type"] == "text/event-stream"
            for part in parts:
                mirror.step()
                assert await reply.content.readexactly(len(part)) == part
            assert not reply.content.at_eof()
            mirror.step()
            assert await reply.content.read() == b""
    finally:
        mirror.answer_at_once()
        mirror.received.clear()


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_a_streamed_answer_of_an_engine_is_whole_and_its_last_chunk_has_the_usage(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    prompt = text(f"s{wiring}", 40)
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    reply = await stack.chat(prompt, max_tokens=30, ignore_eos=True, **options)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, done = reply.events()
    assert done == "[DONE]"
    pieces = [json.loads(chunk) for chunk in chunks]
    streamed = "".join(
        piece["choices"][0]["delta"].get("content", "") for piece in pieces if piece["choices"]
    )
    assert pieces[-1]["usage"]["completion_tokens"] == 30
    whole = await stack.chat(prompt, max_tokens=30, ignore_eos=True)
    assert streamed == whole.json()["choices"][0]["message"]["content"] != ""


# -- requests that are not picked for ---------------------------------------------------------


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_the_list_of_models_is_answered_here(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    before = await total(stack, "aibrix_extproc_requests_total")
    for path in ("/v1/models", "/v1/models?after=x"):
        reply = await stack.request("GET", path)
        assert (reply.status, reply.pod) == (200, None)
        assert reply.headers["content-type"] == "application/json"
        assert uuid.UUID(reply.headers["request-id"])
        page = reply.json()
        assert page["object"] == "list"
        assert {entry["id"] for entry in page["data"]} == {"tiny", "mirror"}
        assert {entry["object"] for entry in page["data"]} == {"model"}
    assert mirror.received == []
    assert await total(stack, "aibrix_extproc_requests_total") == before + 2


PASSED = [
    ("GET", "/v1/models/mirror", None, {}),
    ("GET", "/v1/files?x=1", None, {}),
    ("DELETE", "/v1/files/7", None, {}),
    ("GET", "/health", None, {}),
    ("POST", "/v1/embeddings", b'{"model": "unheard of", "input": "x"}', AS_JSON),
    ("POST", "/v1/embeddings", b'{"input": "no model"}', AS_JSON),
    ("POST", "/v1/embeddings", b'{"model": "mirror", broken', AS_JSON),
    ("POST", "/v1/embeddings", b"\x00\xff" * 150_000, AS_JSON),
    ("POST", "/v1/embeddings", b"", AS_JSON),
    ("PUT", "/v1/files/7", b'{"model": "mirror"}', AS_JSON),
    ("POST", "/v1/files", b'{"model": "mirror"}' * 20_000, {"content-type": "text/plain"}),
    ("POST", "/tokenize", b'{"model": "mirror", "prompt": "x"}', AS_JSON),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lone(envoys: Envoys, mirror: Upstream) -> Envoys:
    """Envoys that know no pod but the mirror, so that it gets what is not picked for."""
    return Envoys(envoys.stack, pods=[mirror.address])


@pytest.mark.parametrize("wiring", MODES, ids=str)
@pytest.mark.parametrize(("method", "path", "body", "headers"), PASSED)
async def test_what_names_no_known_model_passes_as_it_came(
    lone: Envoys,
    mirror: Upstream,
    wiring: Wiring,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
) -> None:
    stack = await lone.by(wiring)
    reply = await stack.request(method, path, data=body, headers=headers)
    assert (reply.status, reply.pod) == (200, "mirror-0")
    assert PICKED not in reply.headers
    received = last(mirror)
    assert (received.method, received.path, received.body) == (method, path, body or b"")
    assert DESTINATION_HEADERS.isdisjoint(received.headers)


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_each_reason_to_pass_is_counted(
    lone: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await lone.by(wiring)
    before = await samples(stack, "aibrix_extproc_passed_total")
    await stack.request("GET", "/v1/files")
    await stack.request("POST", "/v1/embeddings", body={"model": "unheard of"})
    await stack.request("POST", "/v1/embeddings", body={"input": "x"})
    grown = added(before, await samples(stack, "aibrix_extproc_passed_total"))
    assert grown == {("untouched",): 1, ("model_not_known",): 1, ("no_model",): 1}
    mirror.received.clear()


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_an_upload_of_a_form_passes_byte_for_byte(
    lone: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await lone.by(wiring)
    before = await total(stack, "aibrix_extproc_requests_total")
    form = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nmirror\r\n--b\r\n'
    body = form + bytes(range(256)) * 4_000 + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    for data in (body, in_pieces(body)):
        reply = await stack.request("POST", "/v1/audio/transcriptions", data=data, headers=headers)
        assert (reply.status, reply.pod) == (200, "mirror-0")
        received = last(mirror)
        assert received.body == body
        assert received.headers["content-type"] == headers["content-type"]
    # On a route of its own: the processor need not hold a file of any size.
    assert await total(stack, "aibrix_extproc_requests_total") == before


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_other_paths_with_a_known_model_are_routed_by_load(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    body = b'{"input": ["a", "b"],   "model": "mirror"}' + b" " * LARGE_BYTES
    for path in ("/v1/embeddings", "/v1/responses?x=1"):
        reply = await stack.request("POST", path, data=body, headers=AS_JSON)
        assert (reply.status, reply.pod, reply.headers[PICKED]) == (200, "mirror-0", "mirror-0")
        assert predicted(reply) == 0
        received = last(mirror)
        assert (received.path, received.body) == (path, body)
        assert received.headers["target-pod"] == mirror.address


@pytest.mark.parametrize("wiring", BY_ORIGINAL_DST, ids=str)
async def test_under_original_dst_what_is_not_picked_for_is_told_so(
    envoys: Envoys, mirror: Upstream, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    for method, path, body, headers in PASSED:
        reply = await stack.request(method, path, data=body, headers=headers)
        assert reply.status == 503
        assert reply.headers["content-type"] == "application/json"
        assert "No pod was picked" in reply.error["message"]
    assert mirror.received == []
