"""The main job once, through every part: a prompt goes where its prefix is."""

from pathlib import Path

import pytest

from aibrix_extproc.settings import BodyMode
from aibrix_extproc.stack.envoy_config import ORIGINAL_DST, OVERRIDE_HOST
from tests.e2e.stack import gateway
from tests.support import eventually_async

LONG = " ".join(f"w{number}" for number in range(400))


def exists(path: Path) -> bool:
    return path.exists()


@pytest.mark.parametrize("template", [OVERRIDE_HOST, ORIGINAL_DST])
@pytest.mark.parametrize("mode", BodyMode)
async def test_a_repeated_prompt_goes_to_the_pod_that_holds_it(
    template: str, mode: BodyMode
) -> None:
    async with gateway(engines=3, template=template, body_mode=mode) as stack:
        for number in range(6):
            prompt = f"{number} {LONG}"
            first = await stack.complete(prompt)
            assert first.status == 200
            assert first.cached_tokens == 0

            async def known(prompt: str = prompt) -> bool:
                body = {"model": "tiny", "prompt": prompt}
                url = f"{stack.servers[0].debug_url}/debug/explain?path=/v1/completions"
                async with stack.session.post(url, json=body) as reply:
                    page = await reply.json()
                return any(candidate["depth"] for candidate in page["candidates"])

            await eventually_async(known)
            again = await stack.complete(prompt)
            assert again.pod == first.pod
            assert again.cached_tokens >= 384


async def test_nothing_is_left_after_a_gateway_has_ended() -> None:
    async with gateway(engines=1) as stack:
        pids = [stack.envoy.process.pid, stack.servers[0].process.pid]
        folder = stack.processes.folder
    assert not any(exists(Path(f"/proc/{pid}")) for pid in pids)
    assert not exists(folder)


async def test_a_processor_and_an_engine_can_be_started_again() -> None:
    async with gateway(engines=1) as stack:
        stack.servers[0].process.kill()
        await stack.engines[0].close()
        await stack.start_engine(0)
        await stack.start_server(0)
        assert (await stack.chat("Hello")).pod == "engine-0"
