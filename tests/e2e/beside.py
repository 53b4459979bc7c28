"""What several end-to-end tests need beside a stack: further Envoys in front of it, labelled
metrics, the moment when the index has caught up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from aibrix_extproc.settings import BodyMode
from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.envoy_config import ORIGINAL_DST, OVERRIDE_HOST, PickSource
from aibrix_extproc.stack.start import start_envoy
from tests.e2e.stack import Reply, Stack
from tests.e2e.watching import MATCHED, PICKED
from tests.envoy_binary import envoy_path
from tests.support import eventually_async

DESTINATION = "x-gateway-destination-endpoint"
DESTINATION_HEADERS = {"target-pod", DESTINATION, "x-data-parallel-rank"}
DEBUG_HEADERS = {"routing-strategy", PICKED, MATCHED}


EVENTS_ALONE = {
    "AIBRIX_EXTPROC_PREDICTION_TTL": "0",
    "AIBRIX_EXTPROC_EXPECTED_TIME_PER_TOKEN": "1ms",
}
"""What was just sent to a pod does not count as held there, only its events do; and in duplex,
where the end of a quick answer is not seen, its load is soon forgotten."""


@dataclass(frozen=True)
class Wiring:
    """How an Envoy picks and sends: one of the ways that are shipped."""

    template: str
    body_mode: BodyMode = BodyMode.BUFFERED
    pick_source: PickSource = PickSource.HEADER

    def __str__(self) -> str:
        how = self.pick_source if self.template == OVERRIDE_HOST else "original_dst"
        return f"{how}-{self.body_mode}"


BUFFERED = Wiring(OVERRIDE_HOST)
DUPLEX = Wiring(OVERRIDE_HOST, BodyMode.DUPLEX)
MODES = (BUFFERED, DUPLEX)
BY_METADATA = tuple(Wiring(OVERRIDE_HOST, mode, PickSource.METADATA) for mode in BodyMode)
BY_ORIGINAL_DST = tuple(Wiring(ORIGINAL_DST, mode) for mode in BodyMode)
EVERY_WIRING = (*MODES, *BY_METADATA, *BY_ORIGINAL_DST)


async def another_envoy(
    stack: Stack,
    wiring: Wiring,
    *,
    server: int = 0,
    pods: Sequence[str] | None = None,
    failure_mode_allow: bool | None = None,
    edit: Callable[[envoy_config.Config], None] | None = None,
) -> Stack:
    """The same engines and processors behind one more Envoy, which asks `servers[server]`.

    `pods`: the addresses that Envoy knows, where they are not just those of the engines.
    """
    config = envoy_config.render(
        envoy_config.shipped(wiring.template),
        listen="127.0.0.1:0",
        admin="127.0.0.1:0",
        extproc_addresses=[stack.servers[server].grpc_address],
        engine_addresses=pods or [engine.address for engine in stack.engines],
        body_mode=wiring.body_mode,
        pick_source=wiring.pick_source,
        failure_mode_allow=failure_mode_allow,
    )
    if edit is not None:
        edit(config)
    name = f"envoy-{wiring}"
    envoy = await start_envoy(stack.processes, stack.session, envoy_path(), config, name)
    return replace(stack, envoy=envoy)


class Envoys:
    """The Envoys of one stack, each started when a test first asks for it."""

    def __init__(self, stack: Stack, **options: Any) -> None:
        self.stack = stack
        self._options = options
        self._started: dict[Wiring, Stack] = {}

    async def by(self, wiring: Wiring) -> Stack:
        """The stack behind an Envoy of this wiring."""
        if wiring not in self._started:
            self._started[wiring] = await another_envoy(self.stack, wiring, **self._options)
        return self._started[wiring]


async def samples(stack: Stack, name: str, server: int = 0) -> dict[tuple[str, ...], float]:
    """The samples of one metric, by the values of its labels in the order of their names."""
    async with stack.session.get(f"{stack.servers[server].admin_url}/metrics") as reply:
        page = await reply.text()
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    }


async def total(stack: Stack, name: str, server: int = 0) -> float:
    """One metric summed over its labels; 0 where it has no sample yet."""
    return sum((await samples(stack, name, server)).values())


def added(
    before: Mapping[tuple[str, ...], float], after: Mapping[tuple[str, ...], float]
) -> dict[tuple[str, ...], float]:
    """What has grown between two `samples`, and by how much."""
    grown = {labels: value - before.get(labels, 0.0) for labels, value in after.items()}
    return {labels: value for labels, value in grown.items() if value}


async def caught_up(stack: Stack) -> None:
    """Wait until the processor has applied every batch that the engines have published."""
    expected: dict[tuple[str, int], int] = {}

    async def applied() -> bool:
        for engine in stack.engines:
            for rank in engine.ranks:
                if rank.publisher is None or not rank.publisher.sent_all:
                    return False
                key = (f"default/{engine.config.name}", rank.rank)
                expected[key] = rank.publisher.sequence - 1
        views = {(view["pod"], view["rank"]): view for view in await stack.debug("/debug/sources")}
        return all(
            number < 0 or (key in views and views[key]["sequence"] == number)
            for key, number in expected.items()
        )

    await eventually_async(applied)


async def serves(stack: Stack, *models: str) -> None:
    """Wait until the processor knows just these names."""

    async def known() -> bool:
        page = await stack.admin("/v1/models")
        return {entry["id"] for entry in page["data"]} == set(models)

    await eventually_async(known)


def predicted(reply: Reply) -> int:
    """Tokens that the processor said the pod holds."""
    return int(reply.headers[MATCHED])
