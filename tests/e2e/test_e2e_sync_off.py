"""Event sync off is a complete mode: routing by load, and by what was sent where."""

from tests.e2e.stack import gateway
from tests.e2e.watching import MATCHED, ask_together, counted, sources, text

SYNC = "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED"
TOKENIZER = "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER"


async def test_predictions_bring_a_conversation_back_to_its_pod() -> None:
    async with gateway(engines=2, environment={SYNC: "false", TOKENIZER: "true"}) as stack:
        chats = [[{"role": "user", "content": text(name)}] for name in "abcdef"]
        first = await ask_together(stack, [stack.chat(chat) for chat in chats])
        assert sorted(str(reply.pod) for reply in first) == ["engine-0"] * 3 + ["engine-1"] * 3
        assert [reply.headers[MATCHED] for reply in first] == ["0"] * 6
        for chat, before in zip(chats, first, strict=True):
            answer = before.json()["choices"][0]["message"]
            reply = await stack.chat([*chat, answer, {"role": "user", "content": "Go on."}])
            assert reply.pod == before.pod
            assert 256 < int(reply.headers[MATCHED]) <= reply.cached_tokens
        assert {source["state"] for source in (await sources(stack)).values()} == {None}


async def test_without_a_tokenizer_load_decides() -> None:
    async with gateway(engines=2, environment={SYNC: "false", TOKENIZER: "false"}) as stack:
        replies = await ask_together(stack, [stack.complete(text("same")) for _ in range(6)])
        assert {reply.status for reply in replies} == {200}
        assert sorted(str(reply.pod) for reply in replies) == ["engine-0"] * 3 + ["engine-1"] * 3
        assert await counted(stack, "aibrix_extproc_fallback_total", reason="tokenizer_off") == 6
