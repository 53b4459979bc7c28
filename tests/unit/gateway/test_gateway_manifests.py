"""The manifests of envoy/gateway: what an API server says of them, and that they fit together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import crds

Json = dict[str, Any]

GATEWAY = Path(__file__).parents[3] / "envoy" / "gateway"


def objects(folder: str) -> list[Json]:
    return [
        obj
        for path in sorted((GATEWAY / folder).glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for obj in yaml.safe_load_all(path.read_text())
    ]


@pytest.mark.parametrize("release", crds.RELEASES)
def test_schemas_and_rules_hold_for_the_base(release: str) -> None:
    judged = [obj for obj in objects("base") if obj["apiVersion"] != "v1"]
    assert len(judged) == 9
    assert [fault for obj in judged for fault in crds.faults(obj, release)] == []
