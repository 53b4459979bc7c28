"""Tokenizers: whether they answer, in time, and alike; and what probes came to. Pure.

Owns these codes.
"""

from collections.abc import Iterator
from typing import Final

from aibrix_extproc.agreement.fingerprints import Fingerprints
from aibrix_extproc.agreement.tokenizers import ENDPOINT
from aibrix_extproc.doctor.check_engines import asked
from aibrix_extproc.doctor.collect_engines import error_text, token_ids
from aibrix_extproc.doctor.facts import Answer, Facts, Missing, Probed
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity

SILENT: Final = Code(
    "tokenizer-no-answer",
    Area.TOKENIZER,
    Severity.RED,
    "a tokenizer does not answer with tokens: load alone decides",
    "Check its address and its log. A pod's own is `POST /tokenize`; engines before vLLM 0.6 have "
    "none.",
)
MODEL_UNKNOWN: Final = Code(
    "tokenizer-model-unknown",
    Area.TOKENIZER,
    Severity.RED,
    "a tokenizer does not know the model: another is asked for each prompt",
    "Let `AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT` serve the model under this name, or "
    "unset it.",
)
SLOW: Final = Code(
    "tokenizer-slow",
    Area.TOKENIZER,
    Severity.RED,
    "a tokenizer takes longer for a short text than a decision may take (YELLOW: half of it)",
    "Give it CPU, or a tokenizer of its own (`vllm launch render`); raise "
    "`AIBRIX_EXTPROC_DECISION_TIMEOUT` and Envoy's `message_timeout` with it.",
    milder=True,
)
TEXT_DIFFERS: Final = Code(
    "tokenizers-differ",
    Area.TOKENIZER,
    Severity.RED,
    "tokenizers of one model give different tokens for one text",
    "Roll out one version of model, tokenizer and vLLM to all pods of a model.",
)
CHAT_DIFFERS: Final = Code(
    "chat-templates-differ",
    Area.TOKENIZER,
    Severity.RED,
    "tokenizers of one model agree on a text and not on a chat: their templates differ",
    "Give all the same --chat-template, and the tokenizer endpoint too.",
)
PROBE_REFUSED: Final = Code(
    "probe-refused",
    Area.TOKENIZER,
    Severity.RED,
    "the engine refuses a small completion",
    "Look at the engine's answer; an API key is not sent by doctor.",
)
NOT_DELIVERED: Final = Code(
    "events-not-delivered",
    Area.TOKENIZER,
    Severity.RED,
    "a completion was answered, and no event of its blocks came in time",
    "Check --enable-prefix-caching, --kv-events-config and the event port; raise --timeout for a "
    "busy engine.",
)
OF_ANOTHER: Final = Code(
    "events-of-another-pod",
    Area.TOKENIZER,
    Severity.RED,
    "a completion of one pod was announced by the stream of another",
    "The event ports of the two are mixed up: correct them.",
)
TOKENS_DIFFER: Final = Code(
    "tokens-differ-from-events",
    Area.TOKENIZER,
    Severity.RED,
    "the blocks that an engine announces hold other tokens than the tokenizer gives: nothing "
    "ever matches",
    "Tokenize with the engine's own tokenizer: unset "
    "`AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT`, or give it the engine's model and version.",
)


def _used(facts: Facts) -> None:
    if not facts.settings.use_remote_tokenizer:
        raise NotLooked("AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER is not true")


def check_answers(facts: Facts) -> Iterator[Finding]:
    """Each tokenizer answers, with tokens and in time."""
    _used(facts)
    limit_s = facts.settings.decision_timeout_s
    for engine in asked(facts):
        if engine.tokenize_answer is not None:
            yield from _answer(f"pod {engine.pod.key}", engine.tokenize_answer, limit_s)
    if not isinstance(facts.endpoints, Missing):
        for endpoint in facts.endpoints:
            who = f"{endpoint.url} for {endpoint.model}"
            yield from _answer(who, endpoint.answer, limit_s)


def _answer(who: str, answer: Answer, limit_s: float) -> Iterator[Finding]:
    if not answer.failure and answer.status == 404 and b"model" in answer.body.lower():
        yield MODEL_UNKNOWN.found(who, f"{who}: {error_text(answer)}")
    elif token_ids(answer) is None:
        said = "no tokens in its answer" if answer.status == 200 else error_text(answer)
        yield SILENT.found(who, f"{who}: {said}")
    elif answer.seconds >= limit_s / 2:
        mild = Severity.YELLOW if answer.seconds < limit_s else None
        seen = f"{who}: {answer.seconds * 1e3:.0f} ms, of {limit_s * 1e3:.0f} ms for a decision"
        yield SLOW.found(who, seen, mild)


def check_alike(facts: Facts) -> Iterator[Finding]:
    """All tokenizers of a model give the same tokens."""
    _used(facts)
    known = Fingerprints()
    for engine in asked(facts):
        if engine.fingerprint is not None:
            known.learn(engine.pod.model, engine.pod.key, engine.fingerprint)
    if not isinstance(facts.endpoints, Missing):
        for endpoint in facts.endpoints:
            if endpoint.fingerprint is not None:
                known.learn(endpoint.model, ENDPOINT, endpoint.fingerprint)
    for model in sorted(known.models()):
        difference = known.difference(model)
        if difference is not None:
            code = TEXT_DIFFERS if difference.what == "text" else CHAT_DIFFERS
            odd, others = ", ".join(difference.odd), ", ".join(difference.others)
            yield code.found(model, f"{model}: {odd} differ from {others}")


def check_probes(facts: Facts) -> Iterator[Finding]:
    """What probes came to."""
    if isinstance(facts.probed, Missing):
        raise NotLooked(facts.probed.why)
    for probed in facts.probed:
        yield from _probe(probed)


def _probe(probed: Probed) -> Iterator[Finding]:
    if probed.answer.status != 200:
        yield PROBE_REFUSED.found(probed.pod, f"{probed.pod}: {error_text(probed.answer)}")
        return
    own = [stream for stream in probed.delivered if stream.startswith(f"{probed.pod} rank ")]
    if own:
        return
    if probed.delivered:
        others = ", ".join(probed.delivered)
        yield OF_ANOTHER.found(probed.pod, f"the blocks of {probed.pod} came from {others}")
    elif not probed.roots:
        yield NOT_DELIVERED.found(probed.pod, f"no block of a new prompt of {probed.pod} came")
    elif probed.tokens is not None:
        size = probed.roots[-1].block_size
        yield TOKENS_DIFFER.found(
            probed.pod,
            f"{probed.pod}: none of {len(probed.roots)} announced prompts begins with the "
            f"{min(size, len(probed.tokens))} tokens of the one that was sent",
        )


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
