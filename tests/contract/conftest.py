"""Gives these tests the back ends of the index, and the endpoint-picker suite its options."""

from pathlib import Path

import pytest

from tests.backends import new_index
from tests.contract.picker import options

__all__ = ["new_index"]

_FOLDER = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest tests/contract --target host:port`: see docs/contract.md."""
    options.add_to(parser)


def pytest_report_header(config: pytest.Config) -> str | None:
    """With `--target` alone: what is run, and what is not."""
    return options.report(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--target`, what drives no target is left out."""
    if not options.has_target(config):
        return
    kept = [item for item in items if item.get_closest_marker("drives_target")]
    left_out = [item for item in items if item not in kept]
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)
