"""What is known of an engine's pod: plain frozen data, passed to every other room.

Knows neither Kubernetes nor a file: both make these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

MODEL_LABEL = "model.aibrix.ai/name"
PORT_LABEL = "model.aibrix.ai/port"
KV_EVENTS_LABEL = "model.aibrix.ai/kv-events-enabled"
LORA_ID_LABEL = "model.aibrix.ai/lora-id"
DATA_PARALLEL_ANNOTATION = "model.aibrix.ai/data-parallel-size"


@dataclass(frozen=True, slots=True)
class Rank:
    """One data-parallel rank of a pod: a KV cache and an event stream of its own.

    Endpoints are ZMQ's (`tcp://10.0.0.1:5557`); None where the pod sends no events, or has no
    replay port.
    """

    rank: int = 0
    event_endpoint: str | None = None
    replay_endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """One engine replica. Another `uid` or `address` is another engine, whatever its name."""

    namespace: str
    name: str
    uid: str
    address: str
    """`ip:port` of the engine's HTTP API; what `target-pod` carries."""
    model: str
    """The label `model.aibrix.ai/name`: the model's name in the index and in metrics."""
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True
    """False also while it terminates: no candidate, but its cache is still tracked."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that the endpoints file declares, beside those of `/v1/models`."""
    kv_events: bool = False
    lora_id: int | None = None
    """Events with this `lora_id` are the pod's own model name (before vLLM 0.14)."""
    ranks: tuple[Rank, ...] = (Rank(),)
    metrics_address: str | None = None
    """`ip:port` of `/metrics`, where it is not `address`."""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def identity(self) -> tuple[str, str, str]:
        """What must stay equal for a cache to be the same one: key, UID, address."""
        return (self.key, self.uid, self.address)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One entry of an engine's `/v1/models`; one with a `parent` is a LoRA adapter."""

    id: str
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What a pod said of itself when asked. None: it could not be asked, or does not know."""

    models: tuple[ListedModel, ...] | None = None
    ranks: tuple[Rank, ...] | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a name that a client sends means: the model in the index, and the adapter if any."""

    name: str
    model: str
    adapter: str | None = None
