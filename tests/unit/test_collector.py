"""The garbage collector of the server; in a process of its own, whose settings nobody shares."""

import subprocess
import sys

_PROGRAM = """
import gc
from aibrix_extproc import collector

before = [[]]
collector.settle()
after = [[]]
looked_at = [id(one) for one in gc.get_objects()]
assert id(before) not in looked_at, "it is looked at"
assert id(after) in looked_at, "what comes later is never looked at"
assert gc.isenabled(), "cycles stay for ever"
"""


def test_what_is_there_at_the_start_is_never_looked_at_again() -> None:
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True)
