"""The limit of open files of this process: whoever follows many sources raises it first.

Owns that one step. Knows no socket.
"""

import logging
import resource

log = logging.getLogger(__name__)


def raise_file_limit() -> None:
    """Allow as many open files as the hard limit does.

    A source takes about 5, and the usual soft limit of 1,024 would end at some 200 sources.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning("the limit of open files stays at %d: %s", soft, error)
