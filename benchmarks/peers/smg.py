"""SMG's gateway with `--kv-index chain`, a process of its own. Runs in the environment of the peer.

    python -m benchmarks.peers.smg FILES EVENTS_PER_MESSAGE

It takes events by gRPC from workers, so this process plays one vLLM worker per source: the messages
of W as `KvEventBatch`, made before the clock starts. Its figures are of its whole process, measured
from outside and less what it takes when idle (it asks after 100 workers): HTTP/2, protobuf, hashing
and index. `apply_ns` and the look-ups are its own histograms, of the index alone.
"""

import asyncio
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2

from benchmarks.messages import Message, cpu_seconds, on_one_core, read_messages, rss_bytes
from benchmarks.peers.files import PROMPT_TOKENS, Files, load

BLOCK_TOKENS = 16
LOOK_UPS = 31
_SERVICE = "/vllm.grpc.engine.VllmEngine/"
_PATIENCE_S = 240


class Worker(grpc.GenericRpcHandler):
    """As much of a vLLM worker as the gateway asks for; answers are made here, once."""

    def __init__(self, tokenizer: str) -> None:
        self.batches: asyncio.Queue[bytes] = asyncio.Queue()
        pb = vllm_engine_pb2
        limits = {"max_context_length": 200_000, "vocab_size": 128_000}
        loads = pb.GetLoadsResponse(dp_rank_count=1, loads=[pb.SchedulerLoad()])
        self._answers = {
            "HealthCheck": pb.HealthCheckResponse(healthy=True),
            "GetModelInfo": pb.GetModelInfoResponse(is_generation=True, model_path="m",
                                                    tokenizer_path=tokenizer,
                                                    served_model_name="m", **limits),
            "GetServerInfo": pb.GetServerInfoResponse(server_type="vllm-grpc", block_size=16,
                                                      data_parallel_size=1),
            "GetLoads": loads,
        }  # fmt: skip
        done = pb.GenerateComplete(output_ids=[1], finish_reason="stop", completion_tokens=1)
        self._reply = pb.GenerateResponse(complete=done)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if not details.method.startswith(_SERVICE):
            return None
        name = details.method.removeprefix(_SERVICE)
        if name in self._answers:
            answer = self._answers[name].SerializeToString()

            async def unary(_request: bytes, _context: object) -> bytes:
                return answer

            return grpc.unary_unary_rpc_method_handler(unary)
        streams = {"SubscribeKvEvents": self._events, "Generate": self._generate}
        return grpc.unary_stream_rpc_method_handler(streams[name]) if name in streams else None

    async def _events(
        self, _request: bytes, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        await context.send_initial_metadata(())  # the gateway calls again where none comes
        while True:
            yield await self.batches.get()

    async def _generate(self, _request: bytes, _context: object) -> AsyncIterator[bytes]:
        yield self._reply.SerializeToString()


def signed(engine_hash: int) -> int:
    return engine_hash - (1 << 64) if engine_hash >> 63 else engine_hash


def batch_of(number: int, payload: bytes) -> bytes:
    """One message of W as the gateway's workers send it."""
    timestamp, events, _ = msgspec.msgpack.decode(payload)
    batch = common_pb2.KvEventBatch(sequence_number=number, timestamp=timestamp, dp_rank=0)
    for position, event in enumerate(events):
        made = batch.events.add(event_id=position)
        if event["type"] == "BlockRemoved":
            made.removed.block_hashes.extend(map(signed, event["block_hashes"]))
            made.removed.tier = common_pb2.KV_CACHE_TIER_DEVICE
            continue
        made.stored.tier = common_pb2.KV_CACHE_TIER_DEVICE
        if event["parent_block_hash"] is not None:
            made.stored.parent_block_hash = signed(event["parent_block_hash"])
        for place, engine_hash in enumerate(event["block_hashes"]):
            tokens = event["token_ids"][place * BLOCK_TOKENS : (place + 1) * BLOCK_TOKENS]
            made.stored.blocks.add(block_hash=signed(engine_hash), token_ids=tokens,
                                   block_size=BLOCK_TOKENS)  # fmt: skip
    return batch.SerializeToString()


class Gateway:
    """The child, seen through its metrics and its HTTP API."""

    def __init__(self, process: int, port: int, metrics_port: int, workers: list[Worker]) -> None:
        self.process = process
        self.workers = workers
        self._generate = f"http://127.0.0.1:{port}/generate"
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"

    async def metric(self, name: str, labels: str = "") -> float:
        """A sum over all workers. 0 as long as there is none."""

        def read() -> str:
            with urllib.request.urlopen(self._metrics, timeout=30) as reply:
                return str(reply.read(), "utf-8")

        try:
            text = await asyncio.to_thread(read)
        except OSError:
            return 0.0
        found = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.M)
        return sum(float(value) for has, value in found if labels in has)

    async def feed(self, batches: Iterator[Message], op: str, blocks: int) -> float:
        """CPU seconds of the child until its index has taken that many blocks."""
        name, labels = "smg_kv_event_blocks_total", f'op="{op}"'
        wanted = await self.metric(name, labels) + blocks
        start = cpu_seconds(self.process)
        for source, batch in batches:
            self.workers[source].batches.put_nowait(batch)

        async def taken() -> bool:
            return await self.metric(name, labels) >= wanted

        await wait_for(taken, f"{blocks} blocks {op}")
        return cpu_seconds(self.process) - start

    async def look_up_us(self, tokens: list[int]) -> float:
        """Mean of the child's own histogram of look-ups, over so many requests."""
        body = {"model": "m", "input_ids": tokens, "sampling_params": {"max_new_tokens": 1}}
        data = json.dumps(body).encode()

        def ask() -> None:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(self._generate, data=data, headers=headers)
            with urllib.request.urlopen(request, timeout=30) as reply:
                reply.read()

        name = "smg_kv_index_lookup_seconds"
        await asyncio.to_thread(ask)
        spent, count = await self.metric(f"{name}_sum"), await self.metric(f"{name}_count")
        for _ in range(LOOK_UPS):
            await asyncio.to_thread(ask)
        spent = await self.metric(f"{name}_sum") - spent
        return spent / (await self.metric(f"{name}_count") - count) * 1e6


async def wait_for(done: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not await done():
        if time.monotonic() > deadline:
            raise SystemExit(f"not seen within {_PATIENCE_S} s: {what}")
        await asyncio.sleep(0.2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def write_tokenizer(directory: Path) -> None:
    """The gateway wants one although every prompt here is tokens already."""
    tokenizer: dict[str, Any] = {"version": "1.0", "added_tokens": []}
    tokenizer |= dict.fromkeys(("normalizer", "decoder", "post_processor"))
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    tokenizer["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "a"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(on_one_core(command), stdout=sys.stderr, stderr=sys.stderr)


@asynccontextmanager
async def running(sources: int) -> AsyncIterator[Gateway]:
    port, metrics_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        workers = [Worker(directory) for _ in range(sources)]
        servers, urls = [], []
        for worker in workers:
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((worker,))
            urls.append(f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            servers.append(server)
        command = [sys.executable, "-m", "smg", "launch", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--prometheus-port", str(metrics_port)]
        command += ["--policy", "cache_aware", "--kv-index", "chain", "--block-size", "16"]
        command += ["--backend", "vllm", "--model-path", directory, "--log-level", "error"]
        command += ["--worker-urls", *urls]
        child = start(command)
        try:
            yield Gateway(child.pid, port, metrics_port, workers)
        finally:
            child.kill()
            child.wait()
            await asyncio.gather(*(server.stop(0) for server in servers))


def numbered(path: str, sent: Counter[int]) -> list[Message]:
    made = []
    for source, payload in read_messages(path):
        sent[source] += 1
        made.append((source, batch_of(sent[source], payload)))
    return made


def read_text(path: str) -> str:
    return Path(path).read_text()


async def trial(files: Files, events: str) -> dict[str, float]:
    sent: Counter[int] = Counter()
    parts = (files.stored[events], files.chains, files.removed)
    prompts: list[Any] = json.loads(read_text(files.prompts))
    stored, chains, removed = [numbered(part, sent) for part in parts]
    async with running(files.sources) as gateway:

        async def subscribed() -> bool:
            return await gateway.metric("smg_kv_event_subscriptions_total") >= files.sources

        await wait_for(subscribed, f"{files.sources} subscriptions")
        idle, since = cpu_seconds(gateway.process), time.monotonic()
        await asyncio.sleep(3)
        idle = (cpu_seconds(gateway.process) - idle) / (time.monotonic() - since)
        before = rss_bytes(gateway.process)

        async def timed(batches: list[Message], op: str, blocks: int) -> float:
            start = time.monotonic()
            spent = await gateway.feed(iter(batches), op, blocks)
            return (spent - idle * (time.monotonic() - start)) / blocks * 1e9

        found = {"ingest_ns": await timed(stored, "stored", files.blocks)}
        applied = await gateway.metric("smg_kv_event_apply_seconds_sum")
        found["apply_ns"] = applied / files.blocks * 1e9
        found["memory_bytes"] = (rss_bytes(gateway.process) - before) / files.blocks
        await gateway.feed(iter(chains), "stored", files.chain_blocks)
        for tokens, prompt in zip(PROMPT_TOKENS, prompts, strict=True):
            found[f"match_{tokens}_us"] = await gateway.look_up_us(prompt)
        found["removal_ns"] = await timed(removed, "removed", files.blocks)
        found["idle_cores"] = idle
        return found


def main() -> None:
    print(json.dumps(asyncio.run(trial(load(sys.argv[1]), sys.argv[2]))))


if __name__ == "__main__":
    main()
