"""What is asked of a gateway, and when: sessions of turns, from a trace, a file or a seed.

Shared by the load test and the simulator. Knows no engine, no HTTP and no clock.
"""
