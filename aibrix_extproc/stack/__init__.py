"""A whole gateway on this machine: fake engines, the processor and Envoy as child processes.

Owns how each is started, configured, scraped and ended. Shared by the demo, the load test and the
tests. Knows no workload.
"""
