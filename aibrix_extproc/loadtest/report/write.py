"""Puts a report on disk: `report.json` and `report.html`, each whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Final

from aibrix_extproc.loadtest.report.document import document
from aibrix_extproc.loadtest.report.page import page
from aibrix_extproc.loadtest.report.report import Report

JSON_NAME: Final = "report.json"
HTML_NAME: Final = "report.html"


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Both into a folder, made where there is none; what stood there before is replaced.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document(report), indent=1, allow_nan=False)
    return (
        _put(folder / JSON_NAME, text + "\n"),
        _put(folder / HTML_NAME, page(report)),
    )


def _put(path: Path, text: str) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path
