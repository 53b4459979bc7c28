"""What no server could do, to measure against: a greedy oracle, and one cache with one queue.

Only the simulator has them; no setting of the server chooses them.
"""
