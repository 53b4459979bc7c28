"""The settings of a fake engine: one frozen object, made by the command line or by a test."""

from dataclasses import dataclass

from aibrix_extproc.fakes.events import Version, parse_version


@dataclass(frozen=True, slots=True)
class TimeModel:
    """How long a step takes. All zero, the default, means as fast as the loop turns.

    A step lasts `step + tokens * prefill + pairs * quadratic`, and if requests decode in it also
    `decode * (1 + slowing * (requests - 1))`; all of that times `scale`.
    """

    prefill_us_per_token: float = 0.0
    prefill_quadratic_ns: float = 0.0
    """Per pair of a computed token and a token before it: what attention costs."""
    decode_ms_per_token: float = 0.0
    decode_slowing: float = 0.02
    """How much each further request of the batch slows a decode step, as a share."""
    step_ms: float = 0.0
    scale: float = 1.0

    def step_s(self, prefill_tokens: int, attended_pairs: int, decoding: int) -> float:
        """Seconds of one step."""
        seconds = self.step_ms / 1e3 + prefill_tokens * self.prefill_us_per_token / 1e6
        seconds += attended_pairs * self.prefill_quadratic_ns / 1e9
        if decoding:
            slowing = 1 + self.decode_slowing * (decoding - 1)
            seconds += self.decode_ms_per_token / 1e3 * slowing
        return seconds * self.scale


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One fake engine: a server with one or more data-parallel ranks.

    Ports of 0 are chosen by the system; of None, not opened. Rank r uses `port + r`.
    """

    model: str = "tiny"
    adapters: tuple[str, ...] = ()
    """LoRA adapters in the order of loading: the first has lora_id 1."""
    name: str = "fake-vllm"
    """The pod's name: answered in `x-fake-pod`."""
    host: str = "127.0.0.1"
    port: int = 0
    kv_events_port: int | None = 0
    kv_replay_port: int | None = 0
    topic: str = ""
    buffer_steps: int = 10_000
    vllm_version: str = "0.32.0"
    hash_bytes: int = 8
    hash_seed: int | None = None
    """Of the block hashes; None: another one in every process, as in an engine."""
    block_size: int = 16
    num_blocks: int = 2048
    """Blocks of each rank; one of them is reserved."""
    max_model_len: int | None = None
    """None: what the cache holds, at most 131,072 tokens."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    data_parallel_size: int = 1
    time: TimeModel = TimeModel()
    decode_group: int = 1
    """Tokens that a pure decode step makes at once, and that one SSE chunk carries."""
    answer_tokens: int = 256
    """After this many tokens an answer ends by itself, unless the request says `ignore_eos`.
    0: every answer goes on to the limit that its request sets."""
    head_at_once: bool = False
    """Send the head of a streamed answer before its first token, as vLLM does; an error after it
    can only be told in the stream."""
    render: bool = False
    """Serve `/v1/…/render`."""
    exclude_tools_when_tool_choice_none: bool = False
    debug_requests: int = 1000
    """Requests remembered for `/debug/requests`."""

    def __post_init__(self) -> None:
        parse_version(self.vllm_version)
        if self.data_parallel_size < 1 or self.decode_group < 1:
            raise ValueError("data_parallel_size and decode_group are at least 1")
        if self.model_len > (self.num_blocks - 1) * self.block_size:
            raise ValueError(
                f"max_model_len is {self.model_len} tokens, but the cache holds "
                f"{(self.num_blocks - 1) * self.block_size}: set it lower, or num_blocks higher"
            )
        events, replay, ranks = self.kv_events_port, self.kv_replay_port, self.data_parallel_size
        if events and replay and abs(events - replay) < ranks:
            raise ValueError(
                f"event ports {events}… and replay ports {replay}… of {ranks} ranks overlap"
            )

    @property
    def version(self) -> Version:
        """`vllm_version` as numbers."""
        return parse_version(self.vllm_version)

    @property
    def model_len(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.max_model_len or min(131_072, (self.num_blocks - 1) * self.block_size)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name that a request may ask for."""
        return (self.model, *self.adapters)
