"""The JSON that a vLLM server answers: completions, chats, chunks, lists of models, errors.

Pure: data in, dictionaries out. Fields that a client reads are all there; those that only ever
hold null in the recordings are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aibrix_extproc.fakes.bodies import Ask, Refused
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.scheduler import Finish, Request

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What all parts of one answer share."""

    reply_id: str
    created: int
    ask: Ask


@dataclass(slots=True)
class Answer:
    """One answer, complete or as far as it is."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish: Finish | None = None


def usage(ask: Ask, requests: Sequence[Request]) -> Json:
    """Token counts of a whole answer; `cached_tokens` is what the engine reused."""
    completion = sum(request.generated for request in requests)
    cached = sum(request.cached_tokens or 0 for request in requests)
    return {
        "prompt_tokens": ask.prompt_tokens,
        "total_tokens": ask.prompt_tokens + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def whole(head: ReplyHead, answers: Sequence[Answer], counts: Json) -> Json:
    """The body of an answer that is not streamed."""
    ask = head.ask
    reply = _envelope(head, "chat.completion" if ask.chat else "text_completion")
    reply["choices"] = [_choice(ask, index, answer) for index, answer in enumerate(answers)]
    reply["usage"] = counts
    if ask.chat and ask.return_token_ids:
        reply["prompt_token_ids"] = ask.prompts[0]
    return reply


def _choice(ask: Ask, index: int, answer: Answer) -> Json:
    choice: Json = {"index": index}
    if ask.chat:
        choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
    else:
        choice["text"] = answer.text
    choice["logprobs"] = None
    choice["finish_reason"] = str(answer.finish) if answer.finish else None
    choice["stop_reason"] = None
    if ask.return_token_ids:
        choice["token_ids"] = answer.token_ids
        if not ask.chat:
            choice["prompt_token_ids"] = ask.prompts[index // ask.choices]
    return choice


def opening_chunk(head: ReplyHead, index: int) -> Json:
    """The first chunk of a chat's choice: the role, and no text yet."""
    return _chunk(head, index, {"delta": {"role": "assistant", "content": ""}}, None)


def chunk(head: ReplyHead, index: int, part: Answer) -> Json:
    """A further piece of one choice."""
    piece: Json = {"delta": {"content": part.text}} if head.ask.chat else {"text": part.text}
    if head.ask.return_token_ids:
        piece["token_ids"] = part.token_ids
    return _chunk(head, index, piece, part.finish)


def usage_chunk(head: ReplyHead, counts: Json) -> Json:
    """The last chunk where `stream_options.include_usage` is set."""
    reply = _envelope(head, "chat.completion.chunk" if head.ask.chat else "text_completion")
    return {**reply, "choices": [], "usage": counts}


def _chunk(head: ReplyHead, index: int, piece: Json, finish: Finish | None) -> Json:
    reply = _envelope(head, "chat.completion.chunk" if head.ask.chat else "text_completion")
    ending = str(finish) if finish else None
    reply["choices"] = [{"index": index, **piece, "logprobs": None, "finish_reason": ending}]
    return reply


def _envelope(head: ReplyHead, kind: str) -> Json:
    return {
        "id": head.reply_id,
        "object": kind,
        "created": head.created,
        "model": head.ask.model,
    }


def models(config: EngineConfig, created: int) -> Json:
    """`/v1/models`: the base model, then each adapter with its parent."""

    def entry(name: str, parent: str | None) -> Json:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": name,
            "parent": parent,
            "max_model_len": None if parent else config.model_len,
        }

    adapters = [entry(name, config.model) for name in config.adapters]
    return {"object": "list", "data": [entry(config.model, None), *adapters]}


def rendered(head: ReplyHead) -> Json | list[Json]:
    """`/render`: the ids that the engine would compute, one object per prompt of a completion."""
    objects = [
        {
            "request_id": head.reply_id,
            "token_ids": prompt,
            "model": head.ask.model,
            "sampling_params": {"max_tokens": limit},
            "stream": head.ask.stream,
            "cache_salt": head.ask.cache_salt,
        }
        for prompt, limit in zip(head.ask.prompts, head.ask.max_tokens, strict=True)
    ]
    return objects[0] if head.ask.chat else objects


def error(refused: Refused) -> Json:
    """vLLM's error object."""
    return {
        "error": {
            "message": refused.message,
            "type": refused.kind,
            "param": refused.param,
            "code": refused.status,
        }
    }
