"""Measurements. No tests: `make bench` runs them, docs/performance.md tells what they say."""
