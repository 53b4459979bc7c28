"""`report.json`: every figure, the binned distributions and the series; no text of a prompt.

The schema is docs/loadtest-report.schema.json. `version` goes up where a reader would break. Pure.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from aibrix_extproc.figures import plain
from aibrix_extproc.loadtest.report.bins import SQUARE
from aibrix_extproc.loadtest.report.doubts import verdict
from aibrix_extproc.loadtest.report.report import Report
from aibrix_extproc.loadtest.report.summary import Curves, RunSummary

FORMAT: Final = "aibrix-extproc loadtest report"
VERSION: Final = 1


def document(report: Report) -> dict[str, Any]:
    """Plain values for JSON; a figure that does not exist is null."""
    null_run = report.null_run
    found = {
        "format": FORMAT,
        "version": VERSION,
        "headline": report.headline,
        "comparisons": [asdict(one) | {"tells": one.tells} for one in report.comparisons],
        "bottleneck": verdict(report.runs, null_run),
        "doubts": [asdict(doubt) for doubt in report.doubts],
        "test": {
            "model": report.model,
            "workload": report.workload,
            "target": report.target,
            "seed": report.seed,
            "started": started(report),
            "options": dict(report.options),
            "slo": asdict(report.slo),
            "environment": asdict(report.environment),
            "null_run": null_run and asdict(null_run) | {"requests_per_s": null_run.requests_per_s},
        },
        "runs": [_run(run) for run in report.runs],
    }
    return {name: plain(value) for name, value in found.items()}


def started(report: Report) -> str:
    """In UTC, to the second."""
    return datetime.fromtimestamp(report.started_unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _run(run: RunSummary) -> dict[str, Any]:
    return asdict(run) | {"curves": _curves(run.curves)}


def _curves(curves: Curves) -> dict[str, Any]:
    return {
        "ttft": curves.ttft.to_json(),
        "inter_token": curves.inter_token.to_json(),
        "end_to_end": curves.end_to_end.to_json(),
        "reuse": [asdict(step) for step in curves.reuse],
        "decided": [asdict(step) for step in curves.decided],
        "predicted_actual": {
            "cells": SQUARE,
            "counts": [list(cell) for cell in curves.predicted_actual],
        },
    }
