"""Server-sent events, as far as OpenAI's streams use them: the data of each event.

Pure: bytes in, bytes out, wherever they are cut. Knows nothing of what the data means.
"""


class EventStream:
    """Collects bytes and gives out the data of each event that is complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        """The data of the events that these bytes complete; comments and other fields go."""
        complete: list[bytes] = []
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").rstrip(b"\r"))
            elif self._data and line in (b"", b"\r"):
                complete.append(b"\n".join(self._data))
                self._data.clear()
        return complete
