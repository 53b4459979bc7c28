"""Gives these tests the fixtures that several of them share."""

from tests.unit.discovery.kubernetes_rig import kube

__all__ = ["kube"]
