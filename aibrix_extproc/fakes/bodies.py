"""What a request's JSON body asks of the engine; pure, with vLLM's own refusals.

Owns the reading of bodies and every rule about their fields. Knows no socket and no engine.
Messages and types of errors are those of vLLM 0.32.0, as recorded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from aibrix_extproc.fakes.blocks import Adapter
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.tokenizer import BadPrompt, ChatPrompt, Tokenizer

Body: TypeAlias = Mapping[str, Any]

_COMPLETION_TOKENS: Final = 16
"""`max_tokens` of a completion that sets none; OpenAI's default."""


class Refused(Exception):
    """The request is answered with this status and OpenAI's error object."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str = "BadRequestError",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param


@dataclass(frozen=True, slots=True)
class Ask:
    """A completion or a chat, read: token ids per prompt and how to answer."""

    model: str
    adapter: Adapter | None
    prompts: list[list[int]]
    max_tokens: list[int]
    """Of each prompt."""
    chat: bool
    choices: int = 1
    """Answers per prompt (`n`)."""
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    ignore_eos: bool = False
    cache_salt: str | None = None
    session_id: str | None = None
    report_hits: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts together."""
        return sum(map(len, self.prompts))


class BodyReader:
    """Reads bodies for one engine."""

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._adapters = {
            name: Adapter(name, number) for number, name in enumerate(config.adapters, 1)
        }

    def completion(self, body: Body) -> Ask:
        """`/v1/completions`: text, token ids, or a list of either. Raises Refused."""
        model = self._model(body)
        special = bool(body.get("add_special_tokens", True))
        prompts = [self._truncated(body, ids) for ids in self._prompts(body, special)]
        default = _COMPLETION_TOKENS
        return self._ask(body, model, prompts, _count(body, "max_tokens"), default, chat=False)

    def chat(self, body: Body) -> Ask:
        """`/v1/chat/completions`. Raises Refused."""
        model = self._model(body)
        ids = self._encode_chat(self._engine_chat(body))
        limit = _count(body, "max_completion_tokens") or _count(body, "max_tokens")
        return self._ask(body, model, [self._truncated(body, ids)], limit, None, chat=True)

    def tokenize(self, body: Body) -> list[int]:
        """`/tokenize`: ids of a text or a chat, however long.

        As in vLLM, top-level `documents`, `reasoning_effort` and `truncate_prompt_tokens` do
        nothing here. Raises Refused.
        """
        self._model(body)
        if "messages" in body:
            kwargs = dict(_mapping(body, "chat_template_kwargs"))
            return self._encode_chat(_chat_prompt(body, kwargs, body.get("tools")))
        if not isinstance(body.get("prompt"), str):
            message = "`prompt`, a string, or `messages`: Field required"
            raise Refused(message, kind="Bad Request", param="body.prompt")
        return self._tokenizer.encode(body["prompt"], bool(body.get("add_special_tokens", True)))

    def _model(self, body: Body) -> str:
        model = body.get("model") or self._config.model
        if model not in self._config.model_names:
            raise Refused(
                f"The model `{model}` does not exist. Valid aliases: {self._config.model}.",
                404,
                "NotFoundError",
                "model",
            )
        return str(model)

    def _prompts(self, body: Body, special: bool) -> list[list[int]]:
        prompt = body.get("prompt")
        if isinstance(prompt, str) or (_is_token_ids(prompt) and prompt):
            prompt = [prompt]
        if not isinstance(prompt, list) or not prompt:
            raise Refused("`prompt` is a string, token ids, or a list of these", param="prompt")
        prompts = []
        for item in prompt:
            if isinstance(item, str):
                prompts.append(self._tokenizer.encode(item, special))
            elif _is_token_ids(item) and item:
                prompts.append(list(item))
            else:
                raise Refused("`prompt` holds neither text nor token ids", param="prompt")
        return prompts

    def _engine_chat(self, body: Body) -> ChatPrompt:
        kwargs = dict(_mapping(body, "chat_template_kwargs"))
        if body.get("documents") is not None:
            kwargs["documents"] = body["documents"]
        effort = body.get("reasoning_effort")
        if effort is not None:
            kwargs["reasoning_effort"] = effort
            kwargs.setdefault("enable_thinking", effort != "none")
        tools = body.get("tools")
        if body.get("tool_choice") == "none" and self._config.exclude_tools_when_tool_choice_none:
            tools = None
        return _chat_prompt(body, kwargs, tools)

    def _encode_chat(self, chat: ChatPrompt) -> list[int]:
        try:
            return self._tokenizer.encode_chat(chat)
        except BadPrompt as error:
            raise Refused(str(error)) from None

    def _truncated(self, body: Body, ids: list[int]) -> list[int]:
        keep = body.get("truncate_prompt_tokens")
        if keep is None:
            return ids
        keep = self._config.model_len if keep == -1 else keep
        if not isinstance(keep, int) or keep < 1:
            raise Refused("`truncate_prompt_tokens` is a positive number, or -1")
        return ids[-keep:]

    def _ask(
        self,
        body: Body,
        model: str,
        prompts: list[list[int]],
        limit: int | None,
        default: int | None,
        chat: bool,
    ) -> Ask:
        choices = _count(body, "n") or 1
        if choices > 1 and body.get("temperature") == 0:
            raise Refused(f"n must be 1 when using greedy sampling, got {choices}.")
        xargs = _mapping(body, "vllm_xargs")
        return Ask(
            model=model,
            adapter=self._adapters.get(model),
            prompts=prompts,
            max_tokens=[self._limit(len(prompt), limit, default) for prompt in prompts],
            chat=chat,
            choices=choices,
            stream=bool(body.get("stream")),
            include_usage=bool(_mapping(body, "stream_options").get("include_usage")),
            return_token_ids=bool(body.get("return_token_ids")),
            ignore_eos=bool(body.get("ignore_eos")),
            cache_salt=_text(body, "cache_salt"),
            session_id=_text(body, "session_id"),
            report_hits=xargs.get("kv_cache_report_mode") == "full",
        )

    def _limit(self, prompt_tokens: int, limit: int | None, default: int | None) -> int:
        """Tokens that the answer may have; `default` None: all that is left."""
        longest = self._config.model_len
        room = longest - prompt_tokens
        if room < 1:
            raise Refused(
                f"This model's maximum context length is {longest} tokens. However, your prompt "
                f"contains at least {prompt_tokens} input tokens, which exceeds this limit even "
                "without any output tokens. Please reduce the length of the input prompt.",
                param="input_tokens",
            )
        if limit is not None and limit > room:
            raise Refused(
                f"This model's maximum context length is {longest} tokens. However, you requested "
                f"{limit} output tokens and your prompt contains {prompt_tokens} input tokens. "
                "Please reduce the length of the input prompt or the number of output tokens.",
                param="max_tokens",
            )
        return limit or min(room, default or room)


def _chat_prompt(body: Body, kwargs: Mapping[str, Any], tools: object) -> ChatPrompt:
    if body.get("chat_template"):
        raise Refused(
            "Chat template is passed with request, but --trust-request-chat-template is not set. "
            "Refused request with untrusted chat template."
        )
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise Refused("`messages` is a list of messages", kind="Bad Request", param="body.messages")
    if tools is not None and not isinstance(tools, list):
        raise Refused("`tools` is a list of tools", param="tools")
    return ChatPrompt(
        messages=messages,
        tools=tools,
        template_kwargs=kwargs,
        add_generation_prompt=bool(body.get("add_generation_prompt", True)),
        continue_final_message=bool(body.get("continue_final_message")),
        add_special_tokens=bool(body.get("add_special_tokens")),
    )


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _mapping(body: Body, name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Refused(f"`{name}` is an object", param=name)
    return value


def _text(body: Body, name: str) -> str | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise Refused(f"Parameter '{name}' must be a non-empty string if provided.", param=name)
    return value


def _count(body: Body, name: str) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise Refused(f"`{name}` must be at least 1, got {value}.", param=name)
    return value
