"""What `aibrix-extproc doctor` does: looks at a set-up and names what is wrong with it.

Facts are collected at the edge (`collect_*`), each with its own time-out, and are frozen; checks
(`check_*`) are pure functions from facts to findings; `codes` owns the names of findings and what
to do about each. The server does not use this room.
"""
