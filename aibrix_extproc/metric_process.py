"""What a scrape says of the process itself: CPU, memory, open files, garbage collection.

Owns no metric: the names are those of every Prometheus client (`process_*`, `python_gc_*`), read
when somebody asks. `metrics` has what this server counts; docs/metrics.md explains both.
"""

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector


def watch_process(registry: CollectorRegistry) -> None:
    """Show this process in `registry`. Where there is no /proc, only the garbage collector is."""
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
