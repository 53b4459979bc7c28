"""Threads that read events stand behind those that answer requests."""

import os
import sys
import threading

import pytest

from aibrix_extproc.kvevents.sockets import link_options, new_context
from aibrix_extproc.kvevents.subscriber import Reader
from aibrix_extproc.kvevents.yielding import NICENESS
from aibrix_extproc.settings import Settings
from tests.support import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities")


def test_a_reader_gives_way_and_nobody_else_does() -> None:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    context = new_context()
    reader = Reader(0, context, Settings(), link_options(Settings()))
    reader.start()
    try:
        eventually(
            lambda: os.getpriority(os.PRIO_PROCESS, reader.native_id or 0) == NICENESS  # its own
        )
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    finally:
        reader.close()
        reader.join()
        context.term()
