"""One measurement in a process of its own: `python -m benchmarks.trials NAME '{"option": …}'`.

Prints one JSON object. Payloads come from a file that another process wrote, so that neither
their making nor its garbage shows. CPU time is the process's, garbage collection is off.
"""

import gc
import json
import random
import statistics
import sys
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aibrix_extproc import index
from aibrix_extproc.index import Applied, reference
from benchmarks.messages import read_messages, rss_bytes, write_messages
from benchmarks.workload import BLOCK_TOKENS, VOCABULARY, Message, Workload, stored_chain

PROMPT_TOKENS: Final = (1024, 8192, 32768, 131072)
HOLDERS: Final = 4


class Empty:
    """Takes every call and does nothing: what the harness itself costs."""

    _applied = Applied(0, 0, 0, 0, {}, False, None, 0)

    def __init__(self) -> None:
        self._sources = 0

    def add_source(self, model: str) -> int:
        self._sources += 1
        return self._sources - 1

    def apply(self, source: int, payload: bytes) -> Applied:
        return self._applied

    def match(self, model: str, tokens: Any) -> dict[int, int]:
        return {}

    def clear_source(self, source: int) -> None:
        pass


BACK_ENDS: Final[dict[str, Callable[[], Any]]] = {
    "core": index.PrefixIndex,
    "reference": reference.PrefixIndex,
    "empty": Empty,
}


def new_index(options: dict[str, Any]) -> Any:
    made = BACK_ENDS[options["back_end"]]()
    for _ in range(options["sources"]):
        made.add_source("m")
    return made


def applied_all(made: Any, messages: list[Message]) -> tuple[float, float]:
    """CPU and wall seconds. Nothing is queued: the clock stops after the last is applied."""
    apply = made.apply
    wall, cpu = time.perf_counter(), time.process_time()
    for source, payload in messages:
        apply(source, payload)
    return time.process_time() - cpu, time.perf_counter() - wall


def ingest(options: dict[str, Any]) -> dict[str, float]:
    messages = list(read_messages(options["file"]))
    made = new_index(options)
    cpu, wall = applied_all(made, messages)
    blocks = options["blocks"]
    return {"cpu_ns": cpu / blocks * 1e9, "wall_ns": wall / blocks * 1e9}


def memory(options: dict[str, Any]) -> dict[str, float]:
    """Growth of RSS while messages are read one by one; nothing else is kept."""
    warm = new_index({"back_end": options["back_end"], "sources": 1})
    for _, payload in zip(range(50), (p for _, p in read_messages(options["file"])), strict=False):
        warm.apply(0, payload)
    made = new_index(options)
    before = rss_bytes()
    for source, payload in read_messages(options["file"]):
        made.apply(source, payload)
    grown = rss_bytes() - before
    told = made.stats().bytes if options["back_end"] != "empty" else 0
    blocks = options["blocks"]
    return {"bytes": grown / blocks, "told_bytes": told / blocks}


def removal(options: dict[str, Any]) -> dict[str, float]:
    made = new_index(options)
    applied_all(made, list(read_messages(options["file"])))
    gone = list(read_messages(options["removals"]))
    cpu, wall = applied_all(made, gone)
    blocks = options["blocks"]
    return {"cpu_ns": cpu / blocks * 1e9, "wall_ns": wall / blocks * 1e9}


def timed_us(work: Callable[[], object], repeats: int) -> float:
    """Median of so many calls, each timed alone."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e3


def matches(options: dict[str, Any]) -> dict[str, float]:
    """Microseconds per `match` as Python sees it, on top of workload W."""
    made = new_index(options)
    for source, payload in read_messages(options["file"]):
        made.apply(source, payload)
    rng = random.Random(7)
    found: dict[str, float] = {}
    prompts = {n: array("I", rng.choices(range(VOCABULARY), k=n)) for n in PROMPT_TOKENS}
    for tokens, prompt in prompts.items():
        for source in range(HOLDERS):
            for payload in stored_chain(1000 + tokens, source, prompt):
                made.apply(source, payload)
    repeats = options["repeats"]
    for tokens, prompt in prompts.items():
        other = array("I", rng.choices(range(VOCABULARY), k=tokens))
        half = prompt[: tokens // 2] + other[tokens // 2 :]
        blocks = tokens // BLOCK_TOKENS
        for label, asked, depth in (("full", prompt, blocks), ("half", half, blocks // 2),
                                    ("none", other, 0)):  # fmt: skip
            if options["back_end"] != "empty":
                assert set(made.match("m", asked).values()) == ({depth} if depth else set())
            found[f"{tokens}_{label}"] = timed_us(lambda a=asked: made.match("m", a), repeats)
    shared = Workload(options["sources"], options["sequences"]).prompt(0)
    found["shared_holders"] = len(made.match("m", shared))
    found["shared"] = timed_us(lambda: made.match("m", shared), repeats)
    return found


def clearing(options: dict[str, Any]) -> dict[str, float]:
    """Clear one source after another; ns per placement of each."""
    made = new_index(options)
    for source, payload in read_messages(options["file"]):
        made.apply(source, payload)
    held = options["blocks"] / options["sources"]
    start = time.process_time()
    for source in range(10):
        made.clear_source(source)
    return {"ns": (time.process_time() - start) / 10 / held * 1e9}


def latency(options: dict[str, Any]) -> dict[str, float]:
    """Match latency of one thread, while another applies at a fixed rate, behind or not."""
    messages = list(read_messages(options["file"]))
    made = new_index(options)
    half = len(messages) // 2
    for source, payload in messages[:half]:
        made.apply(source, payload)
    per_message = options["blocks"] / len(messages)
    prompts = [Workload(options["sources"], options["sequences"]).prompt(n) for n in range(64)]
    done = threading.Event()
    applied = [0]

    def feed() -> None:
        """Open loop: what is due by the clock, whatever came before."""
        start = time.monotonic()
        position = half
        while not done.is_set():
            due = (time.monotonic() - start) * options["rate"] / per_message
            while applied[0] < due and not done.is_set():
                source, payload = messages[position]
                made.apply(source, payload)
                applied[0] += 1
                position = position + 1 if position + 1 < len(messages) else half
            time.sleep(0.001)

    thread = threading.Thread(target=feed)
    started = time.monotonic()
    if options["rate"]:
        thread.start()
    times = []
    while time.monotonic() - started < options["seconds"]:
        before = time.perf_counter_ns()
        made.match("m", prompts[len(times) % 64])
        times.append(time.perf_counter_ns() - before)
        time.sleep(0.0005)
    lasted = time.monotonic() - started
    done.set()
    if options["rate"]:
        thread.join()
    times.sort()
    return {
        "p50_us": times[len(times) // 2] / 1e3,
        "p99_us": times[len(times) * 99 // 100] / 1e3,
        "worst_us": times[-1] / 1e3,
        "blocks_per_s": applied[0] * per_message / lasted,
        "calls": len(times),
    }


TRIALS: Final[dict[str, Callable[[dict[str, Any]], dict[str, float]]]] = {
    "ingest": ingest,
    "memory": memory,
    "removal": removal,
    "match": matches,
    "clear": clearing,
    "latency": latency,
}


def make_files(options: dict[str, Any]) -> dict[str, float]:
    """Write the messages of a workload, and what it comes to."""
    workload = Workload(
        options["sources"],
        options["sequences"],
        shared_hashes=options.get("shared_hashes", False),
    )
    if options.get("removals"):
        write_messages(Path(options["path"]), workload.removals())
    else:
        messages = workload.messages(
            events_per_message=options["events_per_message"], arrays=options["arrays"]
        )
        write_messages(Path(options["path"]), messages)
    return {"blocks": sum(len(event.hashes) for event in workload.events())}


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    gc.disable()
    print(json.dumps(make_files(options) if name == "files" else TRIALS[name](options)))


if __name__ == "__main__":
    main()
