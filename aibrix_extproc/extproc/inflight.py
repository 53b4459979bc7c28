"""Bodies that are held, and how many bytes of them at once, over all streams.

Lives on the event loop's thread; knows no stream and no message.
"""


class InflightBytes:
    """A budget of bytes: taken when a piece of a body arrives, given back when it is let go."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Count a piece; False, and nothing counted, where it does not fit any more."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        """A piece that was taken is not held any more."""
        self.used_bytes -= size_bytes


class HeldBody:
    """What is held of one request's body: its pieces, counted in the budget of all."""

    def __init__(self, inflight: InflightBytes) -> None:
        self._inflight = inflight
        self._pieces: list[bytes] = []
        self.size_bytes = 0

    def add(self, piece: bytes) -> bool:
        """Keep a piece; False where the budget is spent: then the body must go on now.

        The piece is kept all the same, uncounted, so that it goes on with the others.
        """
        self._pieces.append(piece)
        if not self._inflight.take(len(piece)):
            return False
        self.size_bytes += len(piece)
        return True

    def joined(self) -> bytes:
        """All pieces as one."""
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    def let_go(self) -> None:
        """Nothing is held any more."""
        self._inflight.give(self.size_bytes)
        self.size_bytes = 0
        self._pieces = []
