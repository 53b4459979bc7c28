"""The routing study: every strategy, on the same traffic, in the simulator.

    python -m benchmarks.routing run --set training --strategy least-request
    python -m benchmarks.routing judge --set held-out

`cases` says what is run, `cells` runs one of it, `judge` compares. docs/routing.md has the result.
"""
