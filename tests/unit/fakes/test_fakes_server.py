"""The engine over HTTP: answers, streams, refusals, and what it says of itself."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from aibrix_extproc.fakes.config import TimeModel
from tests.support import eventually_async
from tests.unit.fakes.fake_engine_rig import Rig, cached, rig

PROMPT = "any network model gateway work distribute software this gateway terms"
CHAT = [{"role": "user", "content": PROMPT}]
SLOW = TimeModel(decode_ms_per_token=5.0)


async def stream(on: Rig, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it should."""
    async with on.client.post(path, json={**body, "stream": True}) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in (await reply.text()).split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def metrics(on: Rig) -> dict[str, float]:
    _, text = await on.get("/metrics")
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    return {name: float(value) for name, value in samples}


# -- answers -------------------------------------------------------------------------------------
async def test_a_completion_answers_as_many_tokens_as_were_asked_for() -> None:
    async with rig(name="pod-7") as engine:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "return_token_ids": True}
        async with engine.client.post("/v1/completions", json=body) as raw:
            reply = await raw.json()
            assert raw.headers["x-fake-pod"] == "pod-7"
        (choice,) = reply["choices"]
        tokens = await engine.tokenize({"prompt": choice["text"], "add_special_tokens": False})
        assert (choice["finish_reason"], choice["token_ids"]) == ("length", tokens)
        assert reply["object"] == "text_completion"
        prompt_tokens = len(await engine.tokenize({"prompt": PROMPT}))
        assert reply["usage"] == {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 5,
            "total_tokens": prompt_tokens + 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


async def test_an_answer_ends_by_itself_unless_told_to_go_on() -> None:
    async with rig(answer_tokens=6) as engine:
        reply = await engine.ask("/v1/chat/completions", {"messages": CHAT})
        assert reply["choices"][0]["finish_reason"] == "stop"
        assert reply["usage"]["completion_tokens"] == 6
        body = {"messages": CHAT, "max_completion_tokens": 9, "ignore_eos": True}
        reply = await engine.ask("/v1/chat/completions", body)
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize("group", [1, 4])
async def test_a_streamed_answer_is_the_plain_one_in_pieces(group: int) -> None:
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 10}
    async with rig(decode_group=group) as engine:
        plain = await engine.ask("/v1/chat/completions", body)
        chunks = await stream(engine, "/v1/chat/completions", body)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[0] == {"role": "assistant", "content": ""}
        text = "".join(delta["content"] for delta in deltas)
        assert text == plain["choices"][0]["message"]["content"]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
        assert len(chunks) == 1 + 10 if group == 1 else len(chunks) < 8
        assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
        assert not any("usage" in chunk for chunk in chunks)


async def test_a_stream_ends_with_its_usage_where_that_is_asked_for() -> None:
    async with rig() as engine:
        body = {"prompt": PROMPT, "max_tokens": 3, "stream_options": {"include_usage": True}}
        *_, first = await stream(engine, "/v1/completions", body)
        *pieces, last = await stream(engine, "/v1/completions", body)
        assert "".join(piece["choices"][0]["text"] for piece in pieces)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 3
        assert cached(first) == 0
        assert cached(last) > 0


async def test_a_list_of_prompts_and_n_answers_come_in_order() -> None:
    async with rig() as engine:
        one, two = (
            await engine.tokenize({"prompt": "one"}),
            await engine.tokenize({"prompt": "two"}),
        )
        alone = await engine.ask("/v1/completions", {"prompt": "two", "max_tokens": 2})
        for prompts in (["one", "two"], [one, two]):
            body = {"prompt": prompts, "max_tokens": 2, "n": 2, "temperature": 1}
            reply = await engine.ask("/v1/completions", body)
            choices = reply["choices"]
            assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
            assert choices[2]["text"] == choices[3]["text"] == alone["choices"][0]["text"]
            assert choices[0]["text"] != choices[2]["text"]
            assert reply["usage"]["prompt_tokens"] == len(one) + len(two)
            assert reply["usage"]["completion_tokens"] == 8


async def test_a_truncated_prompt_keeps_its_end() -> None:
    async with rig() as engine:
        body = {"prompt": PROMPT, "max_tokens": 1, "truncate_prompt_tokens": 5}
        body["return_token_ids"] = True
        reply = await engine.ask("/v1/completions", body)
        whole = await engine.tokenize({"prompt": PROMPT, "truncate_prompt_tokens": 5})
        assert len(whole) > 5
        assert reply["choices"][0]["prompt_token_ids"] == whole[-5:]


async def test_a_request_does_not_wait_for_the_tokens_that_others_decode_at_once() -> None:
    pace = TimeModel(decode_ms_per_token=20.0)
    async with rig(decode_group=50, time=pace) as engine:
        long = {"prompt": PROMPT, "max_tokens": 51, "ignore_eos": True}
        first = asyncio.ensure_future(engine.ask("/v1/completions", long))
        await eventually_async(lambda: engine.engine.ranks[0].scheduler.counts.generated_tokens)
        await engine.ask("/v1/completions", {"prompt": "hello", "max_tokens": 1})
        assert not first.done()
        assert (await first)["usage"]["completion_tokens"] == 51


# -- refusals, as vLLM words them ------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
async def test_an_unknown_model_is_404(path: str) -> None:
    async with rig() as engine:
        body = {"model": "nope", "prompt": "x", "messages": CHAT}
        status, reply = await engine.post(path, body)
        assert status == 404
        assert reply["error"] == {
            "message": "The model `nope` does not exist. Valid aliases: tiny.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }


async def test_a_prompt_longer_than_the_model_takes_is_400() -> None:
    async with rig(max_model_len=32) as engine:
        ids = list(range(20, 53))
        status, reply = await engine.post("/v1/completions", {"prompt": ids, "max_tokens": 1})
        assert status == 400
        assert "maximum context length is 32 tokens" in reply["error"]["message"]
        status, reply = await engine.post("/v1/completions", {"prompt": ids[:20], "max_tokens": 13})
        assert (status, reply["error"]["param"]) == (400, "max_tokens")
        status, _ = await engine.post("/v1/completions", {"prompt": ids[:20], "max_tokens": 12})
        assert status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": []}),
        ("/v1/completions", {"prompt": [1, "x"]}),
        ("/v1/completions", {"prompt": {"a": 1}}),
        ("/v1/completions", {}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}),
        ("/v1/completions", {"prompt": "x", "n": 2, "temperature": 0}),
        ("/v1/completions", {"prompt": "x", "cache_salt": ""}),
        ("/v1/completions", {"prompt": "x", "stream_options": 3}),
        ("/v1/completions", {"prompt": "x", "truncate_prompt_tokens": 0}),
        ("/v1/chat/completions", {"messages": "x"}),
        ("/v1/chat/completions", {"messages": CHAT, "tools": {}}),
        ("/v1/chat/completions", {"messages": CHAT, "chat_template": "{{ x }}"}),
        ("/v1/chat/completions", {"messages": CHAT, "continue_final_message": True}),
        ("/tokenize", {"model": "tiny"}),
        ("/tokenize", {"prompt": ["a", "b"]}),
        ("/tokenize", [1, 2]),
    ],
)
async def test_a_body_that_vllm_refuses_is_400(path: str, body: object) -> None:
    async with rig() as engine:
        status, reply = await engine.post(path, body)
        assert status == 400
        assert reply["error"]["code"] == 400


async def test_a_body_must_be_json_and_say_so() -> None:
    async with rig() as engine:
        for kind, data in (("text/plain", b'{"prompt": "x"}'), ("application/json", b"{")):
            headers = {"Content-Type": kind}
            async with engine.client.post("/tokenize", data=data, headers=headers) as reply:
                assert reply.status == 400


async def test_an_unknown_path_is_404_with_an_error_object() -> None:
    async with rig() as engine:
        status, reply = await engine.post("/v1/responses", {"input": "x"})
        assert (status, reply["error"]["code"]) == (404, 404)


# -- ends ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_frees_its_blocks(streaming: bool) -> None:
    async with rig(time=SLOW) as engine:
        body = {"prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True, "stream": streaming}
        blocks = engine.engine.ranks[0].blocks
        async with aiohttp.ClientSession(f"http://{engine.engine.address}") as leaving:
            if streaming:
                reply = await leaving.post("/v1/completions", json=body)
                await reply.content.readline()
            else:
                waits = asyncio.ensure_future(
                    leaving.post("/v1/completions", json=body).__aenter__()
                )
                await eventually_async(lambda: blocks.used_blocks)
                waits.cancel()
            assert blocks.used_blocks
        await engine.idle()
        assert blocks.used_blocks == 0
        found = await metrics(engine)
        aborted = 'vllm:request_success_total{engine="0",model_name="tiny",finished_reason="abort"}'
        assert found[aborted] == 1


async def test_a_closing_engine_ends_open_answers() -> None:
    async with rig(time=SLOW) as engine:
        body = {"prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True, "stream": True}
        async with engine.client.post("/v1/completions", json=body) as reply:
            await reply.content.readline()
            await engine.engine.close()
            rest = await reply.content.read()
            assert b'"finish_reason": "abort"' in rest
        with pytest.raises(aiohttp.ClientConnectionError):
            await engine.get("/health")


# -- what the engine says of itself --------------------------------------------------------------
async def test_the_list_of_models_names_each_adapter_s_parent() -> None:
    async with rig(adapters=("a", "b"), max_model_len=128) as engine:
        _, text = await engine.get("/v1/models")
        entries = json.loads(text)["data"]
        assert [(one["id"], one["parent"]) for one in entries] == [
            ("tiny", None),
            ("a", "tiny"),
            ("b", "tiny"),
        ]
        assert entries[0]["max_model_len"] == 128


@pytest.mark.parametrize(("version", "status"), [("0.30.0", 404), ("0.31.0", 200)])
async def test_event_sources_are_told_since_0_31(version: str, status: int) -> None:
    async with rig(vllm_version=version, data_parallel_size=2, topic="kv") as engine:
        got, text = await engine.get("/kv_event_sources")
        assert got == status
        if status == 200:
            sources = json.loads(text)
            ports = engine.engine.event_ports, engine.engine.replay_ports
            assert [
                (sources[rank]["endpoint"], sources[rank]["replay_endpoint"]) for rank in ("0", "1")
            ] == [(f"tcp://*:{one}", f"tcp://*:{other}") for one, other in zip(*ports, strict=True)]
            assert sources["0"]["topic"] == "kv"


async def test_health_version_and_load() -> None:
    async with rig() as engine:
        assert await engine.get("/health") == (200, "")
        assert json.loads((await engine.get("/version"))[1]) == {"version": "0.32.0"}
        assert json.loads((await engine.get("/load"))[1]) == {"server_load": 0}


async def test_metrics_have_vllm_s_names_and_count_tokens() -> None:
    async with rig(block_size=4, num_blocks=512) as engine:
        ids = list(range(20, 29))
        for _ in range(2):
            await engine.ask("/v1/completions", {"prompt": ids, "max_tokens": 3})
        found = await metrics(engine)
        label = '{engine="0",model_name="tiny"}'
        assert found[f"vllm:prefix_cache_queries_total{label}"] == 18
        assert found[f"vllm:prefix_cache_hits_total{label}"] == 8
        assert found[f"vllm:prompt_tokens_total{label}"] == 18
        assert found[f"vllm:generation_tokens_total{label}"] == 6
        assert found[f"vllm:num_requests_running{label}"] == 0
        assert found[f"vllm:num_requests_waiting{label}"] == 0
        assert found[f"vllm:kv_cache_usage_perc{label}"] == 0
        (info,) = [name for name in found if name.startswith("vllm:cache_config_info")]
        assert 'block_size="4",num_gpu_blocks="512"' in info


async def test_metrics_show_what_runs_and_what_waits_by_rank() -> None:
    async with rig(time=SLOW, max_num_seqs=1, data_parallel_size=2) as engine:
        body = {"prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True, "stream": True}
        asked = [
            asyncio.ensure_future(
                engine.post("/v1/completions", {**body, "prompt": prompt}, X_data_parallel_rank="1")
            )
            for prompt in (PROMPT, [PROMPT, PROMPT])
        ]
        await eventually_async(lambda: engine.engine.ranks[1].scheduler.waiting == 2)
        found = await metrics(engine)
        assert found['vllm:num_requests_running{engine="1",model_name="tiny"}'] == 1
        assert found['vllm:num_requests_waiting{engine="1",model_name="tiny"}'] == 2
        assert found['vllm:num_requests_running{engine="0",model_name="tiny"}'] == 0
        assert 0 < found['vllm:kv_cache_usage_perc{engine="1",model_name="tiny"}'] < 1
        for one in asked:
            one.cancel()


async def test_the_usage_metric_had_another_name_up_to_0_11() -> None:
    async with rig(vllm_version="0.11.2") as engine:
        names = await metrics(engine)
        assert any(name.startswith("vllm:gpu_cache_usage_perc{") for name in names)
        assert not any(name.startswith("vllm:kv_cache_usage_perc{") for name in names)


async def test_recent_requests_are_told_without_their_text() -> None:
    async with rig(debug_requests=2) as engine:
        for number in range(3):
            body = {"prompt": PROMPT, "max_tokens": 1}
            await engine.ask("/v1/completions", body, target_pod="a:1", x_request_id=f"r{number}")
        _, text = await engine.get("/debug/requests")
        assert PROMPT[:20] not in text
        seen = json.loads(text)["requests"]
        assert [one["headers"]["x-request-id"] for one in seen] == ["r1", "r2"]
        assert seen[1]["headers"]["target-pod"] == "a:1"
        assert seen[1]["path"] == "/v1/completions"
        assert (seen[1]["model"], seen[1]["rank"]) == ("tiny", 0)
        assert 0 < seen[1]["cached_tokens"] < seen[1]["prompt_tokens"]
        assert seen[1]["finish"] == ["length"]


@pytest.mark.parametrize(("render", "status"), [(True, 200), (False, 404)])
async def test_render_tells_the_exact_ids_where_it_is_served(render: bool, status: int) -> None:
    async with rig(render=render) as engine:
        body = {"messages": CHAT, "max_tokens": 1, "reasoning_effort": "high"}
        got, chat = await engine.post("/v1/chat/completions/render", body)
        assert got == status
        got, texts = await engine.post("/v1/completions/render", {"prompt": ["a", "b c"]})
        assert got == status
        if render:
            answer = await engine.ask("/v1/chat/completions", {**body, "return_token_ids": True})
            assert chat["token_ids"] == answer["prompt_token_ids"]
            assert [one["token_ids"] for one in texts] == [
                await engine.tokenize({"prompt": text}) for text in ("a", "b c")
            ]
