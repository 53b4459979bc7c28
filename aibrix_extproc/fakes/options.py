"""The command line of `aibrix-extproc fake-vllm`."""

import argparse
import asyncio
import json
import signal
import sys

import uvloop

from aibrix_extproc.fakes.config import EngineConfig, TimeModel

_DEFAULTS = EngineConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of the sub-command; `run` reads them."""
    add = parser.add_argument
    add("--model", default=_DEFAULTS.model, help="name of the base model")
    add("--lora", default="", help="names of LoRA adapters, separated by commas")
    add("--name", default=_DEFAULTS.name, help="the pod's name, answered in x-fake-pod")
    add("--host", default=_DEFAULTS.host, help="address to listen on")
    add("--port", type=int, default=8000, help="HTTP port; 0: any free one")
    add("--kv-events-port", type=int, default=5557, help="of rank 0; 0: any, -1: no events")
    add("--kv-replay-port", type=int, default=5657, help="of rank 0; 0: any, -1: no replay")
    add("--topic", default="", help="topic of the events")
    add("--buffer-steps", type=int, default=_DEFAULTS.buffer_steps, help="batches kept for replay")
    add("--vllm-version", default=_DEFAULTS.vllm_version, help="version whose wire format is sent")
    add("--hash-bytes", type=int, choices=(8, 16, 32), default=_DEFAULTS.hash_bytes)
    add("--hash-seed", type=int, default=None, help="fixes the block hashes; random without")
    add("--block-size", type=int, default=_DEFAULTS.block_size, help="tokens per block")
    add("--num-blocks", type=int, default=_DEFAULTS.num_blocks, help="blocks per rank")
    add("--max-model-len", type=int, default=None, help="longest prompt and answer, in tokens")
    add("--max-num-seqs", type=int, default=_DEFAULTS.max_num_seqs)
    add("--max-num-batched-tokens", type=int, default=_DEFAULTS.max_num_batched_tokens)
    add("--data-parallel-size", type=int, default=1, help="ranks, each with a cache of its own")
    _add_pace(parser)
    add("--head-at-once", action="store_true", help="heads of streamed answers come at once")
    add("--render", action="store_true", help="serve /v1/…/render")
    add("--exclude-tools-when-tool-choice-none", action="store_true")


def _add_pace(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prefill-us-per-token", type=float, default=50.0)
    add("--prefill-quadratic-ns", type=float, default=0.0, help="per pair of tokens that attend")
    add("--decode-ms-per-token", type=float, default=10.0)
    add("--decode-slowing", type=float, default=TimeModel().decode_slowing)
    add("--step-ms", type=float, default=0.0, help="fixed cost of a step")
    add("--time-scale", type=float, default=1.0, help="multiplies every duration; 0: no waiting")
    add("--decode-group", type=int, default=1, help="tokens per chunk while only decoding")
    add("--answer-tokens", type=int, default=_DEFAULTS.answer_tokens, help="0: up to max_tokens")


def config_from(args: argparse.Namespace) -> EngineConfig:
    """The configuration that these options mean. Raises ValueError with what to change."""
    return EngineConfig(
        model=args.model,
        adapters=tuple(name.strip() for name in args.lora.split(",") if name.strip()),
        name=args.name,
        host=args.host,
        head_at_once=args.head_at_once,
        port=args.port,
        kv_events_port=_port(args.kv_events_port),
        kv_replay_port=_port(args.kv_replay_port),
        topic=args.topic,
        buffer_steps=args.buffer_steps,
        vllm_version=args.vllm_version,
        hash_bytes=args.hash_bytes,
        hash_seed=args.hash_seed,
        block_size=args.block_size,
        num_blocks=args.num_blocks,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        data_parallel_size=args.data_parallel_size,
        time=TimeModel(
            prefill_us_per_token=args.prefill_us_per_token,
            prefill_quadratic_ns=args.prefill_quadratic_ns,
            decode_ms_per_token=args.decode_ms_per_token,
            decode_slowing=args.decode_slowing,
            step_ms=args.step_ms,
            scale=args.time_scale,
        ),
        decode_group=args.decode_group,
        answer_tokens=args.answer_tokens,
        render=args.render,
        exclude_tools_when_tool_choice_none=args.exclude_tools_when_tool_choice_none,
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. 0 after a signal, 2 for bad options or a port in use."""
    try:
        config = config_from(args)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except (ValueError, OSError) as error:
        print(f"fake-vllm: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(config: EngineConfig) -> None:
    from aibrix_extproc.fakes.engine import FakeEngine  # slow to import for other commands

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with FakeEngine(config) as engine:
        print(json.dumps(engine.described()), flush=True)
        await stop.wait()


def _port(number: int) -> int | None:
    return None if number < 0 else number
