"""Gives these tests the fixtures that several of them share."""

from tests.unit.kvevents.subscriber_rig import engine, station, stations

__all__ = ["engine", "station", "stations"]
