"""Server-sent events, as far as OpenAI's streams use them: the data of each event.

Pure: bytes in, texts out, wherever the bytes are cut. Knows nothing of what the data means.
"""


class EventStream:
    """Collects bytes and gives out the data of each event that is complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, received: bytes) -> list[str]:
        """The data of the events that these bytes complete; comments and other fields go."""
        complete: list[str] = []
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            text = line.rstrip(b"\r").decode(errors="replace")
            if text.startswith("data:"):
                self._data.append(text.removeprefix("data:").removeprefix(" "))
            elif not text and self._data:
                complete.append("\n".join(self._data))
                self._data = []
        return complete
