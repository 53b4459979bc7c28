"""How many bytes of bodies are held at once, over all streams.

Owns one number and its limit. Lives on the event loop's thread; knows no stream.
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
