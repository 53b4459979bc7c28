"""What one load test found, as it was measured: the words between those who send and the report.

Owns the shapes and nothing that follows from them (`summary` does). Holds no text of a prompt or
an answer. Times are seconds since the start of their run, lengths are tokens. A value that nobody
could know is None; a count that could be read and was nothing is 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request. Latency counts from `intended_s`."""

    session: str
    """Its session's name."""
    turn: int
    """Its place in the session, from 0."""
    intended_s: float
    """When it was due: a wait because of the generator is a wait of the client."""
    sent_s: float
    """When it left. Later than `intended_s` by what the generator was late."""
    ended_s: float
    """When its last byte, or its error, came."""
    first_token_s: float | None = None
    """When the first piece of text came; None: none did."""
    gaps_s: Sequence[float] = ()
    """Between each two pieces of text that followed each other. `array('d', …)` keeps a long run
    small."""
    error: str | None = None
    """A short reason, the same for the same trouble; None: answered in full."""
    prompt_tokens: int = 0
    """As the engine's `usage` says; 0: it did not."""
    cached_tokens: int | None = None
    """Of these, reused, as the engine's `usage` says."""
    answer_tokens: int = 0
    """As the engine's `usage` says."""
    pod: str | None = None
    """Who answered."""
    matched_tokens: int | None = None
    """What the processor expected to be reused when it decided."""


@dataclass(frozen=True, slots=True)
class PodSample:
    """One pod at one moment, by its engine's own /metrics."""

    running: int
    """Requests that it works on (`vllm:num_requests_running`)."""
    waiting: int = 0
    """Requests in its queue (`vllm:num_requests_waiting`)."""
    queried_tokens: int | None = None
    """Prompt tokens looked up in its cache, since any time before the run."""
    hit_tokens: int | None = None
    """Of these, found."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading during a run. Counters as they were read: since any time before the run; one
    that goes down was set to 0 by a new process."""

    at_s: float
    decisions_by_reason: Mapping[str, int] = field(default_factory=dict)
    """`aibrix_prefix_cache_routing_selection_total`, by `selection`."""
    decisions_by_basis: Mapping[str, int] = field(default_factory=dict)
    """`aibrix_extproc_decision_basis_total`, by `basis`."""
    prompt_tokens: int | None = None
    """`aibrix_extproc_prompt_tokens_total`."""
    matched_tokens: int | None = None
    """`aibrix_extproc_matched_tokens_total`."""
    pods: Mapping[str, PodSample] = field(default_factory=dict)
    """By pod's name; empty where engines were not asked."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """One strategy under the whole workload."""

    strategy: str
    requests: Sequence[RequestResult]
    """In any order."""
    duration_s: float
    """To the end of the last request."""
    offered_per_s: float | None = None
    """Requests in a second that the plan asks for; None: the summary takes the times at which
    requests were due."""
    samples: Sequence[Sample] = ()
    """In order of time. The first is taken before the first request, the last after the last."""
    looks_at_prompts: bool | None = None
    """Whether the strategy does: one that does not predicts nothing. None: not known."""
    interrupted: bool = False
    """Ended by hand before its time."""
    generator_cpu_share: float | None = None
    """CPU time of the generator's process by the run's time: near 1 it is itself the bottleneck."""
    machine_cpu_share: float | None = None
    """Of all cores of the generator's machine, busy with anything: 0 to 1."""


@dataclass(frozen=True, slots=True)
class NullRun:
    """How fast the generator was against an upstream that answers at once."""

    requests: int
    duration_s: float
    chunks: int
    """Of text in each answer."""
    errors: int = 0

    @property
    def requests_per_s(self) -> float:
        """The ceiling: the most that this generator could have sent. 0 of no time."""
        return self.requests / self.duration_s if self.duration_s else 0.0


@dataclass(frozen=True, slots=True)
class Slo:
    """A request is good where it was answered in full and kept every limit that is set."""

    ttft_s: float | None = None
    """Of its time to first token."""
    inter_token_s: float | None = None
    """Of the mean of its own gaps between tokens. An answer of one piece has none, and keeps it."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where the generator ran."""

    version: str
    """Of aibrix-extproc."""
    python: str
    cores: int
    """That this process may use."""
    machine: str = ""
    """Such as `Linux x86_64`."""


@dataclass(frozen=True, slots=True)
class LoadTest:
    """One load test: the same workload under one strategy or several, one after another."""

    model: str
    workload: str
    """Its name, such as `shared-prefix`."""
    target: str
    """The URL that was asked, or `own stack, 4 pods`."""
    seed: int
    started_unix_s: float
    """Of the first run: seconds since 1970."""
    environment: Environment
    runs: Sequence[RunResult]
    """At least one. Each strategy once."""
    options: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    """Everything by which the test can be repeated, as a person would give it. No secrets: no
    values of headers."""
    slo: Slo = Slo()
    null_run: NullRun | None = None
    """None: none was made."""
