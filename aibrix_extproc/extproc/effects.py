"""What a stream wants done: the output of the state machine, plain data.

`service` carries them out in order. Knows neither gRPC nor metrics.
"""

import msgspec

from aibrix_extproc.agreement.usage import NoUsage, Usage
from aibrix_extproc.errors import RequestError
from aibrix_extproc.extproc.decides import RouteRequest
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb


class Reply(msgspec.Struct, frozen=True):
    """Send this to Envoy."""

    response: pb.ProcessingResponse


class Decide(msgspec.Struct, frozen=True):
    """Ask for a decision, and come back with `decided` or `refused`. Always the last effect."""

    request: RouteRequest


class Abort(msgspec.Struct, frozen=True):
    """End the stream with an error: an OK end would forward a body that is not complete."""

    code: str
    """Name of a gRPC status."""
    message: str


class PrefillDone(msgspec.Struct, frozen=True):
    """The answer has begun."""

    ticket: object
    served_by: str | None = None
    """`ip:port` of the host that serves, where Envoy says it."""
    succeeded: bool = True
    """With status 200."""


class Observed(msgspec.Struct, frozen=True):
    """What the answer of a sampled request said of its tokens."""

    ticket: object
    found: Usage | NoUsage


class Release(msgspec.Struct, frozen=True):
    """The answer has ended, or will never be."""

    ticket: object


class Settled(msgspec.Struct, frozen=True):
    """What became of the request: said once per stream."""

    outcome: str
    """`picked`, `passed`, `refused`, `answered`, or `left` (over before there was an outcome)."""
    reason: str = ""
    """Of `passed`."""
    error: RequestError | None = None
    """Of `refused`."""


Effect = Reply | Decide | Abort | PrefillDone | Observed | Release | Settled
