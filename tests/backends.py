"""The back ends of the index. Every test of the index runs against each of them."""

from collections.abc import Callable

import pytest

from aibrix_extproc.index import reference

NewIndex = Callable[..., reference.PrefixIndex]
"""Makes an index, with the arguments of PrefixIndex."""

BACK_ENDS: dict[str, NewIndex] = {"reference": reference.PrefixIndex}


@pytest.fixture(params=list(BACK_ENDS))
def new_index(request: pytest.FixtureRequest) -> NewIndex:
    """The class of the index; a test makes its own with it."""
    return BACK_ENDS[request.param]
