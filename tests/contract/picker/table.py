"""The table of vectors in docs/contract.md.

`python -m tests.contract.picker.table docs/contract.md` writes it anew.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from tests.contract.picker.vectors import Vector, load

BEGIN: Final = "<!-- vectors: written by tests/contract/picker/table.py -->"
END: Final = "<!-- end of the vectors -->"


def table(vectors: Sequence[Vector]) -> str:
    """A table for each file of vectors, between the two marks."""
    lines = [BEGIN, ""]
    for topic, group in groupby(vectors, key=lambda vector: vector.topic):
        lines += [f"### {topic}", "", "| vector | level | modes | rule |", "|---|---|---|---|"]
        for vector in group:
            modes = ", ".join(vector.modes)
            lines.append(f"| `{vector.id}` | {vector.level} | {modes} | {vector.rule} |")
        lines.append("")
    return "\n".join([*lines, END])


def main(path: Path) -> None:
    """Replace what stands between the marks."""
    page = path.read_text()
    before, after = page[: page.index(BEGIN)], page[page.index(END) + len(END) :]
    path.write_text(before + table(load()) + after)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
