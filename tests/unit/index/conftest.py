"""Gives these tests the back ends of the index."""

from tests.backends import new_index

__all__ = ["new_index"]
