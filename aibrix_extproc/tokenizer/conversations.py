"""What is known of a prompt's tokens before it is tokenized: a prefix, claimed from evidence.

Pure: no socket, no clock. Owns what may be claimed; the memory is `recollection`, what counts as
an equal beginning is `outline`, belief in a template is `trust`.

A claim is "the tokens of this prompt begin with these". It may say less than is true and must not
say more, for a false one sends a request to the wrong pod. A chat template is a program, so that
nothing about it can be *proven* from outside. Two kinds of evidence are taken, and each claim is
compared with the real tokens as soon as they are there (`learn`): one that was wrong empties its
frame, and nothing of that frame is claimed for DISTRUST_S.

**Shared.** Two tokenized prompts A and B begin with the same pieces and then part. Their common
tokens are what those pieces give, whichever way a prompt goes on; so a third prompt C with the
same pieces begins with them too. Claimed is less than what is common:

- A and B must part visibly. Where they part in two plain texts, these differ, and templates show
  them. What both texts have in common before they differ gave tokens too, at most one for each
  byte (a byte-level or byte-fallback vocabulary): where C's text parts from theirs earlier, so
  many tokens are taken off. Two messages that are not plain may differ in what no template shows
  (an id, a stripped reasoning): they are no evidence. Where A *ends* and B goes on, the common
  tokens are at most A's own, so that is evidence whatever B goes on with.
- Evidence covers what it varies in. C must agree with A or B in the number of messages, in
  whether a user's message follows, and in the role of the last message; or A and B must differ in
  it, and be equal all the same. A template that counts messages in its header, or puts the tools
  into the last user message, or drops the reasoning of what came before it, is thereby cut at the
  place where it does so.
- All of A, B and C go on with the same role, since the next message's header is among the common
  tokens.
- A merge may reach across the cut: tokens after the last settled border between words are taken
  off, and MARGIN_TOKENS more, which is also room for a generation prompt.
- Where another pair has less in common than the pieces before gave in this one, the two
  contradict each other (a date changed), and the lesser one bounds the claim.

**Extended.** A tokenized prompt A, and C is A with messages added. Nothing but A was seen of this
conversation, so this leans on other conversations of the same frame: see `trust`. Claimed are A's
tokens without the ending that extensions do not keep, and without MARGIN_TOKENS. A must end with a
user's message, or C must add none: what follows the last user message is what templates treat in
another way (they show its reasoning), and so nothing of that kind lies in A. A text prompt that
extends another one leans on tokenizers being local; proofs are asked for too.

Assumed, and not provable:

- a template gives the same for the same beginning at another time (one that prints the date is
  found wrong once, at midnight), and does not look at a property of later messages other than
  those three;
- a merge does not change tokens further back than MARGIN_TOKENS before a settled border;
- texts that differ have different tokens where they differ (a tokenizer that folds cases breaks
  it), and one byte gives at most one token.
"""

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Final

from aibrix_extproc.tokenizer.buffers import (
    TokenBuffer,
    common_bytes,
    common_tokens,
    first_tokens,
)
from aibrix_extproc.tokenizer.outline import Outline, Piece, settled
from aibrix_extproc.tokenizer.recollection import MAX_AGE_S, Branch, Node, Recollection, Record
from aibrix_extproc.tokenizer.trust import DISTRUST_S, ENDING_TOKENS, Trust

MARGIN_TOKENS: Final = 16
"""Taken off every claim: a block of the usual size, and longer than the headers of the templates
known (Llama 3, Qwen 3, Mistral, gpt-oss: 1 to 8 tokens)."""

_TRIES: Final = 3
"""Places where prompts part that are looked at, the deepest first."""

_MAX_FRAMES: Final = 10_000
_BYTES_PER_TOKEN: Final = (1.0, 8.0)
"""Bounds of what a known prompt says about the density of the next."""

_Shape = tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class Claim:
    """A prefix of a prompt's tokens, with what is guessed of the whole."""

    ids: TokenBuffer
    estimated_tokens: int
    """Length of the whole prompt, from bytes."""
    answer_tokens: int
    """Of these, the answer to the known prompt, estimated too; 0 where it is not known from one."""
    share: float
    """Part of the prompt that is known, 0 to 1. The answer to the known prompt does not count:
    only the pod that gave it, which the prefix leads to, can hold it."""


@dataclass(slots=True)
class _Frame:
    """What is believed of one model, with these tools and template arguments."""

    lost_until: float = float("-inf")
    shapes: dict[_Shape, Trust] = field(default_factory=dict)

    def trust(self, shape: _Shape) -> Trust:
        return self.shapes.setdefault(shape, Trust())


@dataclass(frozen=True, slots=True)
class _Found:
    """A claim before its tokens are copied."""

    tokens: int
    record: Record
    answer_bytes: int = 0
    """Of what follows, the answer to the known prompt."""


_TEXT_SHAPE: Final[_Shape] = ("text", "text", False)


class Conversations:
    """Claims from tokenized prompts. Not thread-safe. `limit_bytes` 0 switches it off."""

    def __init__(self, limit_bytes: int) -> None:
        self._memory = Recollection(limit_bytes)
        self._frames: OrderedDict[bytes, _Frame] = OrderedDict()
        self._is_on = limit_bytes > 0

    @property
    def size_bytes(self) -> int:
        """Size now, at most the limit."""
        return self._memory.bytes

    def claim(self, outline: Outline, now: float) -> Claim | None:
        """What is known of the tokens of a prompt; None: nothing."""
        frame = self._frames.get(outline.frame)
        if frame is None or now < frame.lost_until:
            return None
        path = self._memory.path(outline)
        best: _Found | None = None
        tries = _TRIES
        for count in range(min(len(path), len(outline.pieces)) - 1, -1, -1):
            extended = self._extended(frame, outline, path[count], count, now)
            shared = _shared(outline, path[count], count, now)
            for found in (shared, extended):
                if found is not None and found.tokens > (best.tokens if best else 0):
                    best = found
            tries -= shared is not None
            if extended is not None or not tries:
                break
        if best is None:
            return None
        self._memory.touch(best.record)
        return _claim(outline, best)

    def learn(
        self, outline: Outline, ids: TokenBuffer, now: float, claim: Claim | None = None
    ) -> bool:
        """The real tokens of a prompt, and the claim that was made of it (None: what would be
        claimed now). False: the claim was wrong; its frame is forgotten and not believed."""
        if not self._is_on:
            return True
        if claim is None:
            claim = self.claim(outline, now)
        frame = self._frame(outline.frame)
        if claim is not None and common_tokens(claim.ids, ids) < len(claim.ids):
            frame.lost_until = now + DISTRUST_S
            frame.shapes.clear()
            self._memory.drop_frames((outline.frame,))
            return False
        if now < frame.lost_until:
            return True
        path = self._memory.path(outline)
        shorter = self._observe(frame, outline, path, ids, now)
        record = self._memory.put(outline, ids, now)
        for known, length in shorter:
            if known.full - length <= ENDING_TOKENS:
                self._memory.share(known, record, length)
        return True

    def forget(self, frames: Container[bytes]) -> None:
        """Forget these frames, and what was believed of them."""
        self._memory.drop_frames(frames)
        for frame in [frame for frame in self._frames if frame in frames]:
            del self._frames[frame]

    def clear(self) -> None:
        """Forget everything, and what was believed."""
        self._memory.clear()
        self._frames.clear()

    def _frame(self, key: bytes) -> _Frame:
        frame = self._frames.setdefault(key, _Frame())
        self._frames.move_to_end(key)
        if len(self._frames) > _MAX_FRAMES:
            self._frames.popitem(last=False)
        return frame

    def _extended(
        self, frame: _Frame, outline: Outline, node: Node, count: int, now: float
    ) -> _Found | None:
        """The claim from the prompt that ends at this node and is extended."""
        piece = outline.pieces[count]
        if outline.is_text:
            return self._extended_text(frame, outline, node, count, now)
        known = node.end()
        if known is None or _is_old(known, now):
            return None
        shape = _shape(known, outline, piece)
        trust = frame.shapes.get(shape) if shape is not None else None
        not_kept = trust.not_kept(known.ending, now) if trust is not None else None
        if not_kept is None:
            return None
        tokens = min(known.length, known.full - not_kept) - MARGIN_TOKENS
        answer = _answer_bytes(outline, count) if piece.role == "assistant" else 0
        return _Found(tokens, known, answer)

    def _extended_text(
        self, frame: _Frame, outline: Outline, node: Node, count: int, now: float
    ) -> _Found | None:
        trust = frame.shapes.get(_TEXT_SHAPE)
        branch = _shorter_text(node, outline.pieces[count], now)
        if branch is None or trust is None or not trust.is_believed(now):
            return None
        known, text = branch.record, _text(branch)
        tokens = min(known.length, known.full - _unsettled(text)) - MARGIN_TOKENS
        return _Found(tokens, known)

    def _observe(
        self, frame: _Frame, outline: Outline, path: list[Node], ids: TokenBuffer, now: float
    ) -> list[tuple[Record, int]]:
        """Proofs for or against belief; the extended prompts and what was kept of each."""
        compared: list[tuple[Record, int]] = []
        common: dict[int, int] = {}
        is_proven = False
        for count in range(min(len(path), len(outline.pieces)) - 1, -1, -1):
            piece = outline.pieces[count]
            branch = _shorter_text(path[count], piece, now) if outline.is_text else None
            known = branch.record if branch is not None else path[count].end()
            if known is None:
                continue
            whole = id(known.kept)
            if whole not in common:
                common[whole] = common_tokens(known.kept.ids, ids)
            kept = min(known.length, common[whole])
            compared.append((known, kept))
            if not is_proven:
                is_proven = _prove(frame, outline, piece, branch, known, known.full - kept, now)
        return compared


def _prove(
    frame: _Frame,
    outline: Outline,
    piece: Piece,
    branch: Branch | None,
    known: Record,
    changed: int,
    now: float,
) -> bool:
    """Note one pair, of which `changed` tokens were not kept. False: it says nothing."""
    if branch is not None:
        is_kept = changed <= _unsettled(_text(branch)) + MARGIN_TOKENS
        frame.trust(_TEXT_SHAPE).observe_text(is_kept, known.last_message, now)
        return True
    shape = _shape(known, outline, piece)
    if shape is None:
        return False
    frame.trust(shape).observe(known.ending, changed, known.last_message, now)
    return True


def _shape(known: Record, outline: Outline, piece: Piece) -> _Shape | None:
    """How the prompt goes on from the known one; None: in a way that is never believed."""
    adds_user = outline.last_user >= known.messages
    if adds_user and known.last_role != "user":
        return None
    return known.last_role, piece.role, adds_user


def _shared(outline: Outline, node: Node, count: int, now: float) -> _Found | None:
    """The claim from prompts that part at this node."""
    piece = outline.pieces[count]
    branches = [b for b in node.branches if not _is_old(b.record, now)]
    same_role = [b for b in branches if b.piece is not None and b.piece.role == piece.role]
    pairs = [(b, other) for b in branches if b.piece is None for other in same_role]
    plain = [b for b in same_role if b.piece is not None and b.piece.text is not None]
    agreed = 0
    if len(plain) > 1:
        agreements = [_agreed(piece, b.piece) for b in plain]
        agreed = max(agreements)
        nearest = plain[agreements.index(agreed)]
        pairs += [(nearest, other) for other in plain if other is not nearest]
    seen: list[tuple[int, int, int, Record]] = []
    for one, other in pairs:
        if not _covers(one, other, outline, piece.message):
            continue
        limit = min(one.record.length, other.record.length)
        common = common_tokens(one.record.kept.ids, other.record.kept.ids, limit)
        both = _agreed(one.piece, other.piece)
        seen.append((common - _taken_off(agreed, both, one), common, both, one.record))
    if not seen:
        return None
    tokens, common, both, record = max(seen, key=lambda pair: pair[0])
    at_least = common - both  # given by the pieces before the node: every pair must have it
    contradictions = [other for _, other, _, _ in seen if other < at_least]
    return _Found(min([tokens, *contradictions]) - MARGIN_TOKENS, record)


def _covers(one: Branch, other: Branch, outline: Outline, message: int) -> bool:
    """Whether two prompts differ in what the third one does not have in common with them."""
    a, b = one.record, other.record
    first = message - 1 if one.piece is None else message
    user_a, user_b, user_here = (
        last > first for last in (a.last_user, b.last_user, outline.last_user)
    )
    return (
        (a.messages != b.messages or a.messages == outline.messages)
        and (user_a != user_b or user_a == user_here)
        and (a.last_role != b.last_role or a.last_role == outline.last_role)
    )


def _taken_off(agreed: int, both: int, one: Branch) -> int:
    """Tokens that a common text of two prompts gave and the third one's need not have.

    `both`: leading bytes that the two have in common; `agreed`: that the third has with `one`.
    """
    if one.piece is None:
        return 0
    return both - settled(one.piece.text or b"", min(both, agreed))


def _agreed(one: Piece | None, other: Piece | None) -> int:
    """Leading bytes that two plain pieces have in common."""
    if one is None or other is None or one.text is None or other.text is None:
        return 0
    return common_bytes(one.text, other.text)


def _shorter_text(node: Node, piece: Piece, now: float) -> Branch | None:
    """The longest text prompt that ends within this piece and is a beginning of it."""
    if piece.text is None:
        return None
    found = [
        b
        for b in node.branches
        if b.piece is not None
        and b.piece.is_last
        and b.piece.key != piece.key
        and piece.text.startswith(_text(b))
        and not _is_old(b.record, now)
    ]
    return max(found, key=lambda b: len(_text(b)), default=None)


def _text(branch: Branch) -> bytes:
    return branch.piece.text or b"" if branch.piece is not None else b""


def _unsettled(text: bytes) -> int:
    return len(text) - settled(text, len(text))


def _answer_bytes(outline: Outline, count: int) -> int:
    message = outline.pieces[count].message
    return sum(p.size_bytes for p in outline.pieces[count:] if p.message == message)


def _is_old(record: Record, now: float) -> bool:
    return now - record.stored_at > MAX_AGE_S


def _claim(outline: Outline, found: _Found) -> Claim:
    least, most = _BYTES_PER_TOKEN
    density = min(most, max(least, found.record.size_bytes / max(1, found.record.full)))
    estimated = max(outline.size_bytes / density, found.tokens + MARGIN_TOKENS)
    answer = min(found.answer_bytes / density, estimated - found.tokens)
    return Claim(
        ids=first_tokens(found.record.kept.ids, found.tokens),
        estimated_tokens=round(estimated),
        answer_tokens=int(answer),
        share=found.tokens / (estimated - answer),
    )
