"""How the server leaves without a request noticing.

Owns the order of the steps. Never waits for generations: a stream whose decision is sent is
ended well, which leaves its answer untouched.
"""

import asyncio
import logging
from typing import Final

import grpc

from aibrix_extproc.extproc.health import Health
from aibrix_extproc.extproc.service import Processor
from aibrix_extproc.settings import Settings

_MARGIN_S: Final = 0.25
"""A decision that began just now ends at its time-out; its reply must still be written."""

_log = logging.getLogger(__name__)


async def drain(
    server: grpc.aio.Server, service: Processor, health: Health, settings: Settings
) -> None:
    """Say NOT_SERVING, take requests for the pre-stop delay, end what may end, and stop.

    Streams without an outcome get the decision's time-out; what is left then is cut off with an
    error status, never with an OK end. That includes answers that are echoed through this server
    (`response_body_mode: FULL_DUPLEX_STREAMED`) and run on. Cancel it to leave at once.
    """
    await health.leave()
    _log.info(
        "draining: %d requests open; new ones are taken for %g s",
        service.open_streams,
        settings.pre_stop_delay_s,
    )
    await asyncio.sleep(settings.pre_stop_delay_s)
    undecided = service.end_settled()
    _log.info("draining: %d requests without an outcome", undecided)
    await server.stop(settings.decision_timeout_s + _MARGIN_S)
