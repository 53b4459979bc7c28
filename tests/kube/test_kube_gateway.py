"""The stand-in for an API server (tests/manifests/crds.py) judges as a real one does."""

from typing import Any

import pytest

from tests.kube.conftest import Site
from tests.manifests import crds
from tests.manifests.gateway_faults import REFUSED, shipped, spoilt

Json = dict[str, Any]

pytestmark = pytest.mark.kube


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_stand_in_refuses_the_real_one_refuses(site: Site, name: str) -> None:
    obj = spoilt(name)
    reply = site.api.apply(obj, dryRun="All")
    assert crds.faults(obj)
    assert not reply.is_success
    assert reply.status_code in (400, 422, 500), reply.text


def test_the_rule_that_the_stand_in_cannot_run_is_run_by_the_real_one(site: Site) -> None:
    obj = shipped("GatewayClass")
    assert site.api.apply(obj).is_success
    obj["spec"]["controllerName"] = "example.com/another"
    reply = site.api.apply(obj)
    assert crds.faults(obj) == []
    assert (reply.status_code, "Value is immutable" in reply.text) == (422, True), reply.text
