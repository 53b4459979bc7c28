"""Tokenized prompts, found again by a common beginning: a tree of pieces, bounded in bytes.

Owns memory and order of leaving (least recently used first). It knows outlines and buffers, and
draws no conclusion: what may be claimed of another prompt is for `conversations`.

A node is a row of leading pieces, found by its key. It remembers the prompt that ends there, and
a few prompts that go on in different ways, with the text of their next piece. Ids of a prompt
that another one extends are not kept twice: the shorter one then knows the first `length` of the
longer one's, which were compared.

Some 100,000 objects live here for long, and none can be part of a cycle. They are structs that
the garbage collector does not visit (`gc=False`): as dataclasses they made one full collection
50 to 80 ms, during which no request is answered.
"""

from collections import OrderedDict
from collections.abc import Container, Iterator
from typing import Final

import msgspec

from aibrix_extproc.tokenizer.buffers import TOKEN_BYTES, TokenBuffer, last_tokens
from aibrix_extproc.tokenizer.outline import KEY_BYTES, Outline, Piece
from aibrix_extproc.tokenizer.trust import ENDING_TOKENS

BRANCHES: Final = 6
"""Ways of going on that a node remembers; the oldest goes."""

MAX_AGE_S: Final = 3600.0
"""What was not seen again for so long is not claimed from: templates change with time."""

_RECORD_BYTES: Final = 700
_NODE_BYTES: Final = 350
_BRANCH_BYTES: Final = 150


class Kept(msgspec.Struct, eq=False, gc=False):
    """Ids that one or several records use."""

    ids: TokenBuffer
    users: int = 0


class Record(msgspec.Struct, eq=False, gc=False):
    """One tokenized prompt."""

    keys: bytes
    """Of its pieces, KEY_BYTES each, one after the other."""
    frame: bytes
    messages: int
    last_user: int
    last_role: str
    last_message: int
    is_text: bool
    size_bytes: int
    """Of the prompt, as `Outline.size_bytes`."""
    kept: Kept
    length: int
    """How many of `kept.ids` are this prompt's."""
    full: int
    """How many tokens the prompt had."""
    ending: TokenBuffer
    """Its last ENDING_TOKENS ids."""
    stored_at: float

    @property
    def key(self) -> bytes:
        return self.keys[-KEY_BYTES:]


class Branch(msgspec.Struct, eq=False, gc=False):
    """One way of going on after a node."""

    piece: Piece | None
    """None: the prompt ends at the node."""
    record: Record


class Node(msgspec.Struct, eq=False, gc=False):
    """A row of leading pieces."""

    passing: int = 0
    """Records that begin with it."""
    branches: tuple[Branch, ...] = ()

    def end(self) -> Record | None:
        """The prompt that ends here."""
        return next((b.record for b in self.branches if b.piece is None), None)


class Recollection:
    """Records by their beginnings. Not thread-safe. `limit_bytes` 0 keeps nothing."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._nodes: dict[bytes, Node] = {}
        self._records: OrderedDict[bytes, Record] = OrderedDict()
        self.bytes = 0
        """Size now, by this module's own accounting; at most the limit."""

    def __len__(self) -> int:
        return len(self._records)

    def path(self, outline: Outline) -> list[Node]:
        """The known nodes of a prompt: item k is that of its first k pieces."""
        found = []
        for key in _keys(outline):
            node = self._nodes.get(key)
            if node is None:
                break
            found.append(node)
        return found

    def touch(self, record: Record) -> None:
        """It was of use: it is the last to go from now on."""
        if record.key in self._records:
            self._records.move_to_end(record.key)

    def put(self, outline: Outline, ids: TokenBuffer, now: float) -> Record:
        """Remember a prompt. One that does not fit the limit is gone at once."""
        self._drop(outline.key_at(len(outline.pieces)))
        kept = Kept(ids)
        record = Record(
            keys=b"".join(piece.key for piece in outline.pieces),
            frame=outline.frame,
            messages=outline.messages,
            last_user=outline.last_user,
            last_role=outline.last_role,
            last_message=outline.last_message,
            is_text=outline.is_text,
            size_bytes=outline.size_bytes,
            kept=kept,
            length=len(ids),
            full=len(ids),
            ending=last_tokens(ids, ENDING_TOKENS),
            stored_at=now,
        )
        self.bytes += _own_bytes(record)
        self._use(kept)
        self._records[record.key] = record
        for count, key in enumerate(_keys(outline)):
            self._pass_through(key, _piece(outline, count), record)
        while self.bytes > self._limit_bytes:
            self._drop(next(iter(self._records)))
        return record

    def share(self, record: Record, longer: Record, length: int) -> None:
        """`record` keeps its first `length` ids by those of `longer`, which begin with them."""
        if record.key not in self._records or longer.key not in self._records:
            return
        self._use(longer.kept)
        self._unuse(record.kept)
        record.kept, record.length, record.stored_at = longer.kept, length, longer.stored_at

    def drop_frames(self, frames: Container[bytes]) -> None:
        """Forget every prompt of these frames."""
        for key in [key for key, record in self._records.items() if record.frame in frames]:
            self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._nodes.clear()
        self._records.clear()
        self.bytes = 0

    def _pass_through(self, key: bytes, piece: Piece | None, record: Record) -> None:
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node()
            self.bytes += _NODE_BYTES
        node.passing += 1
        others = tuple(b for b in node.branches if not _same(b.piece, piece))
        if len(others) == len(node.branches):
            self.bytes += _branch_bytes(piece)
        if len(others) == BRANCHES:
            self.bytes -= _branch_bytes(others[0].piece)
            others = others[1:]
        node.branches = (*others, Branch(piece, record))

    def _drop(self, key: bytes) -> None:
        record = self._records.pop(key, None)
        if record is None:
            return
        self.bytes -= _own_bytes(record)
        self._unuse(record.kept)
        for step in _steps(record):
            node = self._nodes[step]
            node.passing -= 1
            left = tuple(b for b in node.branches if b.record is not record)
            if len(left) < len(node.branches):
                gone = next(b for b in node.branches if b.record is record)
                self.bytes -= _branch_bytes(gone.piece)
                node.branches = left
            if not node.passing:
                del self._nodes[step]
                self.bytes -= _NODE_BYTES

    def _use(self, kept: Kept) -> None:
        if not kept.users:
            self.bytes += len(kept.ids) * TOKEN_BYTES
        kept.users += 1

    def _unuse(self, kept: Kept) -> None:
        kept.users -= 1
        if not kept.users:
            self.bytes -= len(kept.ids) * TOKEN_BYTES


def _keys(outline: Outline) -> Iterator[bytes]:
    yield outline.frame
    for piece in outline.pieces:
        yield piece.key


def _steps(record: Record) -> Iterator[bytes]:
    yield record.frame
    for start in range(0, len(record.keys), KEY_BYTES):
        yield record.keys[start : start + KEY_BYTES]


def _piece(outline: Outline, index: int) -> Piece | None:
    return outline.pieces[index] if index < len(outline.pieces) else None


def _same(one: Piece | None, other: Piece | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.key == other.key


def _own_bytes(record: Record) -> int:
    return _RECORD_BYTES + len(record.keys)


def _branch_bytes(piece: Piece | None) -> int:
    return _BRANCH_BYTES + (len(piece.text) if piece is not None and piece.text else 0)
