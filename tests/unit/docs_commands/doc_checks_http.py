"""Commands that ask something over HTTP, or start what is asked: curl, vllm, envoy."""

import json
import re
from urllib.parse import urlsplit

from tests.unit.docs_commands import doc_facts as facts
from tests.unit.docs_commands.doc_checks import (
    HOW_TO_TEACH,
    Problems,
    checks,
    exists,
    is_json,
    split_options,
)
from tests.unit.docs_commands.doc_facts import ROOT
from tests.unit.docs_commands.doc_shell import Command

_CURL = {
    "-s": 0, "-S": 0, "-sS": 0, "-f": 0, "-fsS": 0, "-i": 0, "-v": 0, "-k": 0, "-N": 0,
    "-H": 1, "-d": 1, "-X": 1, "-o": 1, "--data": 1, "--header": 1, "--fail": 0, "--silent": 0,
    "--data-binary": 1, "--max-time": 1,
}  # fmt: skip


@checks("curl")
def check_curl(command: Command) -> Problems:
    given, urls, wrong = split_options(command.words[1:], _CURL, "curl")
    yield from wrong
    bodies = [value for name, value in given if name in ("-d", "--data", "--data-binary")]
    headers = [value.lower() for name, value in given if name in ("-H", "--header")]
    asked = [value for name, value in given if name == "-X"]
    method = asked[0] if asked else "POST" if bodies else "GET"
    for body in bodies:
        if not body.startswith("@"):
            yield from is_json(body)
    for url in urls:
        yield from _url(url, method, headers)
    if not urls and not command.inline:
        yield "curl is given no URL"


def _url(url: str, method: str, headers: list[str]) -> Problems:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.netloc.startswith("$"):
        parts = parts._replace(netloc="gateway")
    port, path = parts.port or 80, re.sub(r"\$\w+", "shadow", parts.path) or "/"
    if port in facts.applications():
        said = facts.route_says(port, method, path)
        if said:
            yield said
        said_json = any(h.startswith("content-type: application/json") for h in headers)
        if method == "POST" and not said_json:
            yield "a POST to the debug port needs -H 'content-type: application/json'"
    elif port in facts.ENVOY_PORTS | facts.ENGINE_PORTS:
        if path not in facts.OPENAI_PATHS:
            yield f"{path} is no path of the OpenAI API that is known here"
    elif port not in facts.OTHER_PORTS:
        yield f"nothing that is known here listens on port {port}; {HOW_TO_TEACH} (doc_facts)"


# -- engines and Envoy ----------------------------------------------------------------------------

_VLLM = {
    "--served-model-name": 1, "--enable-prefix-caching": 0, "--kv-events-config": 1, "--port": 1,
    "--data-parallel-size": 1, "--enable-prompt-tokens-details": 0, "--max-model-len": 1,
    "--exclude-tools-when-tool-choice-none": 0, "--block-size": 1, "--enable-lora": 0,
    "--lora-modules": 1, "--tokenizer": 1,
}  # fmt: skip
_KV_EVENTS = {
    "enable_kv_cache_events", "publisher", "endpoint", "replay_endpoint", "buffer_steps", "hwm",
    "max_queue_size", "topic",
}  # fmt: skip


@checks("vllm")
def check_vllm(command: Command) -> Problems:
    if (
        command.words[1:2]
        and command.words[1:2] != ("serve",)
        and command.words[1:3] != ("launch", "render")
    ):
        yield f"vllm {command.words[1]} is not known here; {HOW_TO_TEACH}"
    given, _rest, wrong = split_options(command.words[2:], _VLLM, "vllm")
    yield from wrong
    for name, value in given:
        if name == "--kv-events-config":
            yield from is_json(value)
            unknown = set(json.loads(value)) - _KV_EVENTS
            if unknown:
                yield f"vLLM's KV events have no {sorted(unknown)}"


@checks("envoy")
def check_envoy(command: Command) -> Problems:
    known = {"--config-path": 1, "-c": 1, "--mode": 1, "--log-level": 1, "--concurrency": 1}
    known |= {"--base-id": 1, "--service-cluster": 1, "--service-node": 1}
    given, _rest, wrong = split_options(command.words[1:], known, "envoy")
    yield from wrong
    for name, value in given:
        if name in ("--config-path", "-c") and not (ROOT / "envoy" / value).exists():
            yield from exists(value)
