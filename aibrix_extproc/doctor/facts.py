"""What was collected of a set-up: plain frozen data, no socket and no clock.

Owns the shapes between the collectors and the checks. A part that could not be had, or that
nobody asked for, is a `Missing` that says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from aibrix_extproc.agreement.fingerprints import Fingerprint
from aibrix_extproc.discovery.kube_pods import PodObject
from aibrix_extproc.discovery.pods import ListedModel, Pod, Rank
from aibrix_extproc.doctor.envoy_dump import Dump
from aibrix_extproc.settings import Settings


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of the facts that is not there."""

    why: str
    failed: bool = False
    """It was asked for and could not be had; else nobody asked."""
    kind: str = ""
    """Of a failure: what sort, for the check that explains it."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The variables, and the settings that they make."""

    variables: Mapping[str, str]
    settings: Settings
    """Without the variables that cannot be used: those count as unset."""
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Variable → why its value cannot be used."""
    contradictions: tuple[str, ...] = ()
    """What stops the start although each variable can be used alone."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment or StatefulSet: its own labels, and those of its pods."""

    kind: str
    key: str
    labels: Mapping[str, str]
    template_labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KubernetesFacts:
    """What the API server lists."""

    pods: tuple[PodObject, ...]
    """All of the namespace, with our label or without."""
    commands: Mapping[str, tuple[str, ...]]
    """Pod → the words of all its containers' commands and arguments."""
    workloads: tuple[Workload, ...] | Missing
    problems: Mapping[str, tuple[str, ...]]
    """Pod → what discovery says of it."""


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods as the processor would know them."""

    pods: tuple[Pod, ...]
    source: str
    """Where they are from, for the reader."""
    ranks_written: frozenset[str] = frozenset()
    """Keys of the pods whose ports the operator wrote down."""
    kubernetes: KubernetesFacts | None = None


class Reached(StrEnum):
    """What a TCP connection to a port came to."""

    OPEN = "open"
    REFUSED = "refused"
    TIMEOUT = "no answer in time"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP call: a status and body, or why there is none."""

    status: int = 0
    body: bytes = b""
    failure: str = ""
    reached: Reached = Reached.OPEN
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """One rank's `vllm:cache_config_info`, as far as it is there."""

    block_size: int | None = None
    prefix_caching: bool | None = None
    engine: str = ""
    """The rank's number, as text; empty before vLLM says one."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What one pod's HTTP port says."""

    pod: Pod
    """With the ranks that count: the operator's, else the engine's own, else the declared ones."""
    declared: Pod
    models_answer: Answer
    models: tuple[ListedModel, ...] | None = None
    engine_ranks: tuple[Rank, ...] | None = None
    """By its `/kv_event_sources`; None before vLLM 0.31."""
    caches: tuple[CacheConfig, ...] = ()
    looked_up_tokens: int | None = None
    """Tokens that its prefix cache was asked for since its start."""
    tokenize_answer: Answer | None = None
    """The faster of two questions; None where the tokenizer is switched off."""
    fingerprint: Fingerprint | None = None


class Listener(StrEnum):
    """Who answers on a ZMQ port, by the greeting."""

    ZMQ = "ZMQ"
    HTTP = "an HTTP server"
    OTHER = "something that speaks no ZMQ"
    SILENT = "something that says nothing"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a port says to ZMTP's greeting; nothing was subscribed or asked."""

    reached: Reached
    listener: Listener = Listener.NOBODY
    mechanism: str = ""
    """NULL, PLAIN or CURVE."""
    socket_type: str = ""
    """PUB, ROUTER, …; empty where the mechanism hides it."""


@dataclass(frozen=True, slots=True)
class StoredSeen:
    """A BlockStored that begins a prompt, as far as it is compared."""

    token_ids: tuple[int, ...]
    block_size: int


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of one stream or replay, summed up."""

    count: int = 0
    first_sequence: int | None = None
    last_sequence: int | None = None
    fell: tuple[int, int] | None = None
    """The first two numbers in a row of which the second is lower."""
    block_sizes: frozenset[int] = frozenset()
    unreadable: Mapping[str, int] = field(default_factory=dict)
    """Reason → how many events or payloads."""
    bad_frames: Mapping[str, int] = field(default_factory=dict)
    roots: tuple[StoredSeen, ...] = ()
    payloads: Mapping[int, bytes] = field(default_factory=dict)
    """Sequence → a digest of the payload, for the last batches."""


@dataclass(frozen=True, slots=True)
class ReplaySeen:
    """What asking for everything from 0 came to."""

    ended: bool
    """The end marker came."""
    batches: Batches
    failure: str = ""
    """Empty also where it was left off after as many batches as doctor takes."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One source: what its event port and its replay port said."""

    pod: str
    model: str
    rank: int
    event_endpoint: str
    replay_endpoint: str | None
    events: Greeting
    replays: Greeting | None
    connected: bool = False
    """The handshake of a SUB, with the settings' own keys, succeeded."""
    live: Batches = Batches()
    replay: ReplaySeen | None = None


@dataclass(frozen=True, slots=True)
class Probed:
    """A small completion sent to one pod, and what its streams said after it."""

    pod: str
    answer: Answer
    tokens: tuple[int, ...] | None
    """Of the same prompt, by the tokenizer that decisions ask; None: it gave none."""
    delivered: tuple[str, ...] = ()
    """Streams (`pod rank r`) that delivered a block of this prompt."""
    roots: tuple[StoredSeen, ...] = ()
    """What the pod's own streams delivered meanwhile."""


@dataclass(frozen=True, slots=True)
class TokenizerEndpoint:
    """What AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT says of one model."""

    url: str
    model: str
    answer: Answer
    fingerprint: Fingerprint | None = None


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a running processor says of itself; each page None where it was not asked."""

    readiness: Answer | None = None
    metrics: Answer | None = None
    models: Answer | None = None
    sources: Answer | None = None
    agreement: Answer | None = None
    levers: Answer | None = None


@dataclass(frozen=True, slots=True)
class EnvoyFacts:
    """An Envoy's configuration, and what it says of its hosts."""

    dump: Dump
    where: str
    unhealthy: Mapping[str, tuple[str, ...]] | None = None
    """Cluster → hosts that fail their health check; None where Envoy was not asked."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it."""

    environment: Environment
    pods: Pods | Missing
    engines: tuple[Engine, ...] | Missing
    streams: tuple[Stream, ...] | Missing
    endpoints: tuple[TokenizerEndpoint, ...] | Missing
    probed: tuple[Probed, ...] | Missing
    envoy: EnvoyFacts | Missing
    server: ServerFacts | Missing

    @property
    def settings(self) -> Settings:
        """Those that the environment makes."""
        return self.environment.settings
