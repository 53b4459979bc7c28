"""A prompt goes to the pod that holds its beginning, by every way in which Envoy is told."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aibrix_extproc.stack import envoy_config
from tests.e2e.beside import (
    BUFFERED,
    BY_METADATA,
    BY_ORIGINAL_DST,
    DESTINATION,
    EVENTS_ALONE,
    EVERY_WIRING,
    MODES,
    Envoys,
    Wiring,
    another_envoy,
    caught_up,
    predicted,
    serves,
)
from tests.e2e.stack import gateway
from tests.e2e.upstream import Upstream
from tests.e2e.watching import PICKED, text

pytestmark = pytest.mark.asyncio(loop_scope="module")


def only(pod: str) -> dict[str, str]:
    """The header that lets just this pod be chosen."""
    return {"external-filter": f"pod={pod}"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mirrors() -> AsyncIterator[list[Upstream]]:
    """Two pods of another model that show what they were sent."""
    async with Upstream("mirror-0") as first, Upstream("mirror-1") as second:
        yield [first, second]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(mirrors: list[Upstream]) -> AsyncIterator[Envoys]:
    async with gateway(engines=3, environment=EVENTS_ALONE) as stack:
        entries = [stack.endpoint(number) for number in range(3)]
        stack.list_pods(*entries, *(mirror.endpoint() for mirror in mirrors))
        await serves(stack, "tiny", "mirror")
        yield Envoys(stack, pods=[pod.address for pod in (*stack.engines, *mirrors)])


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_a_prompts_second_request_goes_to_the_pod_that_holds_it(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    for number, engine in enumerate(stack.engines * 2):
        prompt = text(f"{wiring}{number}")
        first = await stack.complete(prompt, headers=only(engine.config.name))
        assert first.pod == first.headers[PICKED] == engine.config.name
        assert predicted(first) == first.cached_tokens == 0
        await caught_up(stack)
        again = await stack.complete(prompt)
        assert again.pod == again.headers[PICKED] == engine.config.name
        assert predicted(again) == again.cached_tokens > 250


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_a_prompt_that_begins_like_two_others_goes_where_more_of_it_is(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    shared = text(f"shared{wiring}", 150)
    longer = f"{shared} {text('more', 150)}"
    await stack.complete(shared, headers=only("engine-0"))
    await stack.complete(longer, headers=only("engine-2"))
    await caught_up(stack)
    reply = await stack.complete(f"{longer} {text('end', 50)}")
    assert reply.pod == "engine-2"
    assert predicted(reply) == reply.cached_tokens > 250
    only_shared = await stack.complete(f"{longer} ends otherwise", headers=only("engine-0"))
    assert only_shared.pod == "engine-0"
    assert 130 < predicted(only_shared) == only_shared.cached_tokens < predicted(reply)


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_pod_that_has_dropped_a_prompt_is_not_believed_to_hold_it(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    prompt = text(f"dropped{wiring}")
    await stack.complete(prompt, headers=only("engine-1"))
    await caught_up(stack)
    async with stack.session.post(f"http://{stack.engines[1].address}/reset_prefix_cache") as reset:
        assert reset.status == 200
    # A clear is announced with the engine's next step.
    await stack.complete("another", headers=only("engine-1"))
    await caught_up(stack)
    again = await stack.complete(prompt, headers=only("engine-1"))
    assert predicted(again) == again.cached_tokens == 0


# -- the picked pod is down -------------------------------------------------------------------


def held(wiring: Wiring, number: int) -> str:
    """A prompt of which `engine-0` holds all, `engine-2` the most of the others."""
    return text(f"{wiring}{number}h")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bereaved() -> AsyncIterator[Envoys]:
    """Four pods, of which `engine-0` holds what `held` says, and is gone without notice."""
    async with gateway(engines=4, environment=EVENTS_ALONE) as stack:
        for wiring in EVERY_WIRING:
            for number in range(3):
                prompt = held(wiring, number)
                await stack.complete(prompt, headers=only("engine-0"))
                await stack.complete(prompt[: len(prompt) // 2], headers=only("engine-2"))
        await caught_up(stack)
        await stack.engines[0].close()
        yield Envoys(stack)


@pytest.mark.parametrize("wiring", [*MODES, *BY_METADATA], ids=str)
async def test_where_the_picked_pod_is_down_the_next_of_the_list_answers(
    bereaved: Envoys, wiring: Wiring
) -> None:
    stack = await bereaved.by(wiring)
    for number in range(3):
        reply = await stack.complete(held(wiring, number))
        assert reply.status == 200
        assert reply.headers[PICKED] == "engine-0"
        assert reply.pod == "engine-2"
        assert 0 < reply.cached_tokens < predicted(reply)


@pytest.mark.parametrize("wiring", BY_ORIGINAL_DST, ids=str)
async def test_under_original_dst_a_picked_pod_that_is_down_is_a_503_and_others_answer(
    bereaved: Envoys, wiring: Wiring
) -> None:
    stack = await bereaved.by(wiring)
    for number in range(3):
        reply = await stack.complete(held(wiring, number))
        assert (reply.status, reply.pod) == (503, None)
        assert reply.headers[PICKED] == "engine-0"
    assert (await stack.complete("another", headers=only("engine-3"))).pod == "engine-3"


# -- what is set for the pod, and what Envoy may say ------------------------------------------


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_the_pod_is_told_who_was_picked_how_and_for_which_request(
    envoys: Envoys, mirrors: list[Upstream], wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    for number, mirror in enumerate(mirrors):
        mirror.received.clear()
        other = mirrors[1 - number]
        prefer = {"routing-strategy": "least-request"}
        reply = await stack.complete("x", model="mirror", headers=only(mirror.name) | prefer)
        assert reply.pod == mirror.name
        told = mirror.received[0].headers
        assert told["target-pod"] == told[DESTINATION] == mirror.address
        assert told["routing-strategy"] == "least-request"
        assert told["x-request-id"] == reply.headers["request-id"] != ""
        assert "x-data-parallel-rank" not in told

        mirror.received.clear()
        other.received.clear()
        await stack.complete("x", model="mirror")
        [told] = [one.headers for one in (*mirror.received, *other.received)]
        best, second = told[DESTINATION].split(",")
        assert best == told["target-pod"]
        assert {best, second} == {mirror.address, other.address}
        assert told["routing-strategy"] == "prefix-cache"


async def test_a_subset_that_envoy_names_restricts_the_choice(envoys: Envoys) -> None:
    address = envoys.stack.engines[1].address

    def name_subset(config: envoy_config.Config) -> None:
        filters = envoy_config.connection_manager(config)["http_filters"]
        kind = "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config"
        subset = {
            "metadata_namespace": "envoy.lb.subset_hint",
            "value": {f"{DESTINATION}-subset": f"{address}, 127.0.0.1:1"},
        }
        filters.insert(0, {"name": "subset", "typed_config": {"@type": kind, "metadata": [subset]}})

    stack = await another_envoy(envoys.stack, BUFFERED, edit=name_subset)
    for number in range(8):
        assert (await stack.complete(text(f"subset{number}", 30))).pod == "engine-1"
    refused = await stack.complete("no pod is left", headers=only("engine-0"))
    assert (refused.status, refused.error["code"]) == (503, "no_candidate")
    assert refused.headers["x-error-routing"] == "true"
