"""The back ends of the index. Every test of the index runs against each of them."""

from collections.abc import Callable

import pytest

from aibrix_extproc import index
from aibrix_extproc.index import reference

NewIndex = Callable[..., reference.PrefixIndex]
"""Makes an index, with the arguments of PrefixIndex."""

CORE_IS_BUILT = index.BACKEND is index.Backend.CORE

BACK_ENDS: dict[str, NewIndex] = {"reference": reference.PrefixIndex}
if CORE_IS_BUILT:
    BACK_ENDS["core"] = index.PrefixIndex

needs_core = pytest.mark.skipif(
    not CORE_IS_BUILT, reason="the compiled core is not built here (it needs cargo)"
)


@pytest.fixture(params=["reference", pytest.param("core", marks=needs_core)])
def new_index(request: pytest.FixtureRequest) -> NewIndex:
    """The class of the index; a test makes its own with it."""
    return BACK_ENDS[request.param]
