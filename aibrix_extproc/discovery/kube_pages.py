"""How much of a listing is taken: bytes of one page, pods of all pages.

Owns these bounds. Knows no loop and no pod. Constants, because no cluster comes near them.
"""

from typing import Any, Final

MAX_PAGE_BYTES: Final = 256 * 1024 * 1024
"""500 pods take some 3 MB, and 10,000 in one page, after pages expired, 65 MB."""
MAX_LISTED: Final = 50_000
"""Pods of one listing, five times what AIBRIX_EXTPROC_MAX_SOURCES takes by default."""
_BUFFER_BYTES: Final = 64 * 1024


class TooLarge(Exception):
    """The listing is past a bound; the message says which."""


def read_page(response: Any) -> bytes:
    """The whole body of urllib3's response, which is then done with. Raises TooLarge."""
    body = bytearray()
    for part in response.stream(_BUFFER_BYTES, decode_content=True):
        body += part
        if len(body) > MAX_PAGE_BYTES:
            response.close()  # not released: the rest of it is nobody's answer
            raise TooLarge(f"a page of the listing has more than {MAX_PAGE_BYTES} bytes")
    response.release_conn()
    return bytes(body)


def check_count(pods: int) -> None:
    """Raises TooLarge above MAX_LISTED."""
    if pods > MAX_LISTED:
        raise TooLarge(f"more than {MAX_LISTED} pods are listed: set AIBRIX_EXTPROC_NAMESPACE")
