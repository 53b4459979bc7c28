"""What each pod's HTTP port says: models, event sources, metrics, tokens.

Owns the questions, all of which an engine answers without computing anything. What the answers
mean is for `check_engines` and `check_tokenizer`.
"""

import asyncio
import json
import re
from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from aibrix_extproc.agreement.counters import read_counters
from aibrix_extproc.agreement.fingerprints import CHAT, TEXT, Fingerprint, digest, ids_of
from aibrix_extproc.discovery.pods import ListedModel, Pod, Rank
from aibrix_extproc.discovery.probe_replies import BadReply, parse_models, parse_sources
from aibrix_extproc.doctor.calls import Caller
from aibrix_extproc.doctor.facts import Answer, CacheConfig, Engine, Pods, TokenizerEndpoint
from aibrix_extproc.settings import Settings

_INFO: Final = re.compile(r"^vllm:cache_config_info\{([^}\n]*)\}", re.MULTILINE)
_LABEL: Final = re.compile(r'\b(\w+)="([^"\n]*)"')
_MAX_DIGITS: Final = 5
"""Of a block size: a number that no engine has is none."""
_ANSWERED: Final = 200


async def ask_engines(caller: Caller, pods: Pods, settings: Settings) -> tuple[Engine, ...]:
    """One Engine for each pod, in the order of the pods."""
    ask = [_ask(caller, pod, pods.ranks_written, settings) for pod in pods.pods]
    return tuple(await asyncio.gather(*ask))


async def ask_endpoint(
    caller: Caller, settings: Settings, models: list[str]
) -> tuple[TokenizerEndpoint, ...]:
    """What the tokenizer endpoint says of each model."""

    async def one(model: str) -> TokenizerEndpoint:
        answer, fingerprint = await _fingerprint(caller, settings.tokenizer_endpoint, model)
        return TokenizerEndpoint(settings.tokenizer_endpoint, model, answer, fingerprint)

    return tuple(await asyncio.gather(*map(one, models)))


async def _ask(caller: Caller, pod: Pod, written: frozenset[str], settings: Settings) -> Engine:
    root = f"http://{pod.address}"
    answer = await caller.get(f"{root}/v1/models")
    engine = Engine(pod, pod, answer)
    if answer.failure:
        return engine
    models = _models(answer)
    own = _ranks(await caller.get(f"{root}/kv_event_sources"), pod)
    metrics = await caller.get(f"http://{pod.metrics_address or pod.address}/metrics")
    counted = read_counters(metrics.body) if metrics.status == _ANSWERED else None
    if own is not None and pod.key not in written and pod.kv_events:
        pod = replace(pod, ranks=own)
    engine = replace(
        engine,
        pod=pod,
        models=models,
        engine_ranks=own,
        caches=cache_configs(metrics.body) if metrics.status == _ANSWERED else (),
        looked_up_tokens=None if counted is None else counted.queries,
    )
    if not settings.use_remote_tokenizer:
        return engine
    tokenized, fingerprint = await _fingerprint(caller, root, pod.model)
    return replace(engine, tokenize_answer=tokenized, fingerprint=fingerprint)


async def _fingerprint(caller: Caller, root: str, model: str) -> tuple[Answer, Fingerprint | None]:
    """The faster of two answers, the first of which may have woken something up."""
    body = {"model": model, "prompt": TEXT}
    first = await caller.post(f"{root}/tokenize", body)
    if first.failure or first.status != _ANSWERED:
        return first, None
    second = await caller.post(f"{root}/tokenize", body)
    answer = min(first, second, key=lambda one: (bool(one.failure), one.seconds))
    chat = await caller.post(f"{root}/tokenize", {"model": model, "messages": list(CHAT)})
    return answer, Fingerprint(_digest(first), _digest(chat))


def _digest(answer: Answer) -> str | None:
    ids = token_ids(answer)
    return None if ids is None else digest(ids)


def token_ids(answer: Answer) -> "array[int] | None":
    """The ids of an answer of `/tokenize`; None where there are none."""
    return None if answer.failure or answer.status != _ANSWERED else ids_of(answer.body)


def _models(answer: Answer) -> tuple[ListedModel, ...] | None:
    if answer.status != _ANSWERED:
        return None
    try:
        return parse_models(answer.body)[0]
    except BadReply:
        return None


def _ranks(answer: Answer, pod: Pod) -> tuple[Rank, ...] | None:
    if answer.failure or answer.status != _ANSWERED:
        return None
    try:
        return parse_sources(answer.body, pod.address)
    except BadReply:
        return None


def cache_configs(exposition: bytes) -> tuple[CacheConfig, ...]:
    """Each rank's `vllm:cache_config_info`, in the order of the page."""
    text = exposition.decode("utf-8", "replace")
    return tuple(_cache(dict(_LABEL.findall(labels))) for labels in _INFO.findall(text))


def _cache(labels: Mapping[str, str]) -> CacheConfig:
    size = labels.get("block_size", "")
    caching = labels.get("enable_prefix_caching", "").lower()
    return CacheConfig(
        int(size) if size.isascii() and size.isdigit() and len(size) <= _MAX_DIGITS else None,
        {"true": True, "false": False}.get(caching),
        labels.get("engine", ""),
    )


def error_text(answer: Answer) -> str:
    """What an answer says went wrong, in short; never more than an engine's own message."""
    if answer.failure:
        return answer.failure
    message: Any = ""
    try:
        body = json.loads(answer.body)
        error = body.get("error", body) if isinstance(body, dict) else {}
        message = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        pass
    return f"status {answer.status}" + (f", {str(message)[:120]}" if message else "")
