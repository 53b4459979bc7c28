"""The compiled core, as Python sees it; see `core/`. Absent where it was not built."""

from collections.abc import Sequence

from aibrix_extproc.index.reference import PrefixIndex as PrefixIndex

class TokenIds(Sequence[int]):
    """Token ids: a read-only buffer of unsigned 32-bit ints, with a length and slices."""

    @property
    def itemsize(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, at): ...  # type: ignore[no-untyped-def]
    def __buffer__(self, flags: int, /) -> memoryview: ...

def read_tokenized(reply: bytes) -> tuple[TokenIds, int] | None: ...
def read_rendered(reply: bytes, is_list: bool) -> TokenIds | None: ...
