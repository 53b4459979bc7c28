"""What holds for every test.

Hypothesis runs without its deadline: a busy machine must not fail a test that asserts no time.
Under CI it draws the same examples each time, so that a red run can be repeated; everywhere else
each run draws new ones. The same goes for the seed of the hostile tests (`tests/hostile.py`), which
is printed with their scale.
"""

import os
import secrets

import pytest
from hypothesis import settings

if "AIBRIX_TEST_SEED" not in os.environ:
    # Before the workers of xdist start: all of them take it over.
    os.environ["AIBRIX_TEST_SEED"] = "1" if os.environ.get("CI") else secrets.token_hex(4)


def pytest_report_header(config: pytest.Config) -> str:
    """What repeats this run."""
    scale = os.environ.get("AIBRIX_TEST_SCALE", "1")
    return f"AIBRIX_TEST_SEED={os.environ['AIBRIX_TEST_SEED']} AIBRIX_TEST_SCALE={scale}"


settings.register_profile("new-examples", deadline=None)
settings.register_profile("same-examples", deadline=None, derandomize=True)
settings.load_profile("same-examples" if os.environ.get("CI") else "new-examples")
